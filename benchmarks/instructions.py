"""Instructions of convolutions on emulated AArch64 processors, beside peers emulated alike.

No latency: how long instructions take, an emulator does not know. Peers (ONNX Runtime, and LiteRT,
whose convolutions are XNNPACK's) need a folder with a Python for AArch64 and their wheels, which is
not made here; `PEERS` says how.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.aarch64 import emulator
from benchmarks.aarch64.emulator import TRIPLE, Processor
from benchmarks.kernels import resnet50_layers
from benchmarks.rows import Row, RowMaker
from tvmquant.errors import DataError
from tvmquant.machine import Machine
from tvmquant.progress import Progress
from tvmquant.schedules import conv2d
from tvmquant.schedules.conv2d import Conv2DSpec, Tiling
from tvmquant.schedules.epilogue import Epilogue

PROCESSORS: Final = {
    "cortex-a72": Processor("cortex-a72", f"-mtriple={TRIPLE} -mcpu=cortex-a72"),
    "neoverse-n1": Processor("neoverse-n1", f"-mtriple={TRIPLE} -mcpu=neoverse-n1"),
    "max": Processor("max,sve=off", f"-mtriple={TRIPLE} -mcpu=neoverse-n1 -mattr=+i8mm"),
}
# What Linux says of each, features and part number: peers choose their kernels by it.
BASE: Final = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
DOTS: Final = f"{BASE} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs"
FEATURES: Final = {
    "cortex-a72": (BASE, "0xd08"),
    "neoverse-n1": (DOTS, "0xd0c"),
    "max": (f"{DOTS} i8mm bf16", "0xd49"),
}
ENGINES: Final = ("litert", "onnxruntime")
PEERS: Final = """\
--peers DIR needs DIR/root, where packages of Debian for arm64 are unpacked
  (dpkg --add-architecture arm64; apt-get update; apt-get download python3.11-minimal:arm64
  libpython3.11-minimal:arm64 libpython3.11-stdlib:arm64 libc6:arm64 libgcc-s1:arm64
  libstdc++6:arm64 zlib1g:arm64 libexpat1:arm64 libffi8:arm64 libssl3:arm64 libbz2-1.0:arm64
  liblzma5:arm64 libuuid1:arm64; then dpkg -x FILE DIR/root for each),
and DIR/packages, where wheels are unpacked
  (pip download --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_aarch64
  --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 onnxruntime ai-edge-litert;
  then unzip each)"""
# Of which the mean is taken.
RUNS: Final = 3
STEP: Final = 0.02


def run(
    *,
    processors: Sequence[str] = tuple(PROCESSORS),
    peers: Path | None = None,
    layers: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Count instructions of the distinct convolutions of ResNet-50, without residuals.

    Parameters
    ----------
    processors : sequence of str
        Of `PROCESSORS`.
    peers : Path, optional
        Folder as `PEERS` says; default: tvmquant alone.
    layers : sequence of str, optional
        Names of some.
    progress : callable, optional

    Returns
    -------
    list of Row
        ``instructions`` of a layer, in millions, of each engine; ``ratio`` of ours to a peer's, and
        its geometric mean.

    Raises
    ------
    DataError
        When the emulator, a processor or the peers are not there.
    """
    for name in processors:
        if name not in PROCESSORS:
            raise DataError(f"--processors {name!r}; expected some of {', '.join(PROCESSORS)}")
    if peers is not None and not all((peers / name).is_dir() for name in ("root", "packages")):
        raise DataError(f"{peers} has no root/ and packages/: {PEERS}")
    if reason := emulator.missing():
        raise DataError(f"AArch64 is not emulated: {reason}")
    specs = _specs()
    if layers is not None:
        unknown = [name for name in layers if name not in specs]
        if unknown:
            raise DataError(f"--layers {unknown[0]!r}; expected some of {', '.join(specs)}")
        specs = {name: specs[name] for name in layers}
    found: list[Row] = []
    for i, processor in enumerate(processors):
        make = RowMaker("instructions", 1, {"cpu": processor})
        ratios: dict[str, list[float]] = {engine: [] for engine in ENGINES}
        for j, (name, spec) in enumerate(specs.items()):
            counts = dict(_counts(processor, spec, peers))
            for engine, (count, facts) in counts.items():
                value = count / 1e6
                found.append(
                    make("resnet50", engine, "instructions", value, "M", layer=name, **facts)
                )
            for engine in [name for name in ENGINES if name in counts]:
                ratio = counts["tvmquant"][0] / counts[engine][0]
                ratios[engine].append(ratio)
                found.append(make("resnet50", engine, "ratio", ratio, "", layer=name))
            if progress is not None:
                progress(i * len(specs) + j + 1, len(processors) * len(specs))
        for engine, values in ratios.items():
            if values:
                mean = statistics.geometric_mean(values)
                found.append(make("resnet50", engine, "ratio", mean, "", layer="geomean"))
    return found


def _specs() -> dict[str, Conv2DSpec]:
    """Return the distinct convolutions by name."""
    found: dict[Conv2DSpec, str] = {}
    for layer in resnet50_layers():
        epilogue = layer.spec.epilogue
        assert isinstance(epilogue, Epilogue)
        spec = replace(layer.spec, epilogue=replace(epilogue, residual=False))
        found.setdefault(spec, layer.name.removesuffix("+"))
    return {name: spec for spec, name in found.items()}


def _counts(
    processor: str, spec: Conv2DSpec, peers: Path | None
) -> Iterator[tuple[str, tuple[float, dict[str, Any]]]]:
    known = PROCESSORS[processor]
    flat = spec.flattened()
    tiling = conv2d.target_tiling(flat, Machine.of(known.target, 1))
    kernel = conv2d.kernel(flat, tiling)
    count = known.instructions(kernel, _operands(flat, tiling))
    tile = f"{tiling.dot.name} {tiling.column_tile}x{tiling.channel_tile}"
    yield "tvmquant", (count, {"tile": tile})
    if peers is None:
        return
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        for engine in ENGINES:
            path = Path(scratch, engine)
            {"litert": _write_numbers, "onnxruntime": _write_onnx}[engine](spec, path)
            yield engine, (_peer(processor, peers, engine, path), {})


def _peer(processor: str, peers: Path, engine: str, model: Path) -> float:
    features, part = FEATURES[processor]
    cpuinfo = peers / "root" / "proc" / "cpuinfo"
    cpuinfo.parent.mkdir(exist_ok=True)
    cpuinfo.write_text(
        f"processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 1\n\n",
        encoding="utf-8",
    )
    environment = {"PYTHONPATH": str(peers / "packages"), "PYTHONHASHSEED": "0"}
    script = Path(__file__).parent / "aarch64" / "peer.py"
    python = peers / "root" / "usr" / "bin" / "python3.11"
    begin, end, _ = PROCESSORS[processor].run(
        python, script, engine, model, RUNS, root=peers / "root", **environment
    )
    return (end - begin) / RUNS


def _weight(spec: Conv2DSpec) -> tuple[Any, Any, Any]:
    """Return weight (OHWI), bias and scales of a layer."""
    random = np.random.default_rng(0)
    shape = (spec.outputs, *spec.kernel, spec.channels)
    weight = random.integers(-127, 128, shape).astype(np.int8)
    bias = random.integers(-1000, 1000, spec.outputs).astype(np.int32)
    return weight, bias, (random.random(spec.outputs) + 0.5).astype(np.float32) * np.float32(1e-3)


def _operands(spec: Conv2DSpec, tiling: Tiling) -> list[Any]:
    """Return the inputs of a kernel."""
    weight, bias, _ = _weight(spec)
    shape = conv2d.input_shape(spec, tiling)
    x = (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)
    length = conv2d.padded_outputs(spec, tiling)
    vectors = [np.full(length, value, np.int32) for value in (3, 1 << 11, 12)]
    packed = conv2d.pack_weight(weight, spec, tiling)
    return [x, packed, conv2d.pack_bias(bias, weight, spec, tiling), *vectors]


def _write_numbers(spec: Conv2DSpec, path: Path) -> None:
    weight, bias, scale = _weight(spec)
    with path.open("wb") as file:
        np.savez(
            file, weight=weight, bias=bias, scale=scale, height=spec.height,
            stride=spec.strides[0], step=STEP,
        )  # fmt: skip


def _write_onnx(spec: Conv2DSpec, path: Path) -> None:
    weight, bias, scale = _weight(spec)
    step = np.float32(STEP)
    tensors = {
        "xs": np.array(step), "xz": np.array(0, np.uint8), "ws": scale,
        "wz": np.zeros(spec.outputs, np.int8), "bs": scale * step,
        "bz": np.zeros(spec.outputs, np.int32), "b": bias,
        "w": np.ascontiguousarray(weight.transpose(0, 3, 1, 2)),
    }  # fmt: skip
    convolution = helper.make_node(
        "Conv", ["xd", "wd", "bd"], ["c"], kernel_shape=spec.kernel, strides=spec.strides,
        pads=spec.padding,
    )  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0),
        convolution,
        helper.make_node("QuantizeLinear", ["c", "xs", "xz"], ["y"]),
    ]
    inputs = [spec.batch, spec.channels, spec.height, spec.width]
    outputs = [spec.batch, spec.outputs, spec.out_height, spec.out_width]
    graph = helper.make_graph(
        nodes, "convolution",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, inputs)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, outputs)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)
