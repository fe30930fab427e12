"""TVM's runtime library through its foreign function interface, without TVM's Python packages.

``import tvm`` reads the compiler's packages as well: 36 MB that running a library does not need.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Any

from tvmquant.errors import ArtifactError


@functools.cache
def interface() -> Any:
    """Return the module ``tvm_ffi``, with TVM's runtime library loaded.

    Raises
    ------
    ArtifactError
        If TVM is not installed.
    """
    package = importlib.util.find_spec("tvm")
    if package is None or not package.submodule_search_locations:
        raise ArtifactError("TVM is not installed; pip install apache-tvm")
    import tvm_ffi

    if "tvm" not in sys.modules:  # which would have loaded it
        folders = [Path(folder, "lib") for folder in package.submodule_search_locations]
        tvm_ffi.libinfo.load_lib_ctypes("tvm", "tvm_runtime", "RTLD_GLOBAL", folders)
    return tvm_ffi


def version() -> str:
    """Return the version of the TVM that is installed.

    Raises
    ------
    ArtifactError
        If TVM is not installed.
    """
    interface()
    try:
        return importlib.metadata.version("apache-tvm")
    except importlib.metadata.PackageNotFoundError:  # built from source, found on the path
        import tvm

        return str(tvm.__version__)
