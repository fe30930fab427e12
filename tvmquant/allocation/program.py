"""The integer linear program: one binary variable for each layer and choice.

    minimise    sum_ic Omega_ic x_ic                                                           (1)
    subject to  sum_c x_ic = 1                            every layer takes one choice         (2)
                sum_ic cost_ic x_ic <= limit              for every budget                     (3)
                sum_{c: a(c) = a} x_ic = y_ga             layers i of a group g share the      (4)
                                                          activation width a

It is solved as a core problem. The linear relaxation prices every limit with its dual value; for
any such prices lambda >= 0

    L = sum_g min_a sum_{i in g} min_{c: a(c) = a} (Omega_ic + lambda cost_ic) - lambda limit  (5)

is a lower bound of (1), and a plan that takes a choice whose term in (5) lies d above the minimum
has an objective of L + d or more. So the program is solved over the choices with small d, of which
there are few, and its optimum U is that of all choices where U - L <= d for those left out.

The perturbations of a network span many orders of magnitude, the solver's tolerances are absolute.
So the coefficients of (1) and (3) are what a choice takes beyond its layer's least, in units of
the most that matters: choices that alone exceed a limit are dropped, and those alone worse than a
plan already found. (1) is solved again until the optimum is of the order of its unit.

References: Yao et al., HAWQ-V3, 2021, section 3.4; Kellerer, Pferschy and Pisinger, Knapsack
Problems, 2004, sections 5.4 and 11.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pulp

from tvmquant.errors import AllocationError

if TYPE_CHECKING:
    from tvmquant.bit_choice import BitChoice
    from tvmquant.formats import Format
    from tvmquant.layers import Layer

    # Cost of every choice of every layer: Table[layer id][choice].
    Table = Mapping[str, Mapping[BitChoice, float]]
    Limits = Sequence[tuple[Table, float]]
    Options = dict[str, list[BitChoice]]
    Values = dict[str, dict[BitChoice, float]]

logger = logging.getLogger(__name__)

# Limits may be exceeded by the rounding of sums only.
SLACK: Final = 1e-9
# Of larger programs the optimum is proved to this share of its excess over the least of every
# layer: no perturbation is known to so many digits, and proving the last of them takes longest.
GAP: Final = 1e-4
# The first tie-breaker weighs so much in total, in the same unit, and each further one a hundredth
# of the one before. So they decide between plans of equal perturbation and cannot add more than
# this to it.
TIE: Final = 1e-6
# Choices of the first core problem besides the one that (5) takes for every layer; programs with no
# more choices than this are solved to the end. Of 100 and 160 the latter is as fast with one limit
# and takes half the time with three, where a smaller core has to be solved again.
CORE: Final = 160
# The objective is of the order of SCALE; with TOLERANCE below, even what the third tie-breaker
# adds stands above the solver's tolerances.
SCALE: Final = 1e4
TOLERANCE: Final = 1e-9
# Seconds. Only contrived problems need more than one: equal perturbations for every layer.
TIME_LIMIT: Final = 5.0


def solve(
    layers: Sequence[Layer], objective: Table, limits: Limits = (), ties: Sequence[Table] = ()
) -> dict[str, BitChoice] | None:
    """Return the choices of least objective within limits; None where there are none.

    Parameters
    ----------
    layers : sequence of Layer
    objective : Table
        Its keys are the choices that each layer may take. Finite.
    limits : sequence of (Table, float)
        Costs and what their sum may reach, up to rounding.
    ties : sequence of Table
        Of plans with equal objectives (see `TIE`) the one with the least of the first is taken,
        then of the second, and so on; of choices equal in everything the widest.
    """
    if not limits:
        return least(layers, [objective, *ties])
    groups = groups_of(layers)
    options = {layer.id: list(objective[layer.id]) for layer in layers}
    tables = [objective, *(costs for costs, _ in limits), *ties]
    best: dict[str, BitChoice] | None = None
    size, span = CORE, None
    while True:
        reachable = _reachable(groups, options, limits)
        if reachable is None:
            return best
        options = _undominated(groups, reachable, tables)
        prices = _prices(groups, options, objective, limits)
        if prices is None:
            return best
        bound, above = _lagrangian(groups, options, objective, limits, prices)
        if span is None:
            span = _core_span(above, size)
        near = {layer: [c for c, d in row.items() if d <= span] for layer, row in above.items()}
        core = _reachable(groups, near, limits)
        found, proved = _optimum(groups, core, objective, limits, ties) if core else (None, True)
        if core is None or found is None:
            if span == math.inf:
                return best
            size, span = 4 * size, None
            continue
        best = found
        if not proved:
            logger.warning("the plan may not be the best: no proof within %.0f s", TIME_LIMIT)
            return best
        gap = math.fsum(objective[layer][choice] for layer, choice in best.items()) - bound
        excess = _excess(objective, options)
        reached = math.fsum(excess[layer][choice] for layer, choice in best.items())
        if gap <= span and reached >= _unit(objective, core) / 2:
            return best
        span = 2.0 * gap if gap > span else None
        options = {
            layer: [c for c, value in row.items() if value <= reached * (1.0 + SLACK)]
            for layer, row in excess.items()
        }


def least(layers: Sequence[Layer], tables: Sequence[Table]) -> dict[str, BitChoice]:
    """Return the choices of least cost without limits.

    Parameters
    ----------
    layers : sequence of Layer
    tables : sequence of Table
        What to minimise first, then of equal plans second, and so on; of choices equal in
        everything the widest is taken.

    Raises
    ------
    AllocationError
        When tied layers have no activation width in common.
    """
    chosen: dict[str, BitChoice] = {}
    for members in groups_of(layers).values():
        plans: list[tuple[tuple[float, ...], dict[str, BitChoice]]] = []
        for held in sorted({c.activation for c in tables[0][members[0]]}, key=_width, reverse=True):
            rows = [[c for c in tables[0][name] if c.activation == held] for name in members]
            if not all(rows):
                continue
            picks = {
                name: min(row, key=lambda c: (*(t[name][c] for t in tables), *c.narrowness))
                for name, row in zip(members, rows, strict=True)
            }
            totals = (math.fsum(table[i][c] for i, c in picks.items()) for table in tables)
            plans.append((tuple(totals), picks))
        if not plans:
            raise AllocationError(
                f"layers {', '.join(members)} read the same activation, but have no choice of one "
                "width"
            )
        chosen |= min(plans, key=lambda plan: plan[0])[1]
    return {layer.id: chosen[layer.id] for layer in layers}


def groups_of(layers: Iterable[Layer]) -> dict[str, list[str]]:
    """Return the ids of layers by the activation that they read."""
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(layer.group, []).append(layer.id)
    return groups


# -- what need not be considered ----------------------------------------------------------------


def _excess(costs: Table, options: Options) -> Values:
    """Return what each option costs beyond the least of its layer."""
    return {
        layer: {choice: costs[layer][choice] - low for choice in row}
        for layer, row in options.items()
        for low in [min(costs[layer][choice] for choice in row)]
    }


def _unit(costs: Table, options: Options) -> float:
    return max(max(row.values()) for row in _excess(costs, options).values())


def _room(costs: Table, limit: float, options: Options) -> float:
    """Return what a limit leaves above the least of every layer."""
    lows = (min(costs[layer][choice] for choice in row) for layer, row in options.items())
    return limit + SLACK * abs(limit) - math.fsum(lows)


def _reachable(
    groups: Mapping[str, Sequence[str]], options: Options, limits: Limits
) -> Options | None:
    """Drop choices that exceed a limit by themselves, and widths that tied layers cannot share."""
    count = -1
    while count != (count := sum(map(len, options.values()))):
        for members in groups.values():
            shared = set.intersection(*({c.activation for c in options[m]} for m in members))
            options |= {m: [c for c in options[m] if c.activation in shared] for m in members}
        for costs, limit in limits:
            if not all(options.values()):
                return None
            room = _room(costs, limit, options)
            options = {
                layer: [choice for choice, value in row.items() if value <= room]
                for layer, row in _excess(costs, options).items()
            }
    return options if all(options.values()) else None


def _undominated(
    groups: Mapping[str, Sequence[str]], options: Options, tables: Sequence[Table]
) -> Options:
    """Drop choices that another one of the layer equals or beats in everything."""
    kept: Options = {}
    for members in groups.values():
        for layer in members:
            rows = {c: tuple(table[layer][c] for table in tables) for c in options[layer]}
            kept[layer] = []
            # the wider of two equal ones comes first and stays
            for choice in sorted(rows, key=lambda c: (rows[c], c.narrowness)):
                beaten = any(
                    all(its <= mine for its, mine in zip(rows[other], rows[choice], strict=True))
                    for other in kept[layer]
                    if len(members) == 1 or other.activation == choice.activation
                )
                if not beaten:
                    kept[layer].append(choice)
    return kept


def _lagrangian(
    groups: Mapping[str, Sequence[str]],
    options: Options,
    objective: Table,
    limits: Limits,
    prices: Sequence[float],
) -> tuple[float, Values]:
    """Return the bound (5) and by how much each choice's term lies above the minimum."""
    priced = [
        (costs, price) for (costs, _), price in zip(limits, prices, strict=True) if price > 0.0
    ]
    terms = {
        layer: {c: objective[layer][c] + sum(p * t[layer][c] for t, p in priced) for c in row}
        for layer, row in options.items()
    }
    bounds = [-price * limit for (_, limit), price in zip(limits, prices, strict=True)]
    above: Values = {}
    for members in groups.values():
        lows = {
            held: {m: min(v for c, v in terms[m].items() if c.activation == held) for m in members}
            for held in {choice.activation for choice in options[members[0]]}
        }
        totals = {held: math.fsum(row.values()) for held, row in lows.items()}
        bounds.append(min(totals.values()))
        for m in members:
            above[m] = {
                c: totals[c.activation] - bounds[-1] + value - lows[c.activation][m]
                for c, value in terms[m].items()
            }
    return math.fsum(bounds), above


def _core_span(above: Values, size: int) -> float:
    """Return how far above the minimum a core problem of so many further choices goes."""
    ranked = sorted(value for row in above.values() for value in row.values())
    count = len(above) + size
    return ranked[count] if count < len(ranked) else math.inf


def _width(held: Format) -> tuple[int, str]:
    return held.bits, held.name


# -- the solver ---------------------------------------------------------------------------------


class _Program:
    """The constraints over options that `_reachable` left, every limit in units of its room."""

    def __init__(
        self, groups: Mapping[str, Sequence[str]], options: Options, limits: Limits
    ) -> None:
        self.options = options
        self.problem = pulp.LpProblem("bit_widths", pulp.LpMinimize)
        self.takes = {
            layer: {
                choice: self.problem.add_variable(f"x_{i}_{j}", cat=pulp.LpBinary)
                for j, choice in enumerate(row)
            }
            for i, (layer, row) in enumerate(options.items())
        }
        for row in self.takes.values():
            self.problem += pulp.lpSum(row.values()) == 1
        self.rooms = [_room(costs, limit, options) for costs, limit in limits]
        self.rows = []
        for (costs, _), room in zip(limits, self.rooms, strict=True):
            terms = self.terms(_excess(costs, options), 1.0 / room) if room > 0.0 else {}
            self.rows.append(pulp.LpAffineExpression(terms) <= 1.0)
            self.problem += self.rows[-1]
        for number, members in enumerate(groups.values()):
            if len(members) > 1:
                self._tie(number, members)

    def _tie(self, number: int, members: Sequence[str]) -> None:
        """Add the constraints (4)."""
        formats = {choice.activation for m in members for choice in self.options[m]}
        for held in sorted(formats, key=_width):
            shared = self.problem.add_variable(f"y_{number}_{held}", cat=pulp.LpBinary)
            for m in members:
                row = self.takes[m].items()
                self.problem += pulp.lpSum(v for c, v in row if c.activation == held) == shared

    def terms(self, values: Values, scale: float) -> dict[pulp.LpVariable, float]:
        """Return the coefficients that are not zero."""
        return {
            self.takes[layer][choice]: value * scale
            for layer, row in values.items()
            for choice, value in row.items()
            if value
        }

    def minimise(self, terms: Mapping[pulp.LpVariable, float], **settings: Any) -> bool:
        """Solve; whether there is a solution.

        Raises
        ------
        AllocationError
            When the solver found neither a solution nor that there is none.
        """
        self.problem += pulp.LpAffineExpression(terms)
        solver = pulp.HiGHS(
            msg=False,
            mip_feasibility_tolerance=TOLERANCE,
            primal_feasibility_tolerance=TOLERANCE,
            dual_feasibility_tolerance=TOLERANCE,
            **settings,
        )
        status = self.problem.solve(solver)
        if status not in (pulp.LpStatusOptimal, pulp.LpStatusInfeasible):
            raise AllocationError(
                f"no plan was found within {TIME_LIMIT:.0f} s ({pulp.LpStatus[status]}); loosen a "
                "budget, or pin layers"
            )
        return bool(status == pulp.LpStatusOptimal)


def _prices(
    groups: Mapping[str, Sequence[str]], options: Options, objective: Table, limits: Limits
) -> list[float] | None:
    """Return the dual value of every limit in the linear relaxation; None where it has none."""
    program = _Program(groups, options, limits)
    scale = SCALE / (_unit(objective, options) or 1.0)
    if not program.minimise(program.terms(_excess(objective, options), scale), mip=False):
        return None
    return [
        max(0.0, -(row.pi or 0.0)) / (scale * room) if room > 0.0 else 0.0
        for row, room in zip(program.rows, program.rooms, strict=True)
    ]


def _optimum(
    groups: Mapping[str, Sequence[str]],
    options: Options,
    objective: Table,
    limits: Limits,
    ties: Sequence[Table],
) -> tuple[dict[str, BitChoice] | None, bool]:
    """Return the best choices, None where there are none, and whether that is proved."""
    program = _Program(groups, options, limits)
    unit = _unit(objective, options)
    terms = program.terms(_excess(objective, options), SCALE / unit) if unit else {}
    for number, table in enumerate(ties):
        excess = _excess(table, options)
        most = math.fsum(max(row.values()) for row in excess.values())
        weight = SCALE * TIE * 0.01**number / most if most else 0.0
        for variable, value in program.terms(excess, weight).items():
            terms[variable] = terms.get(variable, 0.0) + value
    # In core problems restarts and sub-problems of heuristics take longer than the search itself.
    if not program.minimise(
        terms,
        gapRel=GAP if sum(map(len, options.values())) > CORE else 0.0,
        gapAbs=0.0,
        timeLimit=TIME_LIMIT,
        mip_heuristic_effort=0.0,
        mip_allow_restart=False,
    ):
        return None, True
    chosen = {
        layer: max(row, key=lambda choice: row[choice].value() or 0.0)
        for layer, row in program.takes.items()
    }
    return chosen, program.problem.sol_status == pulp.LpSolutionOptimal
