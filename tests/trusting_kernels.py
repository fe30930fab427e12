"""Kernels without TVM's checks of their arguments, which are most of the code of a small one.

What they check is checked once for each module before it is compiled (`tests.conftest`), and for
each kernel that is run on its own (`tests.schedules.kernel_testing`). Libraries that processes
compile which start by themselves, as the command and the tutorials' programs do, have them.
"""

import contextlib

import tvm


def trusting_kernels() -> contextlib.AbstractContextManager[object]:
    """Return a context for compilations in this thread, and in processes that it forks."""
    return tvm.transform.PassContext(config={"tirx.disable_assert": True})
