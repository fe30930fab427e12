"""The order of all passes, from the imported float graph to what TVM's virtual machine runs.

Each phase is a list; the level reached is named after it. Set the environment variable
``TVMQUANT_DUMP`` to a folder to get the module after every phase as TVMScript.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import tvm
from tvm import relax

from tvmquant.arithmetic import Array
from tvmquant.formats import Format
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.machine import Machine
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.apply_before_concat import ApplyBeforeConcat
from tvmquant.passes.apply_calibration import ApplyCalibration
from tvmquant.passes.arrange_matmuls import ArrangeMatmuls
from tvmquant.passes.assign_bit_widths import AssignBitWidths
from tvmquant.passes.canonicalize_ops import CanonicalizeOps
from tvmquant.passes.cast_inputs_first import CastInputsFirst
from tvmquant.passes.convert_layout import ConvertLayout
from tvmquant.passes.crop_kernels import CropKernels
from tvmquant.passes.expose_integers import ExposeIntegers
from tvmquant.passes.fix_scales import FixScales
from tvmquant.passes.fold_batch_norm import FoldBatchNorm
from tvmquant.passes.fuse_epilogue import FuseEpilogue
from tvmquant.passes.fuse_group_norm import FuseGroupNorm
from tvmquant.passes.fuse_layer_norm import FuseLayerNorm
from tvmquant.passes.fuse_padding import FusePadding
from tvmquant.passes.fuse_real_epilogue import FuseRealEpilogue
from tvmquant.passes.fuse_softmax import FuseSoftmax
from tvmquant.passes.insert_requantize import InsertRequantize
from tvmquant.passes.keep_binary_sums import KeepBinarySums
from tvmquant.passes.keep_signals_as_images import KeepSignalsAsImages
from tvmquant.passes.legalizations import LEGALIZATIONS
from tvmquant.passes.lower_fake_quants import LowerFakeQuants
from tvmquant.passes.lower_float import LowerFloat
from tvmquant.passes.lower_rows import LowerRows
from tvmquant.passes.lower_to_kernels import LowerToKernels, default_tilings
from tvmquant.passes.merge_widths import merge_widths
from tvmquant.passes.place_concats import PlaceConcats
from tvmquant.passes.quantize_before_moving import QuantizeBeforeMoving
from tvmquant.passes.recognize_binary import RecognizeBinary
from tvmquant.passes.schedule_float_ops import ScheduleFloatOps
from tvmquant.passes.set_rounding import SetRounding
from tvmquant.passes.split_reductions import SplitReductions
from tvmquant.passes.split_residual_width import SplitResidualWidth
from tvmquant.passes.store_weights import StoreWeights
from tvmquant.passes.verify_integer_only import VerifyIntegerOnly
from tvmquant.schedules.families import Tilings

Pass: TypeAlias = Any  # tvm.transform.Pass, which TVM leaves untyped

_FUSE_ELEMENTWISE = [
    relax.transform.RewriteDataflowReshape(),  # first: a view is not to be fused into a copy
    relax.transform.AnnotateTIROpPattern(),
    relax.transform.FuseOps(),
    relax.transform.FuseTIR(),
]


def _run(phase: str, passes: Sequence[Pass], module: tvm.IRModule) -> tvm.IRModule:
    module = tvm.transform.Sequential(list(passes))(module)
    folder = os.environ.get("TVMQUANT_DUMP")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{phase}.py").write_text(module.script(show_meta=False))
    return module


def canonicalize(module: tvm.IRModule, *, fold_batch_norm: bool = True) -> tvm.IRModule:
    """L0 as imported -> L0 in canonical form, batch normalization folded unless it is to stay.

    `FoldBatchNorm` folds what stayed later, in L1 too.
    """
    folded = [FoldBatchNorm(), CanonicalizeOps()] if fold_batch_norm else []
    passes = [
        CanonicalizeOps(),
        CastInputsFirst(),
        KeepSignalsAsImages(),
        FuseGroupNorm(),
        FuseLayerNorm(),
        FuseSoftmax(),
        SplitReductions(),
        ArrangeMatmuls(),
        *folded,
        ApplyBeforeConcat(),
        RecognizeBinary(),
        QuantizeBeforeMoving(),
        CropKernels(),
    ]
    return _run("1-canonical", passes, module)


def annotate(
    module: tvm.IRModule,
    activation_scheme: str = "asymmetric",
    *,
    calibrates: bool = True,
    dynamic: bool = False,
) -> tvm.IRModule:
    """Canonical L0 -> L1, uncalibrated."""
    passes = [
        KeepBinarySums(),
        AnnotateQuantization(activation_scheme, calibrates=calibrates, dynamic=dynamic),
    ]
    return _run("2-annotated", passes, module)


def apply_calibration(
    module: tvm.IRModule,
    ranges: Mapping[str, tuple[float, float]],
    *,
    weights: Mapping[str, Format] | None = None,
    activations: Mapping[str, Format] | None = None,
    residual_bits: int | None = None,
    weight_method: str = "mse",
    factors: Mapping[str, Sequence[float]] | None = None,
    bound_pairs: bool = False,
    input_means: Mapping[str, Sequence[float]] | None = None,
    input_powers: Mapping[str, Sequence[float]] | None = None,
) -> tvm.IRModule:
    """L1, uncalibrated -> L1 with its formats, scales and zero points: what ships."""
    passes = [
        AssignBitWidths(weights or {}, activations or {}),
        *([] if residual_bits is None else [SplitResidualWidth(residual_bits)]),
        ApplyCalibration(ranges, factors),
        FixScales(weight_method, bound_pairs, input_means, input_powers),
    ]
    return _run("3-calibrated", passes, module)


def set_rounding(
    calibrated: tvm.IRModule, integers: Mapping[str, Array], steps: Mapping[str, float]
) -> tvm.IRModule:
    """L1, calibrated -> L1 with other integers of weights and steps of activations."""
    return _run("3-rounded", [SetRounding(integers, steps)], calibrated)


def integerize(calibrated: tvm.IRModule, *, strict: bool = False) -> tvm.IRModule:
    """L1, calibrated -> L2: integers only, epilogues fused, channels last."""
    integer = [
        InsertRequantize(),
        FusePadding(),
        FuseEpilogue(),
        FuseRealEpilogue(),
        ConvertLayout(),
    ]
    verified = [VerifyIntegerOnly()] if strict else []
    return _run("4-integer", [*integer, *verified], calibrated)


def lower(
    module: tvm.IRModule,
    machine: Machine,
    batch: int,
    tilings: Tilings = default_tilings,
) -> tvm.IRModule:
    """L2 (or L0, for a float build) -> L3: scheduled kernels with the batch bound."""
    symbols = {str(v.name): v for p in module["main"].params for v in _symbolic(p)}
    bind = [relax.transform.BindSymbolicVars({v: batch for v in symbols.values()})]
    integer = has_integer_operators(module)
    return _run(
        "5-kernels",
        [
            *(bind if symbols else []),
            *([] if integer else [LowerFakeQuants()]),
            LowerToKernels(machine, tilings),
            PlaceConcats(machine),
            *([] if integer else [LowerFloat(machine)]),
            LowerRows(machine),
            relax.transform.LegalizeOps(LEGALIZATIONS),
            *([] if integer else _FUSE_ELEMENTWISE),
            ScheduleFloatOps(machine),
        ],
        module,
    )


def expose_integers(module: tvm.IRModule) -> tvm.IRModule:
    """Add the raw integer entry to an L3 module, where its borders allow it."""
    return _run("6-entries", [ExposeIntegers()], module)


def merge(modules: Mapping[int, tvm.IRModule]) -> tvm.IRModule:
    """Return one L3 module of those of several bit widths, the widest first."""
    return next(iter(modules.values())) if len(modules) == 1 else merge_widths(modules)


def store_weights(module: tvm.IRModule) -> tvm.IRModule:
    """Take large constants of an L3 module out of the virtual machine's executable."""
    return _run("7-weights", [StoreWeights()], module)


def has_integer_operators(module: tvm.IRModule) -> bool:
    """Whether a module is an integer graph (L2), as opposed to a float one (L0)."""
    values = (value for _, value in bindings_of(module["main"]))
    return any(
        isinstance(v, relax.Call)
        and v.op.name.startswith(qop.PREFIX)
        and not qop.is_call(v, qop.FAKE_QUANT)
        for v in values
    )


def _symbolic(param: relax.Var) -> list[tvm.tirx.Var]:
    return [v for v in param.ty.shape.values if isinstance(v, tvm.tirx.Var)]


def virtual_machine_pipeline() -> Pass:
    """Return the passes that turn L3 into virtual machine instructions.

    TVM's default without its fusion and constant folding: kernels are final here, and folding
    would compile and run code on the build machine.
    """
    return tvm.transform.Sequential(
        [
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
