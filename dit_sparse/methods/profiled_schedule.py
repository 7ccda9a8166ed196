"""The schedule of a profile: its dense guard, its dense layers, and a check of every generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from dit_sparse.engine import SparseMethod
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.methods.profiled_rows import HeadRows
from dit_sparse.patterns import ProfileError, check_run
from dit_sparse.schedule import Schedule


@dataclass(frozen=True)
class ProfiledSchedule(Schedule):
    """When a profile runs sparse: from its first step group on, wherever a head is not dense.

    Asked at every attention call, so it is here that a generation is refused that the profile was not made
    for.

    Args:
        rows: what the profile says.
        own_guard: the steps before the profile's first step group are dense, in place of ``dense_steps``.
        scheduler: returns the pipeline's scheduler of the moment; None where there is no pipeline.
        allow_resample: take every grid, number of steps and scheduler instead of refusing.
    """

    rows: HeadRows | None = field(default=None, repr=False)
    own_guard: bool = True
    scheduler: Callable[[], Any] | None = field(default=None, repr=False, compare=False)
    allow_resample: bool = False

    @property
    def _rows(self) -> HeadRows:
        assert self.rows is not None, "a ProfiledSchedule is made with its rows"
        return self.rows

    def dense_reason(self, site: Site, layout: TokenLayout, num_layers: int) -> str | None:
        """See :meth:`dit_sparse.schedule.Schedule.dense_reason`; "dense_layer" too where the profile wants
        all heads of a layer dense.

        Raises:
            ProfileError: for a grid, number of steps or scheduler that the profile was not made for.
        """
        if not self.allow_resample:
            self._check(site, layout)
        reason = super().dense_reason(site, layout, num_layers)
        return "dense_layer" if reason is None and self._rows.is_dense(site) else reason

    def _step_is_dense(self, step: int, num_steps: int | None) -> bool:
        if self.own_guard:
            return step < self._rows.first_step(num_steps)
        # Where the loop does not tell its number of steps, a fraction is one of the profile's.
        return super()._step_is_dense(step, num_steps or self._rows.profile.header.schedule.num_steps)

    def _check(self, site: Site, layout: TokenLayout) -> None:
        header = self._rows.profile.header
        steps = header.schedule.num_steps
        scheduler = None if self.scheduler is None else type(self.scheduler()).__name__
        check_run(
            header,
            layout=self._rows.as_made(layout),
            block_size=header.grid.block_size,
            scheduler=scheduler,
            num_steps=site.num_steps,
        )
        if site.step >= steps:
            raise ProfileError(
                f"the profile {header.recipe!r} of {header.model.name!r} has {steps} steps, this is step "
                f"{site.step}, counted from 0: call reset() of the handle before every generation, or pass "
                "allow_resample=True to go on with the last step group"
            )


def relaxed(method: SparseMethod) -> SparseMethod:
    """The method, its profile carried over to any run: for untimed runs of a few steps."""
    schedule = method.schedule
    if not isinstance(schedule, ProfiledSchedule):
        return method
    return replace(method, schedule=replace(schedule, allow_resample=True))
