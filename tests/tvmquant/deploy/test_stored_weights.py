import itertools
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tvm
import tvm_ffi

from tvmquant.deploy.build import build
from tvmquant.deploy.compiler import compile_in_worker
from tvmquant.deploy.loader import load
from tvmquant.deploy.stored_weights import Channels, StoredWeight, write_source
from tvmquant.devices.cpu import ALIGNMENT
from tvmquant.formats import Uniform, pack_widths
from tvmquant.passes import store_weights
from tvmquant.passes.store_weights import FUNCTION, WEIGHTS
from tvmquant.target import parse_target

INT3 = Uniform(3, signed=True)
ARRAYS = [
    np.arange(-5, 6, dtype=np.int8),
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.asarray(-(2**40), np.int64),
    np.arange(6, dtype=np.uint8).reshape(3, 2)[:, ::-1],
]


def attribute(weight):
    """Return what `StoreWeights` says of a weight."""
    data = tvm.runtime.tensor(np.ascontiguousarray(weight.data))
    found = {"data": data, "shape": list(weight.shape), "dtype": weight.dtype,
             "format": weight.format, "width": weight.width}  # fmt: skip
    if weight.channels is not None:
        runs = [weight.channels.inner, weight.channels.lanes, weight.channels.steps]
        found |= {"widths": list(weight.channels.widths), "runs": runs}
    return found


def compiled(weights, path):
    module = tvm.IRModule().with_attr(WEIGHTS, weights)
    compile_in_worker(module, parse_target("haswell"), path)
    return path


@pytest.fixture
def library(tmp_path):
    """A library of nothing but weights."""
    return compiled([attribute(StoredWeight.plain(a)) for a in ARRAYS], tmp_path / "weights.so")


def test_tensors_lie_in_the_library(library):
    weight = tvm_ffi.load_module(str(library)).get_function(FUNCTION, query_imports=True)
    with open("/proc/self/maps") as file:
        maps = [line.split() for line in file if str(library) in line]
    ranges = [[int(end, 16) for end in fields[0].split("-")] for fields in maps]
    for index, expected in enumerate(ARRAYS):
        found = np.from_dlpack(weight(index))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        address = found.ctypes.data
        assert address % ALIGNMENT == 0
        assert any(low <= address < high for low, high in ranges)
        assert np.from_dlpack(weight(index)).ctypes.data == address


def test_networks_compute_the_same(quantized, images, tmp_path, monkeypatch):
    results = []
    for name, least in [("stored", 1), ("constant", 1 << 30)]:
        monkeypatch.setattr(store_weights, "LEAST_BYTES", least)
        build(quantized, out=tmp_path / name, threads=1)
        model = load(tmp_path / name)
        results.append([model(image[None]) for image in images])
        assert load(tmp_path / name, raw=True).inputs
        library = (tmp_path / name / "model.so").read_bytes()
        assert (f"__tvm_ffi_{FUNCTION}".encode() in library) == (least == 1)
    np.testing.assert_array_equal(*results)


def nibbles(values):
    """Two of 4 bits in a byte, as kernels of narrow weights read them."""
    halves = (values + 8).astype(np.uint8).reshape(-1, 2)
    return halves[:, 0] | halves[:, 1] << 4


def test_packed_weights_are_unpacked_once(tmp_path):
    rng = np.random.default_rng(0)
    weights, expected = [StoredWeight.plain(ARRAYS[1])], [ARRAYS[1]]
    for bits, count in itertools.product(range(2, 9), (2, 46, 1000)):
        held = Uniform(bits, signed=True)
        values = rng.integers(held.qmin, held.qmax + 1, count)
        for dtype in ("int8", "int16", "int32"):
            width = 8 * np.dtype(dtype).itemsize
            shape = (2, count // 2)
            weights.append(StoredWeight(held.pack(values), shape, dtype, held.name, width))
            expected.append(values.astype(dtype).reshape(shape))
        if bits <= 4:
            packed = held.pack(values)
            weights.append(StoredWeight(packed, (count // 2,), "uint8", held.name, 4))
            expected.append(nibbles(values))
    for repeats, blocks, steps, lanes, inner in ((1, 1, 1, 5, 9), (1, 3, 2, 8, 4), (2, 2, 3, 4, 6)):
        widths = rng.permutation(np.resize(np.arange(2, 9), blocks * lanes))
        shape = (repeats, blocks, steps, lanes, inner)
        bits = np.broadcast_to(widths.reshape(1, blocks, 1, lanes, 1), shape)
        values = np.rint(rng.uniform(-1, 1, shape) * ((1 << (bits - 1)) - 1)).astype(np.int8)
        channels = Channels(tuple(widths), inner, lanes, steps)
        packed = pack_widths(values, bits)
        assert packed.size == -(-bits.sum() // 8)
        weights.append(StoredWeight(packed, shape, "int8", "", 8, channels=channels))
        expected.append(values)
        if inner % 2 == 0:
            few = np.clip(values, -8, 7)
            bits = np.minimum(bits, 4)
            channels = Channels(tuple(np.minimum(widths, 4)), inner, lanes, steps)
            shape = (*shape[:-1], inner // 2)
            weights.append(
                StoredWeight(pack_widths(few, bits), shape, "uint8", "", 4, channels=channels)
            )
            expected.append(nibbles(few.reshape(-1)).reshape(shape))
    path = compiled([attribute(weight) for weight in weights], tmp_path / "weights.so")
    weight = tvm_ffi.load_module(str(path)).get_function(FUNCTION, query_imports=True)
    with ThreadPoolExecutor(8) as pool:  # all of them begin with the same weight
        found = list(pool.map(weight, list(range(len(weights))) * 8))
    for index, tensor in enumerate(found):
        array = np.from_dlpack(tensor)
        wanted = expected[index % len(weights)]
        assert array.dtype == wanted.dtype
        np.testing.assert_array_equal(array, wanted)
        assert array.ctypes.data % ALIGNMENT == 0
        assert array.ctypes.data == np.from_dlpack(weight(index % len(weights))).ctypes.data


@pytest.mark.parametrize("language", ["c", "c++"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_source_is_c_and_cpp(compiler, language, packed, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    weights = [StoredWeight.plain(array) for array in ARRAYS]
    if packed:
        weights.append(StoredWeight(INT3.pack(np.zeros(9, np.int8)), (9,), "int8", "int3", 8))
        channels = Channels((2, 4), 3, 2, 1)
        weights.append(
            StoredWeight(np.zeros(3, np.uint8), (2, 3), "int8", "", 8, channels=channels)
        )
    source = write_source(weights, FUNCTION, tmp_path)
    include = [f"-I{path}" for path in tvm_ffi.libinfo.include_paths()]
    command = [compiler, "-x", language, "-Wall", "-Werror", "-fPIC", "-c", *include, str(source)]
    subprocess.run([*command, "-o", str(tmp_path / "weights.o")], check=True)
