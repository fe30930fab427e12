import numpy as np
import pytest

import tvmquant as api


@pytest.fixture
def x(small_data):
    with np.load(small_data) as data:
        return data["images"][:1]


def test_run_writes_what_the_model_returns(tvmquant, small_library, tmp_path, x):
    np.save(tmp_path / "x.npy", x)
    tvmquant("run", small_library, tmp_path / "x.npy", tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), api.load(small_library)(x))


def test_run_reads_and_writes_npz_by_name(tvmquant, small_library, tmp_path, x):
    np.savez(tmp_path / "x.npz", other=np.zeros(1), x=x)
    tvmquant("run", small_library, tmp_path / "x.npz", tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as outputs:
        np.testing.assert_array_equal(outputs["y"], api.load(small_library)(x))


def test_json_describes_what_was_written(tvmquant, small_library, tmp_path, x):
    np.save(tmp_path / "x.npy", x)
    outcome = tvmquant("run", small_library, tmp_path / "x.npy", tmp_path / "y.npy", "--json")
    assert outcome.json() == {
        "library": str(small_library),
        "path": str(tmp_path / "y.npy"),
        "outputs": [{"name": "y", "shape": [1, 10], "dtype": "float32"}],
    }


def test_quiet_shows_nothing(tvmquant, small_library, tmp_path, x):
    np.save(tmp_path / "x.npy", x)
    arguments = ("run", small_library, tmp_path / "x.npy", tmp_path / "y.npy")
    assert tvmquant(*arguments).stderr.startswith("run: ")
    outcome = tvmquant(*arguments, "--quiet")
    assert (outcome.stdout, outcome.stderr) == ("", "")


def test_raw_integers(tvmquant, small_library, tmp_path, x):
    model = api.load(small_library, raw=True)
    info = model.inputs[0]
    raw = np.zeros(info.raw_shape, info.raw_dtype)
    np.save(tmp_path / "x.npy", raw)
    tvmquant("run", small_library, tmp_path / "x.npy", tmp_path / "y.npy", "--raw")
    result = np.load(tmp_path / "y.npy")
    assert result.dtype.kind in "iu"
    np.testing.assert_array_equal(result, model(raw))


@pytest.mark.parametrize(
    ("source", "result", "message"),
    [
        ("nothing.npy", "y.npy", "nothing.npy' cannot be read"),
        ("text.npy", "y.npy", "text.npy' cannot be read"),
        ("pickle.npy", "y.npy", "pickle.npy' cannot be read"),
        ("other.npz", "y.npy", "lacks x"),
        ("shape.npy", "y.npy", "expected float32 (1, 3, 8, 8)"),
        ("dtype.npy", "y.npy", "is float64"),
        ("x.npy", "y.txt", "expected a name ending in .npy or .npz"),
        ("x.npy", "no/such/folder/y.npy", "y.npy' cannot be written"),
    ],
)
def test_wrong_files_write_nothing(tvmquant, small_library, tmp_path, x, source, result, message):
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "shape.npy", x[:, :, :4])
    np.save(tmp_path / "dtype.npy", x.astype("float64"))
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "other.npz", other=x)
    (tmp_path / "text.npy").write_text("text")
    before = set(tmp_path.iterdir())
    outcome = tvmquant("run", small_library, tmp_path / source, tmp_path / result, code=2)
    assert message in outcome.stderr
    assert set(tmp_path.iterdir()) == before
