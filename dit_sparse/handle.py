"""The handle of attached sparse attention, and which transformers have one."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from dit_sparse import kernels
from dit_sparse.adapters.attach import Attachment
from dit_sparse.methods import MethodConfig
from dit_sparse.methods.profiled import Profiled
from dit_sparse.runtime import Runtime
from dit_sparse.stats import Stats

# Both weak: a handle reaches its transformer, whose hook keeps the attachment and with it the handle.
_HANDLES: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Handle]] = weakref.WeakKeyDictionary()


class Handle:
    """Sparse attention that is attached to a pipeline or transformer.

    Made by :func:`~dit_sparse.api.enable_sparse_attention`; ends with :meth:`disable`.
    """

    def __init__(self, runtimes: list[Runtime], attachments: list[Attachment], config: MethodConfig) -> None:
        self._runtimes = runtimes
        self._attachments = attachments
        self.config = config
        for attachment in attachments:
            attachment.owner = self
            _HANDLES[attachment.transformer] = weakref.ref(self)

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        """What runs the calls, one per transformer; for measurements."""
        return tuple(self._runtimes)

    @property
    def active(self) -> bool:
        """Whether it is still attached."""
        return bool(self._attachments)

    def stats(self) -> Stats:
        """What the last generation computed: densities, dense calls with their reasons, kernels, carried
        bytes."""
        records = [record for runtime in self._runtimes for record in runtime.records]
        return Stats.read(records, self._runtimes[0].state.peak_bytes)

    def summary(self) -> str:
        """The composition, where it is attached, and what the last generation computed, in a few lines."""
        lines = []
        for runtime, attachment in zip(self._runtimes, self._attachments):
            method, layers = runtime.method, len(attachment.layers)
            lines += [
                f"{attachment.name}: {method.name} on {layers} self-attention layers of "
                f"{type(attachment.transformer).__name__}",
                *self._profile_lines(attachment.name),
                f"  ordering  {method.ordering}",
                f"  selector  {method.selector}",
                f"  schedule  {method.schedule}",
                f"  blocks    {method.block_size}, precision {', '.join(method.precisions)}",
                *([f"  fusion    {attachment.fusion.summary()}"] if attachment.fusion else []),
                f"  kernel    {_kernel_of(runtime, attachment.transformer)}",
            ]
        stats = self.stats()
        if not stats.records:
            return "\n".join([*lines, "nothing generated yet"])
        sparse = stats.density_sparse_sites
        lines.append(
            f"last generation: density {stats.density_total:.3f} in total, "
            + (f"{sparse:.3f} at the sparse calls" if sparse is not None else "no call ran sparse")
        )
        dense = ", ".join(f"{count} {reason}" for reason, count in stats.dense_sites.items()) or "none"
        lines.append(f"  dense calls: {dense} of {len(stats.records)}")
        lines.append(
            f"  kernels: {', '.join(stats.backends) or 'none'}; carried state {stats.state_bytes:,} bytes"
        )
        return "\n".join(lines + [f"  fallback: {text}" for text in stats.fallbacks])

    def _profile_lines(self, component: str) -> list[str]:
        return [f"  {x}" for x in self.config.summary(component)] if isinstance(self.config, Profiled) else []

    def reset(self) -> None:
        """Forget carried state and records, as a new generation does by itself."""
        for runtime in self._runtimes:
            runtime.new_generation()
        for attachment in self._attachments:
            attachment.tracker.reset()

    def disable(self) -> None:
        """Detach; the model is bit-identical to before. Records stay readable. Calling it again does
        nothing."""
        for attachment in self._attachments:
            attachment.detach()
            _HANDLES.pop(attachment.transformer, None)
        self._attachments = []


def handle_of(transformer: nn.Module) -> Handle | None:
    """The handle that is attached to a transformer, None for none."""
    known = _HANDLES.get(transformer)
    return None if known is None else known()


def _kernel_of(runtime: Runtime, transformer: Any) -> str:
    """The kernel that runs for this transformer's tensors in blocks of 128 or as given, and why."""
    if runtime.impl != "auto":
        return f"{runtime.impl}, as asked for"
    size = runtime.method.block_size
    block = size if isinstance(size, int) else 128
    weight, found = next(transformer.parameters()), dict[str, list[str]]()
    for precision in runtime.method.precisions:
        name, why = kernels.explain_backend(
            weight.device, weight.dtype, head_dim(transformer), (block, block), precision
        )
        found.setdefault(f"{name} ({why})", []).append(precision)
    if len(found) == 1:
        return f"auto: {next(iter(found))}"
    return "auto: " + "; ".join(f"{kernel} for {', '.join(names)}" for kernel, names in found.items())


def head_dim(transformer: nn.Module) -> int:
    """D, from the transformer's configuration."""
    return int(getattr(transformer.config, "attention_head_dim", 0))
