"""The method that follows a profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dit_sparse.corrections import correction_named
from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import MethodConfig, ModelInfo
from dit_sparse.methods.mosaic import COMPENSATING
from dit_sparse.methods.profiled_observed import LearningHeads
from dit_sparse.methods.profiled_parts import ProfiledAxes, ProfiledPairs, ProfiledPrecision
from dit_sparse.methods.profiled_rows import HeadRows
from dit_sparse.methods.profiled_schedule import ProfiledSchedule
from dit_sparse.patterns import KINDS, ModelFacts, Profile, ProfileError, check_model
from dit_sparse.schedule import DenseLayers, DenseSteps

OVERRIDES = ("dense_steps", "dense_layers", "min_tokens", "correction")
"""Fields that may be given beside a pattern file."""


@dataclass(frozen=True)
class Profiled(MethodConfig):
    """Every head does what a profile says, chosen offline for one model, grid and number of steps.

    Not a method by name: it cannot be built without a pattern file. Made by
    ``enable_sparse_attention(profile=...)``.

    Args:
        profile: what the profiles are called, for reports.
        profiles: profile by component of the pipeline ("transformer", "transformer_2").
        dense_steps: first steps left dense instead of those before the profile's first step group. Where they
            are fewer, the steps before the first group do as that group does.
        dense_layers: layers left dense, whatever the profile says.
        min_tokens: shorter sequences stay dense.
        correction: see :data:`dit_sparse.methods.base.SHARED_FIELDS`; None takes the one that every profile
            was made for.
        allow_resample: carry the profile over to other grids, numbers of steps and schedulers, instead of
            refusing them.
        scheduler: returns the pipeline's scheduler of the moment; None where there is none.
    """

    name: ClassVar[str] = "profile"
    citation: ClassVar[str] = "a pattern file, see docs/profiles.md"

    profile: str
    profiles: Mapping[str, Profile] = field(repr=False)
    dense_steps: DenseSteps | None = None
    dense_layers: DenseLayers | float = ()
    min_tokens: int = 0
    correction: str | None = None
    allow_resample: bool = False
    scheduler: Callable[[], Any] | None = field(default=None, repr=False)

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose the parts that read the profile of this component.

        Raises:
            ProfileError: for blocks that are not square.
        """
        profile = self.profiles[model.component]
        schedule, (q_block, k_block) = profile.header.schedule, profile.header.grid.block_size
        if q_block != k_block:
            raise ProfileError(
                f"the profile {profile.header.recipe!r} has blocks of {q_block} queries and {k_block} keys: "
                "only equal ones can run, make one with such"
            )
        rows, correction = HeadRows(profile), self.correction_of(profile)
        learning = LearningHeads(rows, compensated=correction in COMPENSATING)
        return SparseMethod(
            name=self.name,
            selector=ProfiledPairs(rows, learning),
            ordering=ProfiledAxes(rows, learning),
            correction=correction_named(correction),
            schedule=ProfiledSchedule(
                schedule.groups[0][0] if self.dense_steps is None else self.dense_steps,
                self.dense_layers,
                min_tokens=self.min_tokens,
                rows=rows,
                own_guard=self.dense_steps is None,
                scheduler=self.scheduler,
                allow_resample=self.allow_resample,
            ),
            block_size=q_block,
            share_branches=rows.observes,
            precision=ProfiledPrecision(rows),
        )

    def correction_of(self, profile: Profile) -> str:
        """Name of the correction: the user's, else the one that a profile was made for."""
        return profile.header.correction if self.correction is None else self.correction

    def check(self, facts: ModelFacts, *, bare: bool) -> None:
        """Refuse a profile of another model.

        Args:
            facts: of the transformer at hand.
            bare: it is no part of a pipeline; its component's name means nothing then.

        Raises:
            ProfileError: with all that differs.
        """
        check_model(
            self.profiles[facts.component].header,
            transformer=facts.transformer,
            config_sha256=facts.config_sha256,
            layers=facts.layers,
            heads=facts.heads,
            head_dim=facts.head_dim,
            component=None if bare else facts.component,
        )

    def summary(self, component: str) -> list[str]:
        """Two lines: which profile, and what its heads do and what is done about what they skip."""
        profile = self.profiles[component]
        header, grid = profile.header, profile.header.grid
        groups, layers, heads = profile.table.sizes
        kinds = Counter(KINDS[kind] for kind in profile.table.kind.flatten().tolist())
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        return [
            f"profile   {profile.path or 'in memory'}: recipe {header.recipe} for {header.model.name}, "
            f"{grid.frames}x{grid.height}x{grid.width} tokens, {header.schedule.num_steps} steps of "
            f"{header.schedule.scheduler}, density {header.figures.density:.3f}",
            f"heads     {heads} in {layers} layers and {groups} step groups: {counts}; correction "
            f"{self.correction_of(profile)}",
        ]


def make_profiled(
    given: Profile | Mapping[str, Profile], components: Sequence[str], **fields: Any
) -> Profiled:
    """The configuration for all transformers of a pipeline.

    Args:
        given: one profile, or profiles by component.
        components: names of the transformers.
        **fields: of :data:`OVERRIDES`.

    Raises:
        ValueError: for another field, and where the profiles are not one for every transformer.
    """
    for name in fields:
        if name not in OVERRIDES:
            raise ValueError(
                f"a pattern file takes no field {name!r}: it fixes all but {', '.join(OVERRIDES)}; make one "
                "with other choices by `dit-sparse profile`"
            )
    wanted = "{" + ", ".join(f"{name!r}: ..." for name in components) + "}"
    if isinstance(given, Profile):
        if len(components) != 1:
            raise ValueError(
                f"a pattern file is for one transformer and this pipeline has {', '.join(components)}: give "
                f"profile={wanted}"
            )
        given = dict.fromkeys(components, given)
    if set(given) != set(components):
        raise ValueError(
            f"profile= is for {', '.join(given) or 'nothing'}: this model needs profile={wanted}"
        )
    label = ", ".join(str(one.path or f"{one.header.recipe}, in memory") for one in given.values())
    made_for = {one.header.correction for one in given.values()}
    if len(made_for) == 1:  # reports then name it
        fields = {"correction": made_for.pop(), **fields}
    return Profiled(label, given, **fields)
