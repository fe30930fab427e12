"""QONNX's operators for ONNX's reference evaluator, as their documentation defines them."""

import numpy as np
from onnx.reference.op_run import OpRun

ROUNDINGS = {"ROUND": np.round, "FLOOR": np.floor, "CEIL": np.ceil, "DOWN": np.trunc}


def limits(bits, signed, narrow):
    half = 2 ** (int(bits) - 1)
    if signed:
        return narrow - half, half - 1
    return 0, 2 * half - 1 - narrow


class Quant(OpRun):
    op_domain = "qonnx.custom_op.general"

    def _run(self, x, scale, zero, bits, signed=1, narrow=0, rounding_mode="ROUND"):
        if bits == 1 and signed:
            return ((np.where(x / scale + zero >= 0, 1, -1) * scale).astype(np.float32),)
        levels = np.clip(x / scale + zero, *limits(bits, signed, narrow))
        return (((ROUNDINGS[rounding_mode](levels) - zero) * scale).astype(np.float32),)


class IntQuant(Quant):
    pass


class BrevitasQuant(Quant):
    op_domain = "onnx.brevitas"


class BipolarQuant(OpRun):
    op_domain = "qonnx.custom_op.general"

    def _run(self, x, scale):
        return ((np.where(x >= 0, 1, -1) * scale).astype(np.float32),)


class Trunc(OpRun):
    op_domain = "qonnx.custom_op.general"

    def _run(self, x, scale, zero, *widths, signed=1, narrow=0, rounding_mode="FLOOR"):
        integers = np.round(x / scale + zero)
        if len(widths) == 2:
            lost, out_scale = int(widths[0] - widths[1]), scale
            levels = integers / 2.0**lost
        else:
            out_scale = widths[1]
            levels = integers / 2.0 ** np.round(np.log2(out_scale / scale))
            levels = np.clip(levels, *limits(widths[-1], signed, narrow))
        return (((ROUNDINGS[rounding_mode](levels) - zero) * out_scale).astype(np.float32),)


BrevitasQuant.__name__ = "Quant"
OPERATORS = [Quant, IntQuant, BrevitasQuant, BipolarQuant, Trunc]
