"""How much of the denoiser's time goes to self-attention and to linear layers, by step.

Sparse: the runtime's calls, planning and dense guard included. Dense: calls of torch's
``scaled_dot_product_attention`` with as many queries as keys, of the longest sequence, which leaves out
cross-attention and what refines the text. Both are marked on the device's clock, so nothing waits. Inside the
graphs of ``torch.compile`` there is nothing to mark.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn import functional

from dit_sparse.report.capabilities import denoisers
from dit_sparse.report.clock import Clock

NOT_ASKED = "the parts were not asked for"
COMPILED = "the transformer is compiled: its parts cannot be told apart"
NOT_SEEN = "the dense run does not attend through torch's scaled_dot_product_attention"


class Parts:
    """Marks around the parts of a denoiser. A part inside of another counts to the outer one.

    Args:
        clock: of the same run; tells the step and whether a denoiser runs.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: tuple[Any, Any] | None = None  # owner of the part that runs, its start
        self._marks: dict[str, list[tuple[int, Any, Any]]] = defaultdict(list)

    def begin(self, owner: Any) -> None:
        """Mark the start of a part, unless it runs inside of another or outside of a denoiser."""
        if self._open is None and self._clock.in_denoiser:
            self._open = (owner, self._clock.watch.mark())

    def end(self, owner: Any, part: str) -> None:
        """Mark the end of what ``owner`` began."""
        if self._open is not None and self._open[0] is owner:
            step = len(self._clock.step_ends)
            self._marks[part].append((step, self._open[1], self._clock.watch.mark()))
            self._open = None

    def seconds(self, part: str) -> float | None:
        """Sum over the run; None if the part was never seen. Call after a synchronise."""
        marks = self._marks.get(part)
        return sum(self._clock.watch.seconds(a, b) for _, a, b in marks) if marks else None

    def by_step(self, part: str) -> tuple[float, ...]:
        """Sum of every finished step; empty if the part was never seen."""
        sums = [0.0] * len(self._clock.step_ends)
        for step, start, end in self._marks.get(part, ()):
            if step < len(sums):
                sums[step] += self._clock.watch.seconds(start, end)
        return tuple(sums) if self._marks.get(part) else ()

    @contextmanager
    def attached(self, pipe: Any, handle: Any = None) -> Iterator[None]:
        """Watch a run: a sparse one with its ``handle``, a dense one without."""
        with ExitStack() as stack:
            for denoiser in denoisers(pipe).values():
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
            layer.register_forward_hook(lambda module, _args, _out: self.end(module, "linear"))
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
                self._marks["attention"] = self._marks[f"attention over {max(seen)}"]

    @contextmanager
    def _sparse_attention(self, handle: Any) -> Iterator[None]:
        runtimes = list(handle._runtimes)
        for runtime in runtimes:
            vars(runtime)["run"] = self._timed(runtime.run, "attention")
        try:
            yield
        finally:
            for runtime in runtimes:
                del vars(runtime)["run"]


def is_compiled(pipe: Any) -> bool:
    """Whether a denoiser, or a block of one, is compiled."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for denoiser in denoisers(pipe).values()
        for module in denoiser.modules()
    )
