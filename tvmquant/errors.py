"""Every error a user can meet, in one small hierarchy.

A message names the ONNX node (or file, or field), what was found (dtype, shape, bit width), what
was expected, and what to do next. The CLI prints it as is and exits with code 2.
"""


class TVMQuantError(Exception):
    """Base of every error that tvmquant raises for a mistake or limit the user can act upon."""


class ModelError(TVMQuantError):
    """The ONNX file cannot be read, is damaged, or holds values that cannot be quantized."""


class UnsupportedModelError(ModelError):
    """The model uses nodes that tvmquant cannot import; the message lists all of them at once."""


class DataError(TVMQuantError):
    """Calibration or evaluation data is missing, empty, or does not fit the model's inputs."""


class QuantizationError(TVMQuantError):
    """A layer cannot be quantized as asked: bit width, accumulator range, or strict mode."""


class TargetError(TVMQuantError):
    """The compilation target is unknown, or lacks what was asked of it."""


class ArtifactError(TVMQuantError):
    """A built library is damaged, of another version, or meant for another machine."""


class TuningError(TVMQuantError):
    """Kernels cannot be tuned as asked, or a tuning database or latency table does not fit."""


class AllocationError(TVMQuantError):
    """No plan of bit widths keeps the budgets, or a plan does not fit its model."""


class SensitivityError(TVMQuantError):
    """The sensitivity of a layer cannot be estimated."""


class TrainingError(TVMQuantError):
    """A recipe is not valid, or a training cannot go on."""


class DeviceError(TVMQuantError):
    """A device cannot be reached, is lost, or does not run what was compiled."""
