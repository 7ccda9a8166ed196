"""Quality against cost and intervals on a common axis: data in, positions in percent out, drawn in HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dit_sparse.report.charts import nice_ticks, tick_decimals
from dit_sparse.report.evaluation_schema import ScoreInfo
from dit_sparse.report.evaluation_statistics import Difference, Summary
from dit_sparse.report.intervals import Interval
from dit_sparse.report.pareto import pareto_front

Ticks = tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Cost:
    """What quality is drawn against."""

    name: str
    title: str
    unit: str
    of: Callable[[Summary], float | None]


COSTS = (
    Cost(
        "density",
        "Attention blocks computed, dense guard included",
        "%",
        lambda s: 100 * s.density.mean if s.density is not None else None,
    ),
    Cost("time", "Denoising time, median", "s", lambda s: s.sparse_s),
)


@dataclass(frozen=True)
class Bar:
    """A mean and the ends of its interval, in percent of the axis; the ends are cut off where it ends."""

    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """A configuration in a scatter; ``y`` counts from the top."""

    summary: Summary
    x: float
    y: Bar
    front: bool
    text: str


@dataclass(frozen=True)
class Scatter:
    """One score against one cost."""

    score: ScoreInfo
    cost: Cost
    points: tuple[Point, ...]
    x_ticks: Ticks
    y_ticks: Ticks
    front: str
    floor: float | None
    floor_beyond: bool


@dataclass(frozen=True)
class Axis:
    """From low to high, in percent from the left or, turned, from the top."""

    ticks: tuple[float, ...]
    turned: bool = False

    def at(self, value: float) -> float:
        """Position of a value, cut off at the ends."""
        low, high = self.ticks[0], self.ticks[-1]
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(100 * (1 - share if self.turned else share), 2)

    def bar(self, interval: Interval) -> Bar:
        """Position of an interval."""
        half = interval.half or 0.0
        ends = sorted((self.at(interval.mean - half), self.at(interval.mean + half)))
        return Bar(self.at(interval.mean), ends[0], ends[1])

    def labels(self) -> Ticks:
        """Position and text of every tick."""
        decimals = tick_decimals(self.ticks[1] - self.ticks[0])
        return tuple((self.at(tick), f"{tick:.{decimals}f}") for tick in self.ticks)


def axis_of(intervals: Sequence[Interval], *, turned: bool = False, zero: bool = False) -> Axis:
    """An axis that shows every mean, and the intervals as far as they let the means be told apart.

    With two prompts an interval is thirteen standard errors long on either side.
    """
    means = [interval.mean for interval in intervals] + ([0.0] if zero else [])
    low, high = min(means), max(means)
    longest = max((interval.half or 0.0 for interval in intervals), default=0.0)
    room = min(longest, high - low) if high > low else longest
    return Axis(tuple(nice_ticks(low - room, high + room)), turned)


def scatter(
    summaries: Sequence[Summary], score: ScoreInfo, cost: Cost, floor: float | None = None
) -> Scatter | None:
    """Lay out one scatter; None if no configuration has both.

    Args:
        floor: mean of dense against dense; beyond the plot where it would press the points together.
    """
    shown = [(s, x) for s in summaries if score.name in s.scores and (x := cost.of(s)) is not None]
    if not shown:
        return None
    x_axis = Axis(tuple(nice_ticks(0.0, max(x for _, x in shown))))
    y_axis = axis_of([s.scores[score.name] for s, _ in shown], turned=True)
    sign = -1.0 if score.better == "lower" else 1.0
    best = pareto_front([(x, sign * s.scores[score.name].mean) for s, x in shown])
    front = [] if score.better == "neither" else best
    places = [(x_axis.at(x), y_axis.bar(s.scores[score.name])) for s, x in shown]
    points = tuple(
        Point(s, at, y, i in front, _words(s, score, cost, x))
        for i, ((s, x), (at, y)) in enumerate(zip(shown, places))
    )
    beyond = floor is not None and not y_axis.ticks[0] <= floor <= y_axis.ticks[-1]
    return Scatter(
        score,
        cost,
        points,
        x_axis.labels(),
        y_axis.labels(),
        " ".join(f"{places[i][0]:g},{places[i][1].at:g}" for i in front),
        None if floor is None or beyond else y_axis.at(floor),
        beyond,
    )


def strips(summaries: Sequence[Summary], score: ScoreInfo) -> tuple[dict[str, Bar], Ticks]:
    """Intervals of a score by label on one axis, and its ticks; empty without any."""
    found = {s.label: s.scores[score.name] for s in summaries if score.name in s.scores}
    return _bars(found, axis_of(list(found.values())) if found else None)


def difference_strips(
    summaries: Sequence[Summary], score: ScoreInfo
) -> tuple[dict[str, Bar], Ticks, float | None]:
    """Differences to the baseline by label, ticks, and where zero is; empty without any."""
    found = {s.label: s.differences[score.name].interval for s in summaries if score.name in s.differences}
    if not found:
        return {}, (), None
    axis = axis_of(list(found.values()), zero=True)
    return *_bars(found, axis), axis.at(0.0)


def verdict(difference: Difference, score: ScoreInfo) -> str:
    """ "better", "worse", "apart" for a score without a better end, or "level" where zero is inside."""
    if not difference.told_apart:
        return "level"
    if score.better == "neither":
        return "apart"
    return "better" if (difference.interval.mean > 0) == (score.better == "higher") else "worse"


def _bars(found: dict[str, Interval], axis: Axis | None) -> tuple[dict[str, Bar], Ticks]:
    if axis is None:
        return {}, ()
    return {label: axis.bar(interval) for label, interval in found.items()}, axis.labels()


def _words(summary: Summary, score: ScoreInfo, cost: Cost, x: float) -> str:
    quality = summary.scores[score.name].text(score.decimals)
    unit = f" {score.unit}" if score.unit else ""
    return (
        f"{summary.label}: {score.title} {quality}{unit} at {x:.{1 if cost.unit == '%' else 2}f} {cost.unit}"
    )
