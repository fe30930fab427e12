"""The bit widths that layers may take where nothing is said: any other can be added here by name.

Apart, so that the command line can tell them without loading NumPy.
"""

from __future__ import annotations

from typing import Final

NAMES: Final = ("w8a8", "w4a8", "w4a4")
