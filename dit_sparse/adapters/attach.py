"""Attaching to a transformer and letting go of it, exactly."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dit_sparse.adapters import compiled
from dit_sparse.adapters.base import Adapter
from dit_sparse.adapters.fused import NormRopeFusion
from dit_sparse.adapters.processors import SparseProcessor, make_processor
from dit_sparse.adapters.steps import StepTracker, branch_of
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.runtime import Call, Runtime


class Attachment:
    """Sparse attention on one transformer: a processor per self-attention layer and a hook at the root.

    The root hook is a native forward pre-hook, which survives model CPU offload; it reads the token grid, the
    step and the branch, and puts processors back that another call replaced (for example
    ``fuse_qkv_projections``).

    Args:
        transformer: the model.
        name: its name in the pipeline, e.g. "transformer_2".
        adapter: its description.
        runtime: runs the calls.
        tracker: follows the generation; shared by the transformers of a pipeline.
        fusion: for norms and RoPE, see :func:`~dit_sparse.adapters.fused.make_fusion`.
    """

    def __init__(
        self,
        transformer: Any,
        name: str,
        adapter: Adapter,
        runtime: Runtime,
        tracker: StepTracker,
        fusion: NormRopeFusion | None = None,
    ) -> None:
        self.transformer = transformer
        self.name = name
        self.adapter = adapter
        self.runtime = runtime
        self.tracker = tracker
        self.fusion = fusion
        self.layers = adapter.attention_layers(transformer)
        self.key = compiled.make_key(self)
        self.owner: Any = None  # kept alive as long as this is attached
        self.taps = [LayerTap(self, index) for index in range(len(self.layers))]
        self._names = tuple(inspect.signature(type(transformer).forward).parameters)[1:]
        self._layout: TokenLayout | None = None
        self._site = Site(0, 0)
        self._valid_text: tuple[int, ...] | None = None
        self._mask_read: tuple[weakref.ref[Tensor], int, tuple[int, ...]] | None = None
        self._place_processors()
        self._hook = transformer.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        tracker.followers.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        raise TypeError(
            f"the {type(self.transformer).__name__} has sparse attention, which cannot be copied: call "
            "disable_sparse_attention() before copying, and enable it on the copy"
        )

    def detach(self) -> None:
        """Put everything back as it was."""
        self._hook.remove()
        self.tracker.followers.discard(self)
        for _, module in self.layers:
            if isinstance(module.processor, SparseProcessor):
                module.set_processor(module.processor.released())
        # fuse_qkv_projections keeps the processors it replaced for unfusing: those may be ours.
        saved = getattr(self.transformer, "original_attn_processors", None)
        if isinstance(saved, dict):
            self.transformer.original_attn_processors = {
                path: old.released() if isinstance(old, SparseProcessor) else old
                for path, old in saved.items()
            }

    def _place_processors(self) -> None:
        for tap, (_, module) in zip(self.taps, self.layers):
            if not isinstance(module.processor, SparseProcessor):
                module.set_processor(make_processor(module.processor, tap, self.fusion))

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        inputs = dict(zip(self._names, args)) | kwargs
        if not torch.compiler.is_compiling():
            self._place_processors()
            self.begin(inputs)
            return None
        mask_name = self.adapter.text_mask or "no mask"
        announced = compiled.begin(
            inputs["hidden_states"],
            inputs["timestep"],
            inputs.get("encoder_hidden_states"),
            inputs.get(mask_name),
            self.key,
            mask_name,
        )
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": announced}
        return (announced, *args[1:]), kwargs

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Take note of a forward: its token grid, step and branch."""
        moment = self.tracker.advance(inputs["timestep"], self)
        self._layout = self.adapter.layout(self.transformer, inputs)
        self._site = Site(
            0, moment.step, moment.num_steps, branch_of(moment, self.adapter.guidance), self.name
        )
        self._valid_text = self._read_text_mask(inputs)

    def start(self) -> None:
        """A generation starts: forget the one before."""
        self.runtime.new_generation()
        if self.fusion is not None:
            self.fusion.new_generation()

    def rest(self) -> None:
        """Another transformer goes on with the generation: give back what is carried. Should this one run
        again, it learns anew."""
        self.runtime.state.release(self.name)

    def _read_text_mask(self, inputs: Mapping[str, Any]) -> tuple[int, ...] | None:
        mask = inputs.get(self.adapter.text_mask) if self.adapter.text_mask else None
        if mask is None:
            return None
        known = self._mask_read
        # One wait for the device per prompt, not per step: pipelines pass the same tensor at every step.
        assert isinstance(mask, Tensor)
        version = -1 if mask.is_inference() else mask._version  # those of inference mode count no versions
        if known is None or known[0]() is not mask or known[1] != version:
            known = (weakref.ref(mask), version, tuple(int(n) for n in mask.sum(dim=1).tolist()))
            self._mask_read = known
        return known[2]

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float | None,
    ) -> Tensor:
        """Attention of one layer in the current forward, ``[B, N, H, D]``."""
        processor = self._processor(layer)
        if self._layout is None:
            raise RuntimeError("sparse attention was called outside of the transformer's forward")
        call = Call(
            site=replace(self._site, layer=layer),
            layout=self._layout,
            num_layers=len(self.layers),
            valid_text=self._valid_text,
            dense=lambda: processor.dense(q, k, v, mask, scale),
            scale=scale,
            obstacle="attention_mask" if mask is not None and self._valid_text is None else None,
        )
        return self.runtime.run(q, k, v, call)

    def _processor(self, layer: int) -> SparseProcessor:
        processor: Any = self.layers[layer][1].processor
        assert isinstance(processor, SparseProcessor)
        return processor

    def bypass(self, layer: int, obstacle: str) -> None:
        """Take note that a layer of the current forward runs stock."""
        self.runtime.fall_back(replace(self._site, layer=layer), obstacle)


class LayerTap:
    """The tap of one layer. In a compiled graph the whole call is one opaque operator.

    The layer index travels as a 0-d tensor there: as a Python number it would make torch.compile specialise,
    and recompile, for every layer.
    """

    def __init__(self, attachment: Attachment, layer: int) -> None:
        self._attached = weakref.ref(attachment)
        self._key = attachment.key
        self._layer = layer
        self._layer_tensor = torch.tensor(layer)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        """See :class:`~dit_sparse.adapters.processors.Tap`."""
        if torch.compiler.is_compiling():
            return compiled.attention(q, k, v, mask, self._layer_tensor, self._key, scale)
        return self._attachment.attend(self._layer, q, k, v, mask, scale)

    def bypass(self, obstacle: str) -> None:
        """See :class:`~dit_sparse.adapters.processors.Tap`."""
        self._attachment.bypass(self._layer, obstacle)

    @property
    def _attachment(self) -> Attachment:
        attachment = self._attached()
        assert attachment is not None  # the hook at the root keeps it
        return attachment

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self._attachment.__deepcopy__(memo)


def transformers_of(pipe_or_transformer: Any) -> dict[str, nn.Module]:
    """The transformers of a pipeline by component name, or a bare transformer as ``{"transformer": it}``.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(pipe_or_transformer, nn.Module):
        return {"transformer": _uncompiled(pipe_or_transformer)}
    found = {name: _uncompiled(module) for name, module in denoisers_of(pipe_or_transformer).items()}
    if not found:
        raise ValueError(
            f"{type(pipe_or_transformer).__name__} has no transformer: sparse attention works on diffusion "
            "transformers, pass the pipeline or the transformer module"
        )
    return found


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """The denoising networks as the pipeline calls them, a compiled one in its wrapper; empty without any.

    "transformer", and "transformer_2" of models with two experts.
    """
    found = {name: getattr(pipe, name, None) for name in ("transformer", "transformer_2")}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def _uncompiled(module: nn.Module) -> nn.Module:
    """The module behind ``torch.compile``'s wrapper."""
    return getattr(module, "_orig_mod", module)


def scheduler_of(pipe_or_transformer: Any) -> Callable[[], Any] | None:
    """A function that returns the pipeline's scheduler of the moment, None for a bare transformer.

    Once the pipeline is gone it is the last one seen: ``from_pipe`` makes another of its parts, scheduler
    included.
    """
    if isinstance(pipe_or_transformer, nn.Module):
        return None
    pipe = weakref.ref(pipe_or_transformer)
    last = getattr(pipe_or_transformer, "scheduler", None)

    def scheduler() -> Any:
        nonlocal last
        if (here := pipe()) is not None:
            last = getattr(here, "scheduler", None)
        return last

    return scheduler
