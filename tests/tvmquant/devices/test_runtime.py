import importlib.metadata

import pytest
import tvm
import tvm_ffi

from tvmquant.devices import runtime


@pytest.fixture
def interface():
    runtime.interface.cache_clear()
    yield runtime.interface
    runtime.interface.cache_clear()


def test_where_tvm_was_imported_its_library_serves(interface):
    assert interface() is tvm_ffi
    assert int(interface().get_global_func("runtime.NumThreads")()) >= 1


def test_version_of_an_installed_tvm():
    assert runtime.version() == importlib.metadata.version("apache-tvm") == tvm.__version__


def test_version_of_a_tvm_that_pip_does_not_know(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert runtime.version() == tvm.__version__
