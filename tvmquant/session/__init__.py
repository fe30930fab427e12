"""What `compile_onnx` and `plan_onnx` share: a network, its data, its target, and their stages.

Each stage is computed once, when it is first asked for, from those before it. What is slow
(calibration, sensitivity, latencies, measurements of kernels) is kept in a folder, where a later
session of the same takes it up.
"""

from tvmquant.session.opening import DEFAULT_SAMPLES, open_session
from tvmquant.session.options import Options
from tvmquant.session.reopening import Reopened, reopen
from tvmquant.session.session import COMPARED, Session

__all__ = [
    "COMPARED",
    "DEFAULT_SAMPLES",
    "Options",
    "Reopened",
    "Session",
    "open_session",
    "reopen",
]
