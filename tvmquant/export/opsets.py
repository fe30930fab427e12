"""The operator sets that a file can be written in, and which types of integers each has."""

from __future__ import annotations

from typing import Final

from tvmquant.errors import ModelError

# The first whose QuantizeLinear takes a scale for each channel; the last that was tested.
FIRST: Final = 13
LAST: Final = 25
# The first with integers of 4 and 16 bits, and with blocks of values that share a scale.
DEFAULT: Final = 21
# The first with integers of 2 bits.
TWO_BITS: Final = 25


def check_opset(opset: int) -> None:
    """Raise `ModelError` unless a file can be written in an operator set."""
    import onnx

    last = min(LAST, onnx.defs.onnx_opset_version())
    if FIRST <= opset <= last:
        return
    if FIRST <= opset <= LAST:
        raise ModelError(
            f"opset {opset}: the onnx package {onnx.__version__} knows opsets up to {last}; "
            f"install a newer one, or pass {FIRST} to {last}"
        )
    raise ModelError(
        f"opset {opset}: expected {FIRST}, the first with scales for each channel, to {LAST}"
    )


def holds(dtype: str, opset: int) -> bool:
    """Whether QuantizeLinear gives integers of a type."""
    return dtype in ("int8", "uint8") or (dtype in ("int16", "uint16") and opset >= DEFAULT)


def has_blocks(opset: int) -> bool:
    """Whether DequantizeLinear takes a scale for each block of values."""
    return opset >= DEFAULT


def narrowest_type(bits: int, opset: int) -> str:
    """Return the type of signed integers that stores weights of so many bits in least space."""
    if bits <= 2 and opset >= TWO_BITS:
        return "int2"
    return "int4" if bits <= 4 and opset >= DEFAULT else "int8"
