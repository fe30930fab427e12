import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import TensorProto, helper

from tvmquant.arithmetic import dequantize, quantize_half_even
from tvmquant.deploy.build import build
from tvmquant.deploy.loader import MAX_THREADS, load
from tvmquant.devices import cpu, runtime
from tvmquant.devices.cpu import ALIGNMENT
from tvmquant.devices.host import CPUINFO_NAMES, physical_cores
from tvmquant.errors import ArtifactError, DataError
from tvmquant.frontend import load_onnx
from tvmquant.quantization import calibrate, quantize
from tvmquant.simulator import simulate

SHAPE = (1, 3, 8, 8)


def aligned(array, offset=0):
    """Return a copy that starts `offset` bytes after a multiple of the alignment."""
    memory = np.zeros(array.nbytes + 2 * ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT + offset
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def strided(array):
    """Return an equal array whose channels lie last."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def model(built):
    return load(built)


@pytest.fixture(scope="module")
def x(images):
    return images[:1]


@pytest.fixture(scope="module")
def y(quantized, x):
    """What the oracle computes from ``x``."""
    (result,) = simulate(quantized, x)
    return result


@pytest.fixture
def library(built, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(built, tmp_path / "library")


def edit(library, change):
    path = library / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# -- calling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        aligned,
        lambda x: aligned(x, 4),
        strided,
        lambda x: x[:, ::-1].copy()[:, ::-1],
        lambda x: np.broadcast_to(x, SHAPE),
        torch.from_numpy,
        lambda x: torch.from_numpy(x).clone(memory_format=torch.channels_last),
        lambda x: torch.from_numpy(x).as_subclass(torch.nn.Parameter).detach(),
    ],
)
def test_every_form_of_an_input_gives_what_the_oracle_computes(model, x, y, form):
    np.testing.assert_array_equal(model(form(x)), y)


def test_results_are_not_overwritten_by_the_next_run(model, x, y):
    first = model(x)
    model(x + 1)
    np.testing.assert_array_equal(first, y)
    assert first.flags.writeable


IN_PLACE = {"aligned": aligned, "torch": lambda x: torch.from_numpy(x).clone()}
COPIED = {
    "unaligned": lambda x: aligned(x, 16),
    "strided": strided,
    "channels last": lambda x: torch.from_numpy(x).clone(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_inputs_that_are_used_in_place(model, x, y, name):
    form = IN_PLACE[name](x)
    run = model.bind(form)
    np.testing.assert_array_equal(np.from_dlpack(run()), y)
    form[...] = 0
    np.testing.assert_array_equal(np.from_dlpack(run()), model(np.zeros_like(x)))


@pytest.mark.parametrize("name", COPIED)
def test_inputs_that_are_copied(model, x, y, name):
    form = COPIED[name](x)
    run = model.bind(form)
    form[...] = 0
    np.testing.assert_array_equal(np.from_dlpack(run()), y)


def test_inputs_that_may_not_be_written_are_copied(model, x, y):
    form = aligned(x)
    form.flags.writeable = False
    np.testing.assert_array_equal(model(form), y)


def test_no_input_is_changed(model, x):
    form = aligned(x)
    model(form)
    np.testing.assert_array_equal(form, x)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "found 0 inputs; expected 1: x"),
        ((np.zeros(SHAPE, np.float32),) * 2, "found 2 inputs; expected 1: x"),
        (
            (np.zeros((1, 8, 8, 3), np.float32),),
            r"float32 \(1, 8, 8, 3\); expected float32 \(1, 3,",
        ),
        ((np.zeros(SHAPE),), r"is float64 .*; expected float32"),
        ((np.zeros(SHAPE, ">f4"),), r"is >f4 .*; expected float32"),
        ((np.zeros(SHAPE, np.uint8),), r"is uint8 .*; expected float32"),
        ((torch.zeros(SHAPE, dtype=torch.float64),), r"is float64 .*; expected float32"),
        ((torch.zeros(SHAPE, requires_grad=True),), "is a Tensor that cannot be read .*detach"),
        (([[1.0]],), "is a list that cannot be read"),
        ((None,), "is a NoneType that cannot be read"),
    ],
)
def test_wrong_inputs(model, inputs, message):
    with pytest.raises(DataError, match=message):
        model(*inputs)
    with pytest.raises(DataError, match=message):
        model.bind(*inputs)


def test_the_raw_entry_equals_the_float_one_through_the_scales(built, images):
    raw, model = load(built, raw=True), load(built)
    (info,), (result,) = raw.inputs, raw.outputs
    limits = np.iinfo(info.raw_dtype)
    for image in images[:5, None]:
        q = quantize_half_even(
            image, info.scale, info.zero_point, limits.min, limits.max, info.raw_dtype
        )
        answer = raw(np.ascontiguousarray(q.transpose(0, 2, 3, 1)))
        assert answer.dtype == result.raw_dtype
        real = dequantize(answer, result.scale, result.zero_point)
        np.testing.assert_array_equal(real, model(image))


def test_raw_outputs_whose_parts_have_scales_of_their_own(tmp_path):
    inputs, outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", c, 5, 6])
        for name, c in (("x", 3), ("joined", 4))
    )
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((2, 3, 1, 1)).astype(np.float32) * s for s in (1.0, 0.01)]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["large"]),
        helper.make_node("Conv", ["x", "w"], ["small"]),
        helper.make_node("Concat", ["large", "small"], ["joined"], axis=1),
    ]
    tensors = [onnx.numpy_helper.from_array(w, n) for w, n in zip(weights, "vw", strict=True)]
    graph = helper.make_graph(nodes, "g", [inputs], [outputs], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    x = rng.standard_normal((4, 3, 5, 6)).astype(np.float32)
    float_graph = load_onnx(model)
    quantized = quantize(float_graph, calibrate(float_graph, x))
    build(quantized, out=tmp_path / "joined")
    raw, (result,) = load(tmp_path / "joined", raw=True), load(tmp_path / "joined").outputs
    assert result.factors_shape == [1, 1, 1, 4]
    (info,) = raw.inputs
    q = quantize_half_even(x[:1], info.scale, info.zero_point, 0, 255, info.raw_dtype)
    answer = raw(np.ascontiguousarray(q.transpose(0, 2, 3, 1)))
    real = dequantize(answer, result.scales, result.zero_point).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(real, load(tmp_path / "joined")(x[:1]), rtol=1e-6)
    exact = simulate(quantized, x[:1])[0]
    np.testing.assert_array_equal(load(tmp_path / "joined")(x[:1]), exact)
    reference = np.einsum("oi,nihw->nohw", weights[1][:, :, 0, 0], x[:1])
    assert np.abs(exact[:, 2:] - reference).max() < 0.02 * np.abs(reference).max()


def test_the_raw_entry_takes_raw_inputs_only(built, x):
    with pytest.raises(
        DataError, match=r"is float32 \(1, 3, 8, 8\); expected uint8 \(1, 8, 8, 3\)"
    ):
        load(built, raw=True)(x)


def test_several_outputs_are_a_tuple(tmp_path, small_onnx, images):
    proto = onnx.load(small_onnx)
    proto.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    onnx.save(proto, tmp_path / "two.onnx")
    network = load_onnx(tmp_path / "two.onnx")
    integers = quantize(network, calibrate(network, images))
    build(integers, out=tmp_path / "library", threads=1)
    model = load(tmp_path / "library")
    assert [info.name for info in model.outputs] == ["y", "r"]
    results = model(images[:1])
    assert isinstance(results, tuple)
    for found, expected in zip(results, simulate(integers, images[:1]), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("raw", [False, True])
def test_the_profile_lists_every_kernel_call(built, x, raw):
    model = load(built, raw=raw)
    info = model.inputs[0]
    found = model.profile(np.zeros(info.raw_shape, info.raw_dtype) if raw else x, repeats=2)
    layers = model.manifest.layers
    assert [layer for layer, _ in found] == (layers[1:-1] if raw else layers)
    assert all(seconds > 0 for _, seconds in found)


# -- loading ---------------------------------------------------------------------------------------


def test_a_library_built_anew_under_the_same_name_is_loaded_anew(library, quantized, images):
    old = load(library)
    build(quantized, out=library, force=True, batch=2, threads=1)
    new = load(library)
    np.testing.assert_array_equal(
        new(images[:2]), np.concatenate([old(images[:1]), old(images[1:2])])
    )


def test_a_library_on_another_file_system_than_the_temporary_folder(library, monkeypatch, x, y):
    def refuse(*_args):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    np.testing.assert_array_equal(load(library)(x), y)


def test_a_loaded_library_may_be_deleted(library, x, y):
    model = load(library)
    shutil.rmtree(library)
    np.testing.assert_array_equal(model(x), y)


def test_a_changed_library(library):
    content = bytearray((library / "model.so").read_bytes())
    content[len(content) // 2] ^= 1
    (library / "model.so").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.so: SHA-256 is .* was changed, build again"):
        load(library)
    (library / "model.so").unlink()
    with pytest.raises(ArtifactError, match=r"holds no model\.so; build the model again"):
        load(library)


def test_without_tvm_a_library_is_not_loaded(built, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    runtime.interface.cache_clear()
    with pytest.raises(ArtifactError, match="TVM is not installed; pip install apache-tvm"):
        load(built)


def test_another_processor(built, monkeypatch):
    needed = load(built).manifest.target["features"]
    names = {CPUINFO_NAMES[feature] for feature in needed}
    monkeypatch.setattr(cpu, "host_features", lambda: frozenset(names - {"sse4_2"}))
    with pytest.raises(ArtifactError, match=r"lacks sse4\.2, .*build again with --target native"):
        load(built)
    monkeypatch.setattr(cpu, "host_features", lambda: frozenset(names | {"newer"}))
    load(built)
    monkeypatch.setattr(cpu, "host_features", frozenset)  # a system that does not tell
    load(built)


def test_another_architecture(library, monkeypatch):
    monkeypatch.setattr(cpu.platform, "machine", lambda: "s390x")
    with pytest.raises(
        ArtifactError, match="this processor is s390x, the library was compiled for"
    ):
        load(library)


@pytest.mark.parametrize(
    ("version", "loads"), [("0.27.9", True), ("0.26.0", False), ("1.27", False)]
)
def test_versions_of_tvm(library, version, loads):
    edit(library, lambda document: document["versions"].update(tvm=version))
    if loads:
        load(library)
    else:
        with pytest.raises(ArtifactError, match=rf"built with TVM {version}, this is TVM 0\.27"):
            load(library)


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1, 10**25])
def test_wrong_numbers_of_threads(built, threads):
    with pytest.raises(ArtifactError, match=f"threads = {threads}; expected 1 to 1024"):
        load(built, threads=threads)


def test_a_library_for_more_threads_than_this_machine_has_cores(library, monkeypatch):
    edit(library, lambda document: document.update(threads=10**6))
    cores = physical_cores()  # before TVM's threads bind this process to some
    assert load(library).threads == cores
    monkeypatch.setattr(cpu, "physical_cores", lambda: 1)
    assert load(library).threads == 1
    assert load(library, threads=2).threads == 2


# -- in processes of their own ---------------------------------------------------------------------


def run_python(code, *arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("TVM_NUM_THREADS", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=kept | environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


RUNTIME_ONLY = """
import importlib.abc, json, sys
from pathlib import Path

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in (
            "torch", "onnx", "pydantic", "psutil", "tvmquant.passes", "tvmquant.schedules"
        ):
            raise ImportError(f"{name} is not installed on this machine")

sys.meta_path.insert(0, Refuse())
import numpy as np
import tvmquant
from tvmquant.errors import ArtifactError

library, image = sys.argv[1:]
x = np.load(image)
model = tvmquant.load(library)
raw = tvmquant.load(library, raw=True)
print(json.dumps({
    "y": model(x).tolist(),
    "raw": raw(np.zeros(raw.inputs[0].raw_shape, "uint8")).shape,
    "profile": len(model.profile(x, repeats=1)),
    "tvm": "tvm" in sys.modules,
    "mapped": sorted({Path(line.split()[-1]).name for line in open("/proc/self/maps")
                      if "libtvm" in line}),
}))
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="which libraries are loaded")
def test_tvms_runtime_library_and_numpy_are_all_it_takes(built, tmp_path, x, y):
    np.save(tmp_path / "x.npy", x)
    found, _ = run_python(RUNTIME_ONLY, built, tmp_path / "x.npy")
    np.testing.assert_array_equal(np.float32(found["y"]), y)
    assert found["raw"] == [1, 10]
    assert found["profile"] == len(load(built).manifest.layers)
    assert not found["tvm"]
    assert "libtvm_runtime.so" in found["mapped"]
    assert not any("compiler" in name for name in found["mapped"])


COMPILER_LATER = """
import json, sys
import numpy as np
import tvmquant

library, image, model, out = sys.argv[1:]
x = np.load(image)
first = tvmquant.load(library)
before = first(x)
graph = tvmquant.load_onnx(model)
tvmquant.build(tvmquant.quantize(graph, tvmquant.calibrate(graph, x)), out=out)
print(json.dumps([before.tolist(), first(x).tolist(), tvmquant.load(out)(x).shape]))
"""


def test_the_compiler_can_be_imported_after_a_library_was_loaded(built, small_onnx, tmp_path, x, y):
    np.save(tmp_path / "x.npy", x)
    paths = built, tmp_path / "x.npy", small_onnx, tmp_path / "again"
    (before, after, shape), _ = run_python(COMPILER_LATER, *paths)
    np.testing.assert_array_equal(np.float32(before), y)
    np.testing.assert_array_equal(np.float32(after), y)
    assert shape == [1, 10]


THREADS = """
import json, os, sys
sys.modules["torch"] = None  # which takes seconds to import
import numpy as np
import tvmquant
if hasattr(os, "sched_setaffinity"):  # TVM may have narrowed the processors of the test's process
    os.sched_setaffinity(0, range(os.cpu_count()))

used = []
for threads in (None, 1, 2, 1):
    model = tvmquant.load(sys.argv[1], threads=threads)
    model(np.zeros((1, 3, 8, 8), "float32"))
    import tvm_ffi
    used.append((model.threads, int(tvm_ffi.get_global_func("runtime.NumThreads")())))
print(json.dumps(used))
"""


@pytest.fixture
def for_two_threads(library):
    edit(library, lambda document: document.update(threads=2))
    return library


def test_threads_are_those_asked_for(for_two_threads):
    used, warnings = run_python(THREADS, for_two_threads)
    default = min(2, psutil.cpu_count(logical=False) or os.cpu_count())
    assert used == [[default, default], [1, 1], [2, 2], [1, 1]]
    assert warnings == ""


def test_fewer_threads_than_asked_for_are_pointed_out(for_two_threads):
    used, warnings = run_python(THREADS, for_two_threads, TVM_NUM_THREADS="1")
    assert used[2] == [2, 1]
    assert "TVM computes with 1 of 2 threads" in warnings
