"""Keys of the metadata of ONNX files that this project exports, which imports read again."""

from __future__ import annotations

from typing import Final

# Of tvmquant.
VERSION: Final = "tvmquant.version"
# The choice of every layer, JSON.
LAYERS: Final = "tvmquant.layers"
# The plan of bit widths, JSON.
PLAN: Final = "tvmquant.plan"
# What the file computes otherwise than the library, JSON: a list of sentences.
DIFFERENCES: Final = "tvmquant.differences"
# How the library rounds ties: "up", or "even" where the scales came with another's model.
TIES: Final = "tvmquant.ties"
