import importlib.metadata
import importlib.util

import pytest
import tvm
import tvm_ffi

from tvmquant.deploy import runtime
from tvmquant.deploy.loader import load
from tvmquant.errors import ArtifactError


@pytest.fixture
def interface():
    runtime.interface.cache_clear()
    yield runtime.interface
    runtime.interface.cache_clear()


def test_where_tvm_was_imported_its_library_serves(interface):
    assert interface() is tvm_ffi
    assert int(interface().get_global_func("runtime.NumThreads")()) >= 1


def test_without_tvm_a_library_is_not_loaded(interface, built, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ArtifactError, match="TVM is not installed; pip install apache-tvm"):
        load(built)


def test_version_of_an_installed_tvm():
    assert runtime.version() == importlib.metadata.version("apache-tvm") == tvm.__version__


def test_version_of_a_tvm_that_pip_does_not_know(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert runtime.version() == tvm.__version__


def test_a_file_that_is_no_library(tmp_path):
    path = tmp_path / "model.so"
    path.write_bytes(b"not machine code")
    with pytest.raises((OSError, RuntimeError)):
        runtime.virtual_machine(path)
