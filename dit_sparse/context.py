"""What the parts of a method may look at besides tensors, and how they learn from dense attention.

Orderings, selectors and corrections are immutable. What they learn at run time lies in the layer's state,
which the context carries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from dit_sparse.layout import Site, TokenLayout, step_at
from dit_sparse.state import LayerState

if TYPE_CHECKING:  # these rooms lie above this one
    from dit_sparse.corrections.base import CorrectionInput
    from dit_sparse.selectors.base import SelectionInput


STAGES = ("order", "permute", "select", "attend", "correct", "restore")
"""Stages of a sparse attention call, in their order. select: scores, choice and block map, or unpacking a
plan of an earlier step."""


def check_fraction(name: str, value: float | None) -> None:
    """Raise ValueError unless a field that :meth:`PlanContext.step_at` will read is in range."""
    if value is not None and not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1] or None, got {value}")


def relearning_step(fraction: float, num_steps: int, first_sparse_step: int) -> int | None:
    """First of ``num_steps`` steps at or after a fraction of them, as one to learn again at.

    None where that would make a step dense for nothing: directly behind the step that learnt first, the last
    before ``first_sparse_step`` or else step 0, and at the end, where no step follows.
    """
    step = step_at(fraction, num_steps)
    return step if max(first_sparse_step, 1) < step < num_steps - 1 else None


@dataclass(frozen=True)
class PlanContext:
    """Where a call is, and what was carried there.

    Args:
        layout: token grid and text position.
        site: layer, step, branch.
        scale: softmax scale of the logits.
        block_size: (query block, key block) in tokens.
        state: what this layer and branch carried over from earlier steps; planning may read and write it.
        first_sparse_step: first step that the schedule does not leave dense.
        num_layers: self-attention layers of the transformer.
        recorder: told the name of every stage of a sparse call where it ends; None where nobody asks.
    """

    layout: TokenLayout
    site: Site
    scale: float
    block_size: tuple[int, int]
    state: LayerState
    first_sparse_step: int = 0
    num_layers: int = 1
    recorder: Callable[[str], None] | None = None

    def ended(self, stage: str) -> None:
        """Tell the recorder, if there is one, that one of :data:`STAGES` ends here."""
        if self.recorder is not None:
            self.recorder(stage)

    @property
    def last_dense_step(self) -> int:
        """Last step of the leading dense guard; step 0 where there is no guard."""
        return max(0, self.first_sparse_step - 1)

    def step_at(self, fraction: float | None) -> int | None:
        """First step at or after this fraction of the generation; None where there is no fraction, or the
        loop does not tell its length."""
        if fraction is None or self.site.num_steps is None:
            return None
        return step_at(fraction, self.site.num_steps)

    def relearning_step(self, fraction: float | None) -> int | None:
        """As :meth:`step_at`, for a step that becomes dense to learn again: None also where that is for
        nothing, see :func:`relearning_step`."""
        if fraction is None or self.site.num_steps is None:
            return None
        return relearning_step(fraction, self.site.num_steps, self.first_sparse_step)

    def learnt(self, key: str) -> Any:
        """What a part carried under ``key`` when it last observed dense attention.

        Raises:
            ValueError: if it has observed nothing yet.
        """
        if key not in self.state.values:
            raise ValueError(
                f"{self.site} has no {key!r}: dense attention must be observed before, by observed_attention "
                "or, with the method attached, at the last dense step"
            )
        return self.state.values[key]

    def due(self, learnt: int | None, again: int | None = None) -> bool:
        """Whether a part that learns from dense attention should learn at this call.

        It should at the last dense step; after that wherever it has learnt nothing yet, as where a second
        transformer takes over; and once more from step ``again`` on.

        Args:
            learnt: step of the last time, None for never.
            again: step from which what was learnt earlier is out of date; None for never.
        """
        step = self.site.step
        if step < self.last_dense_step:
            return False
        # A step behind us that lies ahead: the loop started anew without telling.
        return learnt is None or learnt > step or (again is not None and learnt < again <= step)


@dataclass(frozen=True)
class Observation:
    """Dense attention of one call with all that can be learnt from it, in the model's token order.

    Args:
        q, k, v: ``[B, N, H, D]``.
        out: dense output ``[B, N, H, D]``.
        lse: float32 ``[B, H, N]``, log-sum-exp of the scaled logits over all keys.
        context: where the call is, and its state.
        sparse: computes what the method itself would have at this call, without correction: output
            ``[B, N, H, D]`` and log-sum-exp ``[B, H, N]``. It costs a plan and a sparse attention.
        problem: what the selector would be asked. It costs an order and a permutation.
        to_correct: what the correction would be given, at the cost of ``sparse``.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor
    context: PlanContext
    sparse: Callable[[], tuple[Tensor, Tensor]]
    problem: Callable[[], SelectionInput]
    to_correct: Callable[[], CorrectionInput]


@runtime_checkable
class Observer(Protocol):
    """A part of a method (ordering, selector or correction) that learns from dense attention.

    The engine runs a call densely where some part asks for it, and hands the result to all that do. It asks
    in dense steps too, where observing costs no more than the dense kernel's log-sum-exp.
    """

    def wants(self, context: PlanContext) -> bool:
        """Whether this call is to be observed. True whenever the part could not do its work otherwise."""
        ...

    def observe(self, seen: Observation) -> None:
        """Learn: write to ``seen.context.state.values``."""
        ...


class PrecisionRule(Protocol):
    """An arithmetic that differs from call to call."""

    @property
    def names(self) -> tuple[str, ...]:
        """All that :meth:`at` may return, of :data:`dit_sparse.kernels.PRECISIONS`."""
        ...

    def at(self, context: PlanContext) -> str:
        """The precision of one call, known without waiting for the device."""
        ...
