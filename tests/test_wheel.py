import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["pyproject.toml", "README.md", "LICENSE", "tvmquant", "passes", "schedules"]
# what the page of `tvmquant report` is made of
PAGE_SUFFIXES = {".css", ".jinja", ".js"}

COMPILE = """
import sys
from pathlib import Path

import numpy as np

import tvmquant
import tvmquant.passes
import tvmquant.schedules

environment = Path(sys.prefix)
for module in (tvmquant, tvmquant.passes, tvmquant.schedules):
    assert environment in Path(module.__file__).parents, module.__file__

x = np.load("x.npy")
graph = tvmquant.load_onnx("model.onnx")
calibration = tvmquant.calibrate(graph, x)
quantized = tvmquant.quantize(graph, calibration)
tvmquant.build(quantized, target="llvm", out="built")
np.save("y.npy", np.asarray(tvmquant.load("built")(x)))
"""


def run(*command, cwd):
    # An inherited PYTHONPATH could put the repository in front of the wheel.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy: setuptools packs what an earlier build left in the source tree."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    run(*pip, "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source, cwd=out)
    (built,) = out.glob("tvmquant-*-py3-none-any.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Return the interpreter of an environment that holds the wheel and sees its dependencies.

    The dependencies come through a .pth file. Python appends the directories such a file names
    but does not process the .pth files inside them, so an editable tvmquant there stays inactive.
    """
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=False)
    interpreter = directory / "bin" / "python"
    installer = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    installer += ["--python", interpreter, "install", "--no-deps", "--no-index", wheel]
    run(*installer, cwd=directory)
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(run(interpreter, "-c", query, cwd=directory).strip())
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "dependencies.pth").write_text("\n".join(sorted(installed)) + "\n")
    return interpreter


def test_wheel_holds_the_three_source_trees(wheel):
    listing = run(sys.executable, "-m", "zipfile", "--list", wheel, cwd=wheel.parent)
    packed = {line.split()[0] for line in listing.splitlines()[1:]}
    for directory, package in (
        ("tvmquant", "tvmquant"),
        ("passes", "tvmquant/passes"),
        ("schedules", "tvmquant/schedules"),
    ):
        for source in (ROOT / directory).rglob("*.py"):
            assert f"{package}/{source.relative_to(ROOT / directory).as_posix()}" in packed
    assert "tvmquant/py.typed" in packed
    page = [p for p in (ROOT / "tvmquant" / "report").iterdir() if p.suffix in PAGE_SUFFIXES]
    assert {p.suffix for p in page} == PAGE_SUFFIXES
    assert {f"tvmquant/report/{p.name}" for p in page} <= packed
    assert not any(name.startswith(("passes/", "schedules/", "tests/")) for name in packed)


def test_wheel_compiles_a_network_outside_the_repository(python, small_onnx, tmp_path):
    shutil.copy(small_onnx, tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    script = tmp_path / "compile_network.py"
    script.write_text(COMPILE)
    # -I leaves out the current directory and the user's own site-packages.
    run(python, "-I", script, cwd=tmp_path)

    y = np.load(tmp_path / "y.npy")
    assert (tmp_path / "built" / "model.so").exists()
    assert (tmp_path / "built" / "manifest.json").exists()
    expected = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, {"x": x})
    np.testing.assert_allclose(y, expected[0], atol=0.05 * np.abs(expected[0]).max())


def test_wheel_installs_the_command(python, tmp_path):
    assert "compile" in run(python.parent / "tvmquant", "--help", cwd=tmp_path)
