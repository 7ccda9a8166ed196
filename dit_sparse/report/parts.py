"""How much of the denoiser's time goes to self-attention and to linear layers, by step.

Sparse: the runtime's calls, planning and dense guard included. Dense: calls of torch's
``scaled_dot_product_attention`` with as many queries as keys, of the longest sequence, which leaves out
cross-attention and what refines the text. Sparse calls are split into their stages where the engine tells
their ends. All is marked on the device's clock, so nothing waits. Inside the graphs of ``torch.compile``
there is nothing to mark.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn import functional

from dit_sparse.adapters.attach import denoisers_of
from dit_sparse.context import STAGES
from dit_sparse.report.clock import Clock, Mark

NOT_ASKED = "the parts were not asked for"
COMPILED = "the transformer is compiled: its parts cannot be told apart"
NOT_SEEN = "the dense run does not attend through torch's scaled_dot_product_attention"

ATTENTION, LINEAR, STAGE = "attention", "linear", "stage "
DENSE_CALL, REMAINDER = "dense", "other"
STAGE_NAMES = (*STAGES, REMAINDER, DENSE_CALL)
"""How the time of a sparse run's self-attention is split: the engine's stages, what lies behind the last one
(records), and the calls that ran dense."""


class Parts:
    """Marks around the parts of a denoiser. A part inside of another counts to the outer one.

    Args:
        clock: of the same run; tells the step and whether a denoiser runs.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: tuple[Any, Any] | None = None  # owner of the part that runs, its start
        self._marks: dict[str, list[Mark]] = defaultdict(list)
        self._stage_from: Any = None  # end of the last stage in the attention call that runs

    def begin(self, owner: Any) -> None:
        """Mark the start of a part, unless it runs inside of another or outside of a denoiser."""
        if self._open is None and self._clock.in_denoiser:
            self._open = (owner, self._clock.watch.mark())

    def end(self, owner: Any, part: str) -> None:
        """Mark the end of what ``owner`` began."""
        if self._open is not None and self._open[0] is owner:
            mark = (self._clock.step, self._open[1], self._clock.watch.mark())
            self._marks[part].append(mark)
            self._open = None
            if part == ATTENTION:
                self._end_stages(mark)

    def stage_ended(self, stage: str) -> None:
        """Mark the end of a stage of the attention call that runs; it began where the last one ended."""
        if self._open is not None:
            start = self._open[1] if self._stage_from is None else self._stage_from
            self._stage_from = self._clock.watch.mark()
            self._marks[STAGE + stage].append((self._clock.step, start, self._stage_from))

    def _end_stages(self, call: Mark) -> None:
        """What no stage covers: the whole of a call that ran dense, the end of a sparse one."""
        step, _, end = call
        if self._stage_from is None:
            self._marks[STAGE + DENSE_CALL].append(call)
        else:
            self._marks[STAGE + REMAINDER].append((step, self._stage_from, end))
        self._stage_from = None

    def seconds(self, part: str) -> float | None:
        """Sum over the run; None if the part was never seen. Call after a synchronise."""
        marks = self._marks.get(part)
        return self._clock.seconds(marks) if marks else None

    def by_step(self, part: str) -> tuple[float, ...]:
        """Sum of every finished step; empty if the part was never seen."""
        marks = self._marks.get(part)
        return self._clock.by_step(marks) if marks else ()

    def stages(self) -> dict[str, tuple[float, tuple[float, ...]]]:
        """Seconds of every stage of a sparse run, in all and by step; together they are its attention."""
        seen = [name for name in STAGE_NAMES if STAGE + name in self._marks]
        return {name: (self.seconds(STAGE + name) or 0.0, self.by_step(STAGE + name)) for name in seen}

    @contextmanager
    def attached(self, pipe: Any, handle: Any = None) -> Iterator[None]:
        """Watch a run: a sparse one with its ``handle``, a dense one without."""
        with ExitStack() as stack:
            for denoiser in denoisers_of(pipe).values():
                stack.enter_context(self._linear_layers(denoiser))
            attention = self._torch_attention() if handle is None else self._sparse_attention(handle)
            stack.enter_context(attention)
            yield

    def _timed(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.begin(timed)
            try:
                return call(*args, **kwargs)
            finally:
                self.end(timed, part)

        return timed

    @contextmanager
    def _linear_layers(self, denoiser: nn.Module) -> Iterator[None]:
        layers = [module for module in denoiser.modules() if isinstance(module, nn.Linear)]
        hooks = [layer.register_forward_pre_hook(lambda module, _: self.begin(module)) for layer in layers]
        hooks += [
            layer.register_forward_hook(lambda module, _args, _out: self.end(module, LINEAR))
            for layer in layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _torch_attention(self) -> Iterator[None]:
        # Only while nothing is attached: the adapters recognise torch's function by its identity.
        stock = functional.scaled_dot_product_attention
        by_length: dict[int, Callable[..., Any]] = {}

        def attention(query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
            length = query.shape[-2]
            if length != key.shape[-2]:
                return stock(query, key, *args, **kwargs)
            if length not in by_length:
                by_length[length] = self._timed(stock, f"attention over {length}")
            return by_length[length](query, key, *args, **kwargs)

        functional.scaled_dot_product_attention = attention
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = stock
            seen = [length for length in by_length if f"attention over {length}" in self._marks]
            if seen:
                self._marks[ATTENTION] = self._marks[f"attention over {max(seen)}"]

    @contextmanager
    def _sparse_attention(self, handle: Any) -> Iterator[None]:
        runtimes = list(handle.runtimes)
        for runtime in runtimes:
            vars(runtime)["run"] = self._timed(runtime.run, ATTENTION)
            runtime.recorder = self.stage_ended
        try:
            yield
        finally:
            for runtime in runtimes:
                del vars(runtime)["run"]
                runtime.recorder = None


def is_compiled(pipe: Any) -> bool:
    """Whether a denoiser, or a block of one, is compiled."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for denoiser in denoisers_of(pipe).values()
        for module in denoiser.modules()
    )
