import ast
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

TOP_LEVEL = {
    ".ci",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "benchmarks",
    "constraints.txt",
    "passes",
    "pyproject.toml",
    "schedules",
    "tests",
    "tutorials",
    "tvmquant",
}
PACKAGE_ROOTS = {
    "tvmquant": "tvmquant",
    "passes": "tvmquant.passes",
    "schedules": "tvmquant.schedules",
}


def packages_in_the_tree() -> list[str]:
    found = []
    for directory, package in PACKAGE_ROOTS.items():
        for init in (ROOT / directory).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / directory).parts
            found.append(".".join((package, *parts)))
    return sorted(found)


def imported_modules(source: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(source.read_text(), str(source))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(str(node.module))
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    return modules


def is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_pyproject_lists_every_package_of_the_tree():
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == packages_in_the_tree()


def test_every_module_lies_in_a_package():
    for directory in PACKAGE_ROOTS:
        for source in (ROOT / directory).rglob("*.py"):
            assert (source.parent / "__init__.py").exists(), f"{source} is in no package"


def test_top_level_holds_only_the_fixed_names():
    if not (ROOT / ".git").exists():
        pytest.skip("the tracked files are known only in a git checkout")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert {name.split("/")[0] for name in tracked.split("\0") if name} <= TOP_LEVEL


@pytest.mark.parametrize(
    "directory", ["tvmquant", "passes", "schedules", "tests", "tutorials", "benchmarks"]
)
def test_passes_and_schedules_are_imported_as_parts_of_tvmquant(directory):
    for source in (ROOT / directory).rglob("*.py"):
        modules = imported_modules(source)
        wrong = {m for m in modules if is_inside(m, "passes") or is_inside(m, "schedules")}
        assert not wrong, (
            f"{source} imports {wrong}: a second copy of the module, without tvmquant."
        )


def test_only_devices_know_what_machine_this_is():
    own = ROOT / "tvmquant" / "devices"
    for directory in [*PACKAGE_ROOTS, "benchmarks"]:
        for source in (ROOT / directory).rglob("*.py"):
            found = re.findall(
                r"tvm\.cpu\(|\.cpu\(0\)|time_evaluator|/proc/cpuinfo|platform\.processor",
                source.read_text(),
            )
            assert not found or own in source.parents, f"{source}: {found}"


# Distributions whose package has another name.
IMPORTED_AS = {
    "apache-tvm": "tvm",
    "apache-tvm-ffi": "tvm_ffi",
    "pillow": "PIL",
    "protobuf": "google",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
# Needed without an import: pulp calls this solver.
NOT_IMPORTED = {"highspy"}


def third_party_imports(directory: str) -> set[str]:
    """Return the top-level packages that modules of a folder import, anywhere in them."""
    found = {
        module.split(".")[0]
        for source in (ROOT / directory).rglob("*.py")
        for module in imported_modules(source)
    }
    return found - sys.stdlib_module_names - {"tvmquant"}


def test_requirements_are_what_the_package_imports():
    def declared(lines: list[str]) -> set[str]:
        names = {Requirement(line).name for line in lines}
        return {IMPORTED_AS.get(name, name) for name in names - NOT_IMPORTED}

    project = PYPROJECT["project"]
    imported = set().union(*map(third_party_imports, PACKAGE_ROOTS))
    # what the demo needs is imported when it runs, and said to be missing otherwise; what runs
    # exported files has a substitute
    extras = project["optional-dependencies"]
    optional = declared([*extras["demo"], *extras["export"]])
    assert imported - optional == declared(project["dependencies"])


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


HEAVY = "[name for name in ('tvm', 'torch', 'onnx', 'sklearn') if name in sys.modules]"


def test_import_loads_no_heavy_dependency():
    assert run_python(f"import sys, tvmquant; print({HEAVY})") == "[]"


def test_help_loads_no_heavy_dependency():
    code = f"""
import sys
from tvmquant.cli import main
sys.argv = ["tvmquant", "--help"]
try:
    status = main()
except SystemExit as leaving:
    status = leaving.code
print(status or 0, {HEAVY})
"""
    assert run_python(code) == "0 []"


def test_files_are_refused_before_heavy_dependencies_are_loaded(tmp_path):
    node = helper.make_node("Det", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 2]) for name in "xy")
    onnx.save(helper.make_model(helper.make_graph([node], "bad", [x], [y])), tmp_path / "bad.onnx")
    code = f"""
import sys
from tvmquant.cli import main
for command in ("compile --data d.npy", "plan --data d.npy", "tune -o table", "inspect"):
    name, *options = command.split()
    sys.argv = ["tvmquant", name, {str(tmp_path / "bad.onnx")!r}, *options]
    try:
        main()
    except SystemExit as leaving:
        assert leaving.code == 2, (command, leaving.code)
    else:
        raise AssertionError(command)
print({HEAVY})
"""
    assert run_python(code) == "['onnx']"


def pinned_versions() -> dict[str, Version]:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate():
            (specifier,) = pin.specifier
            assert specifier.operator == "==", line
            assert canonicalize_name(pin.name) not in pins, f"{line}: pinned twice"
            pins[canonicalize_name(pin.name)] = Version(specifier.version)
    return pins


def test_constraints_pin_every_declared_requirement_within_its_range():
    pins = pinned_versions()
    project = PYPROJECT["project"]
    lines = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        lines += extra
    for requirement in map(Requirement, lines):
        applies = requirement.marker is None or requirement.marker.evaluate()
        if requirement.name != "tvmquant" and applies:
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_constraints_name_no_build_specific_version():
    assert not re.search(r"==[^;\n]*\+", (ROOT / "constraints.txt").read_text())
