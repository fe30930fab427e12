import shutil
import subprocess

import numpy as np
import pytest
import tvm
import tvm_ffi

from tvmquant.deploy.build import build
from tvmquant.deploy.compiler import compile_in_worker
from tvmquant.deploy.loader import load
from tvmquant.deploy.stored_weights import write_source
from tvmquant.devices.cpu import ALIGNMENT
from tvmquant.passes import store_weights
from tvmquant.passes.store_weights import FUNCTION, WEIGHTS
from tvmquant.target import parse_target

ARRAYS = [
    np.arange(-5, 6, dtype=np.int8),
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.asarray(-(2**40), np.int64),
    np.arange(6, dtype=np.uint8).reshape(3, 2)[:, ::-1],
]


@pytest.fixture
def library(tmp_path):
    """A library of nothing but weights."""
    module = tvm.IRModule().with_attr(WEIGHTS, [tvm.runtime.tensor(a.copy()) for a in ARRAYS])
    path = tmp_path / "weights.so"
    compile_in_worker(module, parse_target("haswell"), path)
    return path


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


@pytest.mark.parametrize("language", ["c", "c++"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_source_is_c_and_cpp(compiler, language, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    source = write_source(ARRAYS, FUNCTION, tmp_path)
    include = [f"-I{path}" for path in tvm_ffi.libinfo.include_paths()]
    command = [compiler, "-x", language, "-Wall", "-Werror", "-fPIC", "-c", *include, str(source)]
    subprocess.run([*command, "-o", str(tmp_path / "weights.o")], check=True)
