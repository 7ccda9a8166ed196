"""The public surface: enable, disable, and the context manager."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from dit_sparse import kernels
from dit_sparse.adapters.attach import Attachment, scheduler_of, transformers_of
from dit_sparse.adapters.base import find_adapter
from dit_sparse.adapters.fused import make_fusion
from dit_sparse.adapters.steps import StepTracker
from dit_sparse.engine import SparseMethod
from dit_sparse.handle import Handle, handle_of, head_dim
from dit_sparse.methods import MethodConfig, ModelInfo, make_method
from dit_sparse.methods.profiled import Profiled, make_profiled
from dit_sparse.patterns import Profile, load_profile, model_facts
from dit_sparse.presets import PATTERN_SUFFIX, find_profile, load_preset
from dit_sparse.runtime import Runtime
from dit_sparse.state import State

DEFAULT_METHOD = "mosaic"
"""The nearest to dense attention at equal time, see docs/methods.md."""
ProfileLike = str | Path | Profile


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
        if handle_of(transformer) is not None:
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
        info = ModelInfo(adapter.family, len(layers), head_dim(transformer), name)
        plans.append((transformer, name, adapter, Runtime(config.build(info), backend, strict, state)))
        fusions.append(make_fusion(fuse_norm_rope, layers))
    # Everything that can refuse has refused: from here on the model is changed.
    attachments = [Attachment(*plan, tracker, fusion) for plan, fusion in zip(plans, fusions)]
    return Handle([plan[-1] for plan in plans], attachments, config)


def disable_sparse_attention(pipe_or_transformer: Any) -> None:
    """Undo :func:`enable_sparse_attention`; does nothing where it is not enabled."""
    for transformer in transformers_of(pipe_or_transformer).values():
        if (handle := handle_of(transformer)) is not None:
            handle.disable()


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


def _check_backend(backend: str) -> None:
    found = kernels.available_backends()
    usable = ", ".join(["auto", *(name for name, state in found.items() if state == "available")])
    if backend != "auto" and found.get(backend) != "available":
        why = found.get(backend, "there is no such kernel")
        raise ValueError(f"backend={backend!r} cannot run here ({why}): use one of {usable}")
