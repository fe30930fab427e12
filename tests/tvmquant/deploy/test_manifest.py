import contextlib
import copy
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmquant.deploy.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    LayerInfo,
    Manifest,
    TensorInfo,
    describe_pairs,
    file_sha256,
    is_manifest,
)
from tvmquant.errors import ArtifactError

TENSOR = TensorInfo("x", [1, 3, 4, 5], "float32", "NCHW", 0.5, 3, [1, 4, 5, 3], "uint8", "NHWC")
LAYER = LayerInfo(
    "conv",
    "conv2d",
    "conv2d_nhwc_u8s8s32",
    [1, 4, 5, 8],
    "uint8",
    960,
    "w4a8g32",
    "int4g32",
    "uint8",
    "int64",
    "bounded",
)
MANIFEST = Manifest(
    model={
        "name": "small",
        "path": "small.onnx",
        "sha256": "12ab",
        "settings": {"batch": 1, "input_shapes": {"x": [None, 3]}},
    },
    inputs=[TENSOR],
    outputs=[TensorInfo("y", [1, 10], "float32", "", 0.25, 0, [1, 10], "int16", "")],
    target={"config": "llvm", "triple": "x86_64-linux-gnu", "features": ["avx2", "fma"]},
    threads=2,
    layers=[LAYER, LayerInfo("soft", "float", "softmax", [1, 10], "float32")],
    float_audit=[{"op": "softmax", "node": "soft", "reason": "no integer form"}],
    versions={"tvmquant": "0.1", "tvm": "0.27.0"},
    library={"sha256": "34cd", "bytes": 1000},
    preprocess={"resize": None},
    has_raw=True,
)
DOCUMENT = MANIFEST.to_dict()


def places(value, path=()):
    """Yield the path of every value inside a JSON document."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        yield (*path, key)
        if isinstance(child, (dict, list)):
            yield from places(child, (*path, key))


PLACES = list(places(DOCUMENT))


def parent_of(document, path):
    for key in path[:-1]:
        document = document[key]
    return document


def write(folder, document):
    (folder / MANIFEST_NAME).write_text(json.dumps(document))
    return folder


def name_of(path):
    """Return a path as messages write it: ``inputs[0].shape``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)[1:]


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a document as if it lay in an artefact."""
    return lambda document: Manifest.load(write(tmp_path, document))


def test_round_trip(tmp_path):
    MANIFEST.save(tmp_path / MANIFEST_NAME)
    loaded = Manifest.load(tmp_path)
    assert loaded == MANIFEST
    assert json.loads((tmp_path / MANIFEST_NAME).read_text()) == DOCUMENT


def test_what_a_later_tvmquant_adds_is_left_out(load):
    document = copy.deepcopy(DOCUMENT)
    document["licence"] = document["layers"][0]["energy"] = document["inputs"][0]["unit"] = "new"
    assert load(document) == MANIFEST


def test_what_an_earlier_tvmquant_did_not_write_takes_its_default(load):
    document = copy.deepcopy(DOCUMENT)
    del document["layers"][1]["choice"], document["preprocess"]
    del document["layers"][0]["weight_pairs"]
    loaded = load(document)
    assert loaded.layers == [replace(LAYER, weight_pairs=""), *MANIFEST.layers[1:]]
    assert loaded.preprocess is None


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], ""),
        (["", ""], ""),
        (["free", "", "free"], "free"),
        (["bounded", "", "free"], "bounded in 1 of 2 layers"),
    ],
)
def test_pairs_in_words(pairs, expected):
    assert describe_pairs(pairs) == expected


REQUIRED = [
    "model", "model.name", "inputs", "inputs[0].name", "inputs[0].shape", "outputs", "target",
    "target.config", "target.triple", "target.features", "threads", "layers", "layers[0].id",
    "layers[1].op", "layers[0].kernel", "layers[1].shape", "layers[1].dtype", "float_audit",
    "float_audit[0].op", "float_audit[0].node", "float_audit[0].reason", "versions",
    "versions.tvmquant", "versions.tvm", "library", "library.sha256", "library.bytes",
]  # fmt: skip


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(load, name):
    path = next(path for path in PLACES if name_of(path) == name)
    document = copy.deepcopy(DOCUMENT)
    del parent_of(document, path)[path[-1]]
    with pytest.raises(ArtifactError, match=re.escape(f"'{name}' is missing; build")):
        load(document)


# The rest holds anything, and the version is checked by itself.
TYPED = [
    path
    for path in PLACES
    if path != ("schema_version",)
    and name_of(path) not in ("model.settings.batch", "preprocess.resize")
]


@pytest.mark.parametrize("path", TYPED, ids=name_of)
def test_a_field_of_another_type_is_named(load, path):
    document = copy.deepcopy(DOCUMENT)
    parent = parent_of(document, path)
    parent[path[-1]] = 3 if isinstance(parent[path[-1]], (str, list, dict, bool)) else "three"
    with pytest.raises(ArtifactError, match=re.escape(f"'{name_of(path)}' is not of type ")):
        load(document)


@pytest.mark.parametrize("field", ["threads", "library.bytes", "layers[0].macs"])
@pytest.mark.parametrize("value", [True, 2.5, None])
def test_whole_numbers(load, field, value):
    path = next(path for path in PLACES if name_of(path) == field)
    document = copy.deepcopy(DOCUMENT)
    parent_of(document, path)[path[-1]] = value
    with pytest.raises(ArtifactError, match="whole number"):
        load(document)


def test_a_scale_may_be_written_as_a_whole_number(load):
    document = copy.deepcopy(DOCUMENT)
    document["inputs"][0]["scale"] = 1
    assert load(document).inputs[0].scale == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": None}, "'x' lacks the scale"),
        ({"raw_dtype": ""}, "'x' has no valid dtype"),
        ({"raw_dtype": "octet"}, "'x' has no valid dtype"),
    ],
)
def test_a_raw_entry_without_raw_tensors(load, change, message):
    document = copy.deepcopy(DOCUMENT)
    document["inputs"][0].update(change)
    with pytest.raises(ArtifactError, match=message):
        load(document)
    document["has_raw"] = False
    load(document)


@pytest.mark.parametrize("name", ["inputs", "outputs"])
def test_a_library_without_inputs_or_outputs(load, name):
    with pytest.raises(ArtifactError, match=f"'{name}' lists nothing"):
        load({**DOCUMENT, name: []})


@pytest.mark.parametrize("dtype", ["", "octet", "object", "str"])
def test_what_is_no_dtype_of_a_tensor(load, dtype):
    document = copy.deepcopy(DOCUMENT)
    document["outputs"][0]["dtype"] = dtype
    with pytest.raises(ArtifactError, match="'y' has no valid dtype"):
        load(document)


@pytest.mark.parametrize("shapes", [3, {"x": 3}, {"x": ["a"]}])
def test_settings_of_another_type(load, shapes):
    document = copy.deepcopy(DOCUMENT)
    document["model"]["settings"]["input_shapes"] = shapes
    with pytest.raises(ArtifactError, match=r"'model\.settings\.input_shapes.*' is not of type"):
        load(document)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads(load, threads):
    with pytest.raises(ArtifactError, match=f"'threads' is {threads}; expected at least 1"):
        load({**DOCUMENT, "threads": threads})


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, None, "1", {}])
def test_other_schema_versions(load, version):
    with pytest.raises(
        ArtifactError, match=f"schema version .*this tvmquant reads {SCHEMA_VERSION}"
    ):
        load({**DOCUMENT, "schema_version": version})


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"threads": 1', b"[" * 10**5])
def test_what_is_no_json(tmp_path, content):
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ArtifactError, match="not valid JSON"):
        Manifest.load(tmp_path)
    assert not is_manifest(tmp_path / MANIFEST_NAME)


def test_what_is_not_there(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json; build"):
        Manifest.load(tmp_path)
    with pytest.raises(ArtifactError, match="no such folder"):
        Manifest.load(tmp_path / "absent")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(place=st.sampled_from(PLACES), value=JSON)
def test_whatever_a_manifest_holds_it_loads_or_is_an_error_of_ours(tmp_path_factory, place, value):
    document = copy.deepcopy(DOCUMENT)
    parent_of(document, place)[place[-1]] = value
    folder = write(tmp_path_factory.getbasetemp(), document)
    with contextlib.suppress(ArtifactError):
        loaded = Manifest.load(folder)
        assert Manifest.load(write(folder, loaded.to_dict())) == loaded


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (DOCUMENT, True),
        ({**DOCUMENT, "schema_version": 99, "layers": None}, True),
        ({"name": "an extension of a browser"}, False),
        ([], False),
    ],
)
def test_manifests_are_told_from_other_files(tmp_path, document, expected):
    write(tmp_path, document)
    assert is_manifest(tmp_path / MANIFEST_NAME) is expected


def test_no_manifests(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    for name in ("binary", "absent", "."):
        assert not is_manifest(tmp_path / name)


def test_checksums(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
