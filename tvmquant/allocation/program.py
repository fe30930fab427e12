"""The integer linear program: one binary variable for each layer and choice.

    minimise    sum_ic Omega_ic x_ic                                                           (1)
    subject to  sum_c x_ic = 1                            every layer takes one choice         (2)
                sum_ic cost_ic x_ic <= limit              for every budget                     (3)
                sum_{c: a(c) = a} x_ic = y_ga             layers i of a group g share the      (4)
                                                          activation width a

Reference: Yao et al., HAWQ-V3, 2021, section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pulp

if TYPE_CHECKING:
    from tvmquant.bit_choice import BitChoice
    from tvmquant.layers import Layer

# Cost of every choice of every layer: Table[layer id][choice].
Table = Mapping[str, Mapping["BitChoice", float]]


def solve(
    layers: Sequence[Layer],
    objective: Table,
    limits: Sequence[tuple[Table, float]],
) -> dict[str, BitChoice] | None:
    """Return the choices of least objective within limits; None where there are none.

    Parameters
    ----------
    layers : sequence of Layer
    objective : Table
        Its keys are the choices that each layer may take.
    limits : sequence of (Table, float)
        Costs and what their sum may reach.
    """
    problem = pulp.LpProblem("bit_widths", pulp.LpMinimize)
    takes = {
        layer.id: {
            choice: problem.add_variable(f"x_{i}_{j}", cat=pulp.LpBinary)
            for j, choice in enumerate(objective[layer.id])
        }
        for i, layer in enumerate(layers)
    }
    # the solver's tolerances are absolute
    scale = max((max(abs(v) for v in row.values()) for row in objective.values()), default=0.0)
    problem += pulp.lpSum(
        objective[layer][choice] / (scale or 1.0) * variable
        for layer, row in takes.items()
        for choice, variable in row.items()
    )
    for row in takes.values():
        problem += pulp.lpSum(row.values()) == 1
    for costs, limit in limits:
        unit = abs(limit) or 1.0
        problem += (
            pulp.lpSum(
                costs[layer][choice] / unit * variable
                for layer, row in takes.items()
                for choice, variable in row.items()
            )
            <= limit / unit
        )
    _tie(problem, layers, takes)
    status = problem.solve(pulp.HiGHS(msg=False, gapRel=0.0))
    if pulp.LpStatus[status] != "Optimal":
        return None
    return {
        layer: max(row, key=lambda choice: row[choice].value() or 0.0)
        for layer, row in takes.items()
    }


def _tie(
    problem: pulp.LpProblem,
    layers: Sequence[Layer],
    takes: Mapping[str, Mapping[BitChoice, pulp.LpVariable]],
) -> None:
    """Add the constraints (4)."""
    for number, members in enumerate(groups_of(layers).values()):
        widths = sorted({choice.a_bits for layer in members for choice in takes[layer.id]})
        if len(members) == 1 or len(widths) == 1:
            continue
        for width in widths:
            shared = problem.add_variable(f"y_{number}_{width}", cat=pulp.LpBinary)
            for layer in members:
                row = takes[layer.id].items()
                problem += pulp.lpSum(v for c, v in row if c.a_bits == width) == shared


def groups_of(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Return the layers by the activation that they read."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.group, []).append(layer)
    return groups


def least(layers: Sequence[Layer], costs: Table) -> dict[str, BitChoice] | None:
    """Return the choices of least cost without limits; None where tied layers share no width."""
    chosen: dict[str, BitChoice] = {}
    for members in groups_of(layers).values():
        best: tuple[float, dict[str, BitChoice]] | None = None
        for width in {choice.a_bits for choice in costs[members[0].id]}:
            rows = [[c for c in costs[layer.id] if c.a_bits == width] for layer in members]
            if not all(rows):
                continue
            picks = {
                layer.id: min(row, key=costs[layer.id].__getitem__)
                for layer, row in zip(members, rows, strict=True)
            }
            total = sum(costs[layer][choice] for layer, choice in picks.items())
            if best is None or total < best[0]:
                best = total, picks
        if best is None:
            return None
        chosen |= best[1]
    return chosen
