"""The public surface: enable, disable, the context manager, and the handle."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from dit_sparse import kernels
from dit_sparse.adapters.attach import Attachment, scheduler_of, transformers_of
from dit_sparse.adapters.base import find_adapter
from dit_sparse.adapters.fused import make_fusion
from dit_sparse.adapters.steps import StepTracker
from dit_sparse.engine import SparseMethod
from dit_sparse.methods import MethodConfig, ModelInfo, make_method
from dit_sparse.methods.profiled import Profiled, make_profiled
from dit_sparse.patterns import Profile, load_profile, model_facts
from dit_sparse.presets import PATTERN_SUFFIX, find_profile, load_preset
from dit_sparse.runtime import Runtime
from dit_sparse.state import State
from dit_sparse.stats import Stats

DEFAULT_METHOD = "mosaic"
"""The nearest to dense attention at equal time, see docs/methods.md."""
ProfileLike = str | Path | Profile

# Both weak: a handle reaches its transformer, whose hook keeps the attachment and with it the handle.
_HANDLES: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Handle]] = weakref.WeakKeyDictionary()


class Handle:
    """Sparse attention that is attached to a pipeline or transformer.

    Made by :func:`enable_sparse_attention`; ends with :meth:`disable`.
    """

    def __init__(self, runtimes: list[Runtime], attachments: list[Attachment], config: MethodConfig) -> None:
        self._runtimes = runtimes
        self._attachments = attachments
        self.config = config

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


def enable_sparse_attention(
    pipe_or_transformer: Any,
    method: str | MethodConfig | SparseMethod | None = None,
    *,
    profile: ProfileLike | Mapping[str, ProfileLike] | None = None,
    allow_resample: bool = False,
    backend: str = "auto",
    strict: bool = False,
    fuse_norm_rope: bool | Literal["auto"] = False,
    **fields: Any,
) -> Handle:
    """Run the self-attention of a pipeline's transformers sparsely.

    Also there as ``pipe.enable_sparse_attention(...)`` once dit_sparse is imported.

    Args:
        pipe_or_transformer: a diffusers pipeline (both experts of Wan 2.2 are covered) or a bare transformer.
        method: a name from :func:`dit_sparse.list_methods` ("mosaic" when None), a configuration such as
            ``SVG2(top_p=0.9)``, or
            an own composition of axes (:class:`dit_sparse.engine.SparseMethod`).
        profile: instead of a method: name of a shipped profile (``dit-sparse list``), path of a pattern file
            (.safetensors) or of a preset (.yaml), or a loaded :class:`~dit_sparse.patterns.Profile`. A
            pattern file is for one transformer: with two, as in Wan 2.2, give a mapping, ``{"transformer":
            ..., "transformer_2": ...}``. ``fields`` given here override a preset's own; a pattern file takes
            ``dense_steps``, ``dense_layers``, ``min_tokens`` and ``correction``.
        allow_resample: carry a pattern file over to another grid, number of steps or scheduler than its own.
        backend: kernel: "auto" or one of :func:`dit_sparse.kernels.available_backends`.
        strict: raise where only dense attention can serve a call, instead of running it dense and reporting
            it.
        fuse_norm_rope: normalise and rotate queries and keys in one kernel instead of the stock chain (Wan,
            HunyuanVideo): within rounding of it, in dense steps too. "auto": where Triton can run; True
            insists. Where a layer differs from what the kernel knows, the stock chain runs and the summary
            says why.
        **fields: fields of the method, e.g. ``density=0.25``, ``dense_steps=0.2``, ``dense_layers="0-1,47"``;
            :func:`dit_sparse.describe` lists them.

    Returns:
        The handle: ``summary()``, ``stats()``, ``disable()``.

    Raises:
        ValueError: unknown method, field, value, backend or model; sparse attention enabled twice.
        ProfileError: a pattern file that is damaged or for another model, which shows here, or for another
            grid, number of steps or scheduler, which shows at the first call.

    Example:
        >>> from diffusers import WanPipeline
        >>> import dit_sparse
        >>> pipe = WanPipeline.from_pretrained(dit_sparse.embedded.tiny_wan_path())
        >>> handle = pipe.enable_sparse_attention(density=0.25)
        >>> pipe.disable_sparse_attention()
    """
    transformers = transformers_of(pipe_or_transformer)
    for transformer in transformers.values():
        if _handle_of(transformer) is not None:
            raise ValueError(
                f"sparse attention is enabled on this {type(transformer).__name__} already: "
                "call disable_sparse_attention() first"
            )
    _check_backend(backend)
    scheduler = scheduler_of(pipe_or_transformer)
    config: MethodConfig
    if profile is not None:
        if method is not None:
            raise ValueError(f"give a method or a profile, not both: got {method!r} and profile={profile!r}")
        config = _profile_config(profile, list(transformers), fields)
        if isinstance(config, Profiled):
            config = replace(config, allow_resample=allow_resample, scheduler=scheduler)
    elif allow_resample:
        raise ValueError("allow_resample=True carries a profile over to another grid: give profile= with it")
    elif isinstance(method, SparseMethod):
        if fields:
            raise ValueError(
                f"an own composition takes no method fields, got {', '.join(fields)}: set them on its axes"
            )
        config = _Given(method)
    else:
        config = make_method(DEFAULT_METHOD if method is None else method, **fields)
    tracker, state = StepTracker(scheduler), State()
    plans, fusions = [], []
    for name, transformer in transformers.items():
        adapter = find_adapter(transformer)
        layers = adapter.attention_layers(transformer)
        if isinstance(config, Profiled):
            facts = model_facts(transformer, layers, name="", family=adapter.family, component=name)
            config.check(facts, bare=scheduler is None)
        info = ModelInfo(adapter.family, len(layers), _head_dim(transformer), name)
        plans.append((transformer, name, adapter, Runtime(config.build(info), backend, strict, state)))
        fusions.append(make_fusion(fuse_norm_rope, layers))
    # Everything that can refuse has refused: from here on the model is changed.
    attachments = [Attachment(*plan, tracker, fusion) for plan, fusion in zip(plans, fusions)]
    handle = Handle([plan[-1] for plan in plans], attachments, config)
    for attachment in attachments:
        attachment.owner = handle
        _HANDLES[attachment.transformer] = weakref.ref(handle)
    return handle


def disable_sparse_attention(pipe_or_transformer: Any) -> None:
    """Undo :func:`enable_sparse_attention`; does nothing where it is not enabled."""
    for transformer in transformers_of(pipe_or_transformer).values():
        if (handle := _handle_of(transformer)) is not None:
            handle.disable()


def _handle_of(transformer: nn.Module) -> Handle | None:
    known = _HANDLES.get(transformer)
    return None if known is None else known()


@contextmanager
def sparse_attention(
    pipe_or_transformer: Any, method: str | MethodConfig | SparseMethod | None = None, **options: Any
) -> Iterator[Handle]:
    """Sparse attention inside a ``with`` block; everything is put back at its end, also after an exception.

    Takes what :func:`enable_sparse_attention` takes; works on bare transformers and modular pipelines too.
    """
    handle = enable_sparse_attention(pipe_or_transformer, method, **options)
    try:
        yield handle
    finally:
        handle.disable()


@dataclass(frozen=True)
class _Given(MethodConfig):
    """Wraps an own composition of axes, so that the handle treats it as any method."""

    name: ClassVar[str] = "custom"
    citation: ClassVar[str] = "given by the caller"

    method: SparseMethod

    def build(self, model: ModelInfo) -> SparseMethod:
        """The composition as given."""
        return self.method


def _profile_config(
    profile: ProfileLike | Mapping[str, ProfileLike], components: list[str], fields: dict[str, Any]
) -> MethodConfig:
    """The configuration of a preset, or of the pattern files of all transformers."""
    if isinstance(profile, (str, Path)) and (path := find_profile(profile)).suffix != PATTERN_SUFFIX:
        preset = load_preset(path)
        return make_method(preset.method, **{**preset.fields, **fields})
    loaded = (
        {name: _loaded(one) for name, one in profile.items()}
        if isinstance(profile, Mapping)
        else _loaded(profile)
    )
    return make_profiled(loaded, components, **fields)


def _loaded(profile: ProfileLike) -> Profile:
    if isinstance(profile, Profile):
        return profile
    path = find_profile(profile)
    if path.suffix != PATTERN_SUFFIX:
        raise ValueError(f"{str(profile)!r} is a preset, which serves all transformers: give its name alone")
    return load_profile(path)


def _kernel_of(runtime: Runtime, transformer: Any) -> str:
    """The kernel that runs for this transformer's tensors in blocks of 128 or as given, and why."""
    if runtime.impl != "auto":
        return f"{runtime.impl}, as asked for"
    size = runtime.method.block_size
    block = size if isinstance(size, int) else 128
    weight, found = next(transformer.parameters()), dict[str, list[str]]()
    for precision in runtime.method.precisions:
        name, why = kernels.explain_backend(
            weight.device, weight.dtype, _head_dim(transformer), (block, block), precision
        )
        found.setdefault(f"{name} ({why})", []).append(precision)
    if len(found) == 1:
        return f"auto: {next(iter(found))}"
    return "auto: " + "; ".join(f"{kernel} for {', '.join(names)}" for kernel, names in found.items())


def _check_backend(backend: str) -> None:
    found = kernels.available_backends()
    usable = ", ".join(["auto", *(name for name, state in found.items() if state == "available")])
    if backend != "auto" and found.get(backend) != "available":
        why = found.get(backend, "there is no such kernel")
        raise ValueError(f"backend={backend!r} cannot run here ({why}): use one of {usable}")


def _head_dim(transformer: nn.Module) -> int:
    return int(getattr(transformer.config, "attention_head_dim", 0))
