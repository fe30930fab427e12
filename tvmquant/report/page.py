"""Render the content of a report as one HTML page."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tvmquant.allocation.budget import format_amount
from tvmquant.report.content import BASELINE, Content
from tvmquant.report.plots import (
    plot_frontier,
    plot_memory,
    plot_prediction,
    plot_sensitivity,
    plot_time,
)
from tvmquant.report.styles import style_of

UNKNOWN: Final = "\N{EN DASH}"
TEMPLATE: Final = "page.html.jinja"
_PLOTS: Final = {
    "time": plot_time,
    "sensitivity": plot_sensitivity,
    "frontier": plot_frontier,
    "prediction": plot_prediction,
    "memory": plot_memory,
}


def render(content: Content) -> str:
    """Return the page: HTML that loads nothing, with its plots' library inside.

    Parameters
    ----------
    content : Content
        From `tvmquant.report.content.read_content`.

    Notes
    -----
    plotly.js is there as base64 of gzip, 1.9 MB instead of 4.8 MB, which the browser unpacks. All
    that the plots show stands in tables too, for readers without JavaScript.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tvmquant.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    plots = {name: make(content) for name, make in _PLOTS.items()}
    page: str = environment.get_template(TEMPLATE).render(
        content=content,
        manifest=content.manifest,
        record=content.record,
        timing=content.timing,
        plots=plots,
        plotly=_packed_plotly() if any(plots.values()) else "",
        baseline=BASELINE,
        style_of=style_of,
        amount=format_amount,
    )
    return page


def _packed_plotly() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _size(count: float) -> str:
    return _scaled(count, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))) or f"{count:.0f} B"


def _count(number: float) -> str:
    return _scaled(number, (("G", 1e9), ("M", 1e6), ("k", 1e3))) or f"{number:.0f}"


def _scaled(value: float, units: Sequence[tuple[str, float]]) -> str:
    return next((f"{value / size:.2f} {unit}" for unit, size in units if value >= size), "")


def _share(part: float | None, whole: float | None) -> str:
    return UNKNOWN if part is None or not whole else f"{100 * part / whole:.1f} %"


def _processor(target: Mapping[str, Any]) -> str:
    """Return the processor of a manifest's target, which TVM prints as JSON."""
    try:
        config = json.loads(target["config"])
    except ValueError:
        return str(target["config"])
    name = config.get("mcpu") if isinstance(config, dict) else None
    return f"{name} ({target['triple']})" if name else str(target["triple"])


def _or_blank(form: Callable[[Any], str]) -> Callable[[Any], str]:
    """Make a filter that shows what is not known as a dash."""
    return lambda value: UNKNOWN if value is None else form(value)


_FILTERS: Final[dict[str, Callable[..., Any]]] = {
    # A tenth of a microsecond is the least that is worth showing.
    "ms": _or_blank(lambda value: f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"),
    "decibels": lambda value: "equal" if value == math.inf else f"{value:.1f} dB",
    "size": _or_blank(_size),
    "count": _or_blank(_count),
    "general": _or_blank(lambda value: f"{value:.3g}"),
    "share": _share,
    "processor": _processor,
}
