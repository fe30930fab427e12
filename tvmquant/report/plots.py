"""The plots of a report, as figures of plotly."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import plotly.graph_objects as go

from tvmquant.report.content import BASELINE, Content, Row
from tvmquant.report.styles import OTHER, style_of

if TYPE_CHECKING:
    from tvmquant.mixed_precision import PlanPoint

INK: Final = "#1c2430"
GRID: Final = "#e3e7ec"
CHOSEN: Final = "#c1121f"
HEIGHT: Final = 380
_PATTERN: Final = {"fillmode": "overlay", "fgcolor": "white", "size": 6, "solidity": 0.25}


@dataclass(frozen=True)
class Plot:
    """One plot.

    Parameters
    ----------
    id : str
        Of its element.
    alt : str
        What it shows, for those who do not see it.
    spec : dict
        ``data`` and ``layout``, plain JSON values.
    """

    id: str
    alt: str
    spec: dict[str, Any]


def plot_time(content: Content) -> Plot | None:
    """Return bars of each row's time, or None where no times are known."""
    if content.timing is None and content.record is None:
        return None
    figure = _figure("Number in the table of layers", "milliseconds")
    bars = [(row, row.predicted_ms) for row in content.rows if row.predicted_ms is not None]
    if not bars:
        bars = [(row, row.measured_ms or 0.0) for row in content.rows]
    _add_bars(figure, content, bars, "%{y:.4f} ms")
    measured = [row for row in content.rows if row.measured_ms is not None]
    if content.record is not None and measured:
        figure.add_scatter(
            x=[row.number for row in measured],
            y=[row.measured_ms for row in measured],
            mode="markers",
            name="measured now",
            marker={"symbol": "line-ew-open", "size": 11, "color": INK, "line": {"width": 2}},
            customdata=[_escape(row.id) for row in measured],
            hovertemplate="%{customdata}<br>%{y:.4f} ms<extra>measured now</extra>",
        )
    kind = "Predicted" if content.record else "Measured"
    alt = f"{kind} milliseconds of each layer in execution order, by bit width."
    return _plot("time", alt, figure)


def plot_memory(content: Content) -> Plot | None:
    """Return bars of the weight bytes of each layer, or None where they are not known."""
    bars = [(row, row.weight_bytes / 1e3) for row in content.rows if row.weight_bytes is not None]
    if not bars:
        return None
    figure = _figure("Number in the table of layers", "weights, kB")
    _add_bars(figure, content, bars, "%{y:,.1f} kB")
    alt = "Kilobytes of weights of each layer in execution order, by bit width."
    return _plot("memory", alt, figure)


def plot_sensitivity(content: Content) -> Plot | None:
    """Return added perturbation against time saved of each layer and choice, if any are known."""
    points = list(_steps(content))
    if not points:
        return None
    # A logarithmic axis has no zero: what costs nothing is drawn on a line below all else.
    positive = [cost for _, _, _, cost in points if cost > 0]
    floor = min(positive) / 3 if positive else 1.0
    figure = _figure(f"milliseconds saved against {BASELINE}", "perturbation added (log)")
    decades = math.log10(max(positive, default=1.0) / floor)
    figure.update_yaxes(type="log", tickformat="~g", dtick=1 if decades > 3 else "D2")
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    for choice in content.choices:
        own = [point for point in points if point[1] == choice]
        if not own:
            continue
        style = style_of(choice)
        taken = [row.choice == choice for row, *_ in own]
        figure.add_scatter(
            x=[saved for *_, saved, _ in own],
            y=[max(cost, floor) for *_, cost in own],
            mode="markers",
            name=choice,
            marker={
                "symbol": [style.symbol if t else f"{style.symbol}-open" for t in taken],
                "size": [11 if t else 8 for t in taken],
                "color": style.colour,
                "line": {"width": 1.5, "color": style.colour},
            },
            customdata=[
                [_escape(row.id), "chosen" if t else "not chosen", cost]
                for (row, _, _, cost), t in zip(own, taken, strict=True)
            ],
            hovertemplate="%{customdata[0]}<br>saves %{x:.4f} ms, adds %{customdata[2]:.3g}"
            f"<extra>{choice}, %{{customdata[1]}}</extra>",
        )
    alt = (
        "Milliseconds that each narrower bit choice of each layer saves, against the perturbation "
        "that it adds, on a logarithmic axis; filled points are chosen."
    )
    return _plot("sensitivity", alt, figure)


def plot_frontier(content: Content) -> Plot | None:
    """Return the frontier with the uniform plans and the chosen one, if there is a record."""
    record = content.record
    if record is None:
        return None
    figure = _figure("predicted milliseconds", "perturbation")
    frontier = record.frontier
    figure.add_scatter(
        x=[point.predicted_ms for point in frontier],
        y=[point.perturbation for point in frontier],
        mode="lines+markers",
        name="frontier",
        line={"color": "#5b6675", "width": 1.5, "shape": "hv"},
        marker={"size": 5},
        customdata=[_size(point) for point in frontier],
        hovertemplate=_PLAN_HOVER.format("frontier"),
    )
    for point in record.uniform:
        style = style_of(point.name)
        _add_plan(figure, point, point.name, style.symbol, 11, style.colour)
    _add_plan(figure, record.chosen, "chosen", "star", 18, CHOSEN)
    for limit in content.limits:
        if limit.quantity == "latency":
            figure.add_vline(
                x=limit.value,
                line={"color": CHOSEN, "width": 1.2, "dash": "dash"},
                annotation={"text": "latency budget", "font": {"color": CHOSEN}},
            )
    alt = (
        "Perturbation against predicted milliseconds of the best plans, the uniform plans and the "
        f"chosen plan ({record.chosen.predicted_ms:.3f} ms, {record.chosen.perturbation:.3g})."
    )
    return _plot("frontier", alt, figure)


def plot_prediction(content: Content) -> Plot | None:
    """Return predicted and measured time of the uniform plans and the chosen one."""
    plans = content.plans
    if not plans:
        return None
    figure = _figure("", "milliseconds")
    bars: list[tuple[str, list[float | None], str, str]] = [
        ("predicted", [plan.predicted_ms for plan in plans], "#aebfd4", "/"),
        ("measured", [plan.measured_ms for plan in plans], "#2f5f9e", ""),
    ]
    for name, values, colour, pattern in bars:
        figure.add_bar(
            x=[plan.name for plan in plans],
            y=values,
            name=name,
            text=["" if value is None else f"{value:.3f}" for value in values],
            textposition="outside",
            cliponaxis=False,
            marker={"color": colour, "pattern": {**_PATTERN, "shape": pattern}},
            hovertemplate=f"%{{x}}<br>%{{y:.4f}} ms<extra>{name}</extra>",
        )
    figure.update_layout(barmode="group", bargap=0.35)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(rangemode="tozero")
    alt = (
        "Predicted and measured milliseconds, end to end, of the uniform plans and the chosen one."
    )
    return _plot("prediction", alt, figure)


_PLAN_HOVER: Final = "%{{x:.4f}} ms, perturbation %{{y:.3g}}<br>%{{customdata}}<extra>{}</extra>"


def _add_plan(
    figure: go.Figure, point: PlanPoint, name: str, symbol: str, size: int, colour: str
) -> None:
    figure.add_scatter(
        x=[point.predicted_ms],
        y=[point.perturbation],
        mode="markers+text",
        name=_escape(name),
        text=[_escape(name)],
        textposition="top center",
        textfont={"color": colour},
        cliponaxis=False,
        marker={"symbol": symbol, "size": size, "color": colour},
        customdata=[_size(point)],
        hovertemplate=_PLAN_HOVER.format("%{text}"),
    )


def _steps(content: Content) -> Iterator[tuple[Row, str, float, float]]:
    """Yield (row, choice, milliseconds saved, perturbation added), against the baseline."""
    for row in content.rows:
        time, cost = row.milliseconds.get(BASELINE), row.perturbation.get(BASELINE)
        if time is None or cost is None:
            continue
        for choice in row.milliseconds.keys() & row.perturbation.keys() - {BASELINE}:
            yield (
                row,
                choice,
                time - row.milliseconds[choice],
                row.perturbation[choice] - cost,
            )


def _add_bars(
    figure: go.Figure, content: Content, bars: Sequence[tuple[Row, float]], form: str
) -> None:
    """Add a bar for each row, in a trace for each bit width."""
    for choice in (*content.choices, ""):
        own = [(row, value) for row, value in bars if row.choice == choice]
        if not own:
            continue
        style = style_of(choice) if choice else OTHER
        name = choice or "no weights, or float"
        figure.add_bar(
            x=[row.number for row, _ in own],
            y=[value for _, value in own],
            name=name,
            marker={
                "color": style.colour,
                "pattern": {**_PATTERN, "shape": style.pattern},
            },
            customdata=[_escape(row.id) for row, _ in own],
            hovertemplate=f"%{{customdata}}<br>{form}<extra>{name}</extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.15)
    figure.update_xaxes(showgrid=False, tickformat="d", range=[0.4, len(content.rows) + 0.6])
    figure.update_yaxes(rangemode="tozero")


def _figure(x: str, y: str) -> go.Figure:
    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "linecolor": INK,
        "showline": True,
        "zeroline": False,
    }
    axis |= {"automargin": True, "exponentformat": "none"}
    return go.Figure(
        layout={
            "template": "none",
            "height": HEIGHT,
            "margin": {"l": 72, "r": 24, "t": 36, "b": 56},
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hoverlabel": {"align": "left", "namelength": -1},
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": 1.02,
                "yanchor": "bottom",
                "traceorder": "normal",
            },
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#aab3bf", "activecolor": INK},
            "showlegend": True,
            "xaxis": {**axis, "title": {"text": x, "font": {"size": 13}}},
            "yaxis": {**axis, "title": {"text": y, "font": {"size": 13}}},
        }
    )


def _plot(name: str, alt: str, figure: go.Figure) -> Plot:
    return Plot(f"plot-{name}", alt, json.loads(figure.to_json()))


def _size(point: PlanPoint) -> str:
    return f"{point.size_bytes / 1e6:.3f} MB"


def _escape(text: str) -> str:
    """Return a name as plotly shows it: it takes text for a small part of HTML."""
    return html.escape(text, quote=False)
