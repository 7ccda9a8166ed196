"""What a recording looks at: step groups, observed steps, templates, blocks; and its share of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from dit_sparse.patterns import KINDS
from dit_sparse.profiler.recording import Template

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
WINDOWS = ((1.0, 1.0, 1.0), (1.0, 0.25, 0.25), (0.25, 1.0, 1.0))
"""Proportions of the windows tried: even, long in time, wide in space."""
RULES = ("mask", "radial", "dynamic")
GIBIBYTE = 2**30

StepGroup = tuple[int, int]


def default_templates(
    densities: Sequence[float] = DENSITIES,
    windows: Sequence[tuple[float, float, float]] = WINDOWS,
    observed: bool = True,
) -> tuple[Template, ...]:
    """Dense, skip, and masks, radial rules, dynamic selection, windows and observed heads at the same
    densities.

    Args:
        densities: each in (0, 1].
        windows: proportions along T, H and W as shares of the axes, each in (0, 1].
        observed: try observed heads, for which every step group needs two observed steps.
    """
    tried = [Template("dense", 1.0), Template("skip", 0.0)]
    tried += [Template(kind, density) for kind in RULES for density in densities]
    tried += [Template("window", density, shape) for shape in windows for density in densities]
    tried += [Template("observed", density) for density in densities if observed]
    return tuple(tried)


def even_groups(num_steps: int, count: int, dense_steps: int = 0) -> tuple[StepGroup, ...]:
    """Step groups of equal length, to one step, after the dense guard.

    >>> even_groups(10, 3, dense_steps=2)
    ((2, 5), (5, 7), (7, 10))

    Args:
        num_steps: of the generation.
        count: of the groups, >= 1.
        dense_steps: first steps that belong to no group.

    Raises:
        ValueError: if there are fewer steps than groups.
    """
    left = num_steps - dense_steps
    if not 1 <= count <= left or dense_steps < 0:
        raise ValueError(
            f"{count} groups do not fit {num_steps} steps of which {dense_steps} are dense: "
            "every group needs a step"
        )
    edges = [dense_steps + round(i * left / count) for i in range(count + 1)]
    return tuple(pairwise(edges))


@dataclass(frozen=True)
class RecordSettings:
    """What :func:`~dit_sparse.profiler.record.record` does with every dense run.

    Args:
        groups: [first, last) of every step group, ascending, without gaps, up to the last step.
        observed: steps of a group that are observed, evenly spread from its first to its last, >= 1; shorter
            groups have all of theirs observed.
        templates: what is tried on every head; observed heads need two observed steps in every group.
        block_size: tokens per block, or "auto" by sequence length.
        density: fraction of blocks at which axis orders, and the heaviest blocks of steps and of prompts, are
            compared, and in whose error's direction a layer is perturbed; in (0, 1).
        query_blocks: blocks of queries on which the axis orders are compared by their error.
        score_blocks: blocks of queries from which the two scores of PARO are taken.
        sensitivity: perturb every layer and run the transformer again, once per group and layer, with the
            first prompt. Without, all layers count alike.
        residual_rank: directions per head of the residual with which observed heads are tried, >= 0; 0 tries
            them without, which takes a fifteenth of the memory between their two steps.
        head_chunk: heads worked on at once; None takes as many as ``memory_bytes`` allow.
        memory_bytes: about how much memory the work on one attention call may take, beside the kernels' own
            scratch; one head is worked on where even that takes more.
    """

    groups: tuple[StepGroup, ...]
    observed: int = 2
    templates: tuple[Template, ...] = field(default_factory=default_templates)
    block_size: int | str = "auto"
    density: float = 0.2
    query_blocks: int = 64
    score_blocks: int = 16
    sensitivity: bool = True
    residual_rank: int = 8
    head_chunk: int | None = None
    memory_bytes: int = 2 * GIBIBYTE

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple((first, last) for first, last in self.groups))
        object.__setattr__(self, "templates", tuple(self.templates))
        edges = [step for group in self.groups for step in group]
        joined = all(last == first for (_, last), (first, _) in pairwise(self.groups))
        if not edges or edges[0] < 0 or not joined or any(first >= last for first, last in self.groups):
            raise ValueError(
                "groups must be [first, last) of steps, ascending and without gaps, such as "
                f"((2, 6), (6, 10)), got {self.groups}"
            )
        for name in ("observed", "query_blocks", "score_blocks", "head_chunk", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.residual_rank < 0:
            raise ValueError(f"residual_rank must be at least 0, got {self.residual_rank}")
        if not 0.0 < self.density < 1.0:
            raise ValueError(f"density must be in (0, 1), got {self.density}")
        if not self.templates:
            raise ValueError("templates must hold at least one: use default_templates()")
        for template in self.templates:
            _check_template(template)
        once = [group for group, steps in zip(self.groups, self.observed_steps) if len(steps) < 2]
        if once and any(template.kind == "observed" for template in self.templates):
            raise ValueError(
                "observed heads are tried on a later call than the one that they learnt from, and the step "
                f"groups {once} have one observed step only: give longer groups, observed=2, or "
                "templates=default_templates(observed=False)"
            )

    @property
    def observed_steps(self) -> tuple[tuple[int, ...], ...]:
        """The observed steps of every group, ascending."""
        return tuple(self._spread(first, last) for first, last in self.groups)

    def _spread(self, first: int, last: int) -> tuple[int, ...]:
        count, length = min(self.observed, last - first), last - first
        return tuple(first + round(i * (length - 1) / max(1, count - 1)) for i in range(count))


def _check_template(template: Template) -> None:
    if template.kind not in KINDS:
        raise ValueError(f"unknown template kind {template.kind!r}: use one of {', '.join(KINDS)}")
    fixed = {"dense": 1.0, "skip": 0.0}.get(template.kind)
    if template.density != fixed if fixed is not None else not 0.0 < template.density <= 1.0:
        wanted = "in (0, 1]" if fixed is None else str(fixed)
        raise ValueError(f"the density of a {template.kind!r} template must be {wanted}: got {template}")
    if template.kind == "window" and not all(0.0 < share <= 1.0 for share in template.shape):
        raise ValueError(f"the shape of a window must be three shares of the axes in (0, 1]: got {template}")
