"""Rewriters that emit calls of kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import tvm
from tvm import relax, tirx

from tvmquant.arithmetic import Array
from tvmquant.formats import INT8, Format
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, count_uses
from tvmquant.ir.tensor_types import dtype_of, static_shape
from tvmquant.machine import Machine
from tvmquant.passes.store_weights import (
    CHANNELS,
    FORMATS,
    LAYOUTS,
    container_bits,
    described,
    digest,
)
from tvmquant.schedules import kernel_facts, structural
from tvmquant.schedules.families import Tilings
from tvmquant.schedules.weight_layout import WeightLayout


class KernelEmitter(DataflowRewriter):
    """A rewriter for a machine.

    Attributes
    ----------
    machine : Machine
        What the kernels are compiled for.
    """

    def __init__(self, module: tvm.IRModule, machine: Machine) -> None:
        super().__init__(module)
        self.machine = machine

    def call(
        self, kernel: tirx.PrimFunc, args: list[relax.Expr], out: relax.TensorType, node: relax.Call
    ) -> relax.Expr:
        """Add a kernel to the module and emit its call, with the span of ``node``."""
        name = kernel_facts.name_of(kernel)
        if "global_symbol" in kernel.attrs:
            kernel = kernel.without_attr("global_symbol")
        function = self.builder.add_func(kernel, name)
        call = relax.op.call_tir(function, args, out_ty=out)
        named = relax.Call(call.op, call.args, call.attrs, call.ty_args, node.span)
        return self.emit(named, "lv")

    def reshaped(self, expr: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
        """View a tensor in another shape (no copy at run time)."""
        if static_shape(expr) == tuple(shape):
            return expr
        return self.emit(relax.op.reshape(expr, shape))


class LoweringPass(ABC):
    """What TVM runs as a pass (`tvm.ir.transform.module_pass`) to emit kernels for a machine.

    Parameters
    ----------
    machine : Machine
        What the kernels are compiled for, and whose threads they divide their work among.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @abstractmethod
    def lowered(self, module: tvm.IRModule) -> tvm.IRModule:
        """Return the module with kernels."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with kernels; what TVM calls."""
        return self.lowered(module)


class Lowerer(KernelEmitter):
    """What the handlers of operators are given.

    Attributes
    ----------
    tilings : Tilings
        Where tuned tilings come from.
    formats : dict of str to str
        Of weights that `StoreWeights` is to pack, by their digests.
    layouts : dict of str to str
        What `StoreWeights` may derive weights by, by their digests.
    channels : dict of str to (int, int)
        The axes of weights that count output channels, likewise.
    uses, producer : mapping
        How often a variable is read, and the value that it is bound to.
    bits : dict
        Packed bits (`lowering.bits`), by the bytes, the name of what reads them and the planes.
    """

    def __init__(self, module: tvm.IRModule, machine: Machine, tilings: Tilings) -> None:
        super().__init__(module, machine)
        self.tilings = tilings
        self.uses = count_uses(self.function)
        self.producer = dict(bindings_of(self.function))
        self.formats: dict[str, str] = {}
        self.layouts: dict[str, str] = {}
        self.channels: dict[str, tuple[int, int]] = {}
        self.bits: dict[tuple[relax.Expr, str, int], relax.Expr] = {}

    def rewrite(self) -> tvm.IRModule:
        """Build the new module, which says how its weights may be held."""
        module = super().rewrite()
        noted = (FORMATS, self.formats), (LAYOUTS, self.layouts), (CHANNELS, self.channels)
        for name, found in noted:
            module = module.with_attr(name, found) if found else module
        return module

    def weight(
        self, packed: Array, held: Format, layout: WeightLayout | None = None,
        channels: tuple[int, int] | None = None,
    ) -> relax.Expr:  # fmt: skip
        """Return a kernel's weight, noting how the library can hold it in less.

        Parameters
        ----------
        packed : array
        held : Format
            Of its values.
        layout : WeightLayout, optional
        channels : (int, int), optional
            Axes that count its output channels, each of which may take fewer bits.
        """
        if layout is not None:
            self.layouts[digest(packed)] = described(held, layout)
        if channels is not None:
            self.channels[digest(packed)] = channels
        if held.bits < min(INT8.bits, container_bits(packed, held)):
            self.formats[digest(packed)] = held.name
        return qop.constant(packed)

    def moved(self, spec: structural.Spec, args: list[relax.Expr], call: relax.Call) -> relax.Expr:
        """Emit a kernel that moves elements, with the span of ``call``."""
        kernel = structural.kernel(spec, self.machine)
        out = relax.TensorType(structural.output_shape(spec), dtype_of(call))
        return self.call(kernel, args, out, call)


# Returns what replaces a call; None leaves it to TVM.
Handler: TypeAlias = Callable[[Lowerer, relax.Call], relax.Expr | None]
