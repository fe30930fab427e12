"""One function per Relax operator of the annotated graph, which writes it as ONNX."""

from __future__ import annotations

from tvmquant.export.borders import BORDERS
from tvmquant.export.call_writer import Writer
from tvmquant.export.elementwise import ELEMENTWISE
from tvmquant.export.layers import LAYERS
from tvmquant.export.movers import MOVERS
from tvmquant.export.norms import NORMS
from tvmquant.export.recurrent import RECURRENCES
from tvmquant.export.resize import RESIZES
from tvmquant.export.windows import WINDOWS

WRITERS: dict[str, Writer] = {
    **BORDERS,
    **LAYERS,
    **ELEMENTWISE,
    **MOVERS,
    **WINDOWS,
    **RESIZES,
    **NORMS,
    **RECURRENCES,
}
