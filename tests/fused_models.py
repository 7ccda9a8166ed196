"""Transformers, forwards and attachments for the tests of fused processors."""

import contextlib
import copy

import torch
from tiny import embeddings, hunyuan_video_transformer, wan_transformer

from dit_sparse.adapters import find_adapter
from dit_sparse.adapters.attach import Attachment, scheduler_of
from dit_sparse.adapters.fused import make_fusion
from dit_sparse.adapters.steps import StepTracker
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.runtime import Runtime


def layers_of(transformer):
    return find_adapter(transformer).attention_layers(transformer)


@contextlib.contextmanager
def attached(model, setting, **fields):
    """Sparse attention with the norms fused on a pipeline's or a bare transformer; the attachment."""
    transformer = getattr(model, "transformer", model)
    adapter, layers = find_adapter(transformer), layers_of(transformer)
    method = make_method("draft", **fields).build(ModelInfo(adapter.family, len(layers), 16))
    tracker = StepTracker(scheduler_of(model))
    fusion = make_fusion(setting, layers)
    attachment = Attachment(transformer, "transformer", adapter, Runtime(method), tracker, fusion)
    try:
        yield attachment
    finally:
        attachment.detach()


def wan_forward(transformer, batch=1, text=12, **more):
    channels = transformer.config.in_channels
    given = {
        "hidden_states": embeddings(batch, channels, 3, 10, 14),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": embeddings(batch, text, 32, seed=1),
    }
    return transformer(**cast(transformer, given | more), return_dict=False)[0]


def hunyuan_forward(transformer, batch=1):
    valid = torch.arange(11) < torch.tensor([[7], [11]])[:batch]
    given = {
        "hidden_states": embeddings(batch, 4, 3, 10, 14),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": embeddings(batch, 11, 16, seed=1),
        "encoder_attention_mask": valid.long(),
        "pooled_projections": embeddings(batch, 8, seed=2),
        "guidance": torch.full((batch,), 6000.0),
    }
    return transformer(**cast(transformer, given), return_dict=False)[0]


def cast(transformer, given):
    return {k: v.to(transformer.dtype) if v.is_floating_point() else v for k, v in given.items()}


def randomised(transformer):
    """Norm weights away from 1, so that one left out or swapped shows."""
    generator = torch.Generator().manual_seed(5)
    for name, weight in transformer.named_parameters():
        if ".norm_" in name:
            weight.data = 1 + 0.5 * torch.randn(weight.shape, generator=generator)
    return transformer


def in_bfloat16(transformer):
    """As from_pretrained loads it: the angles stay float32."""
    rope = copy.deepcopy(transformer.rope)
    transformer.to(torch.bfloat16).rope = rope
    return transformer


MODELS = {
    "wan": (wan_transformer, wan_forward),
    "hunyuan_video": (hunyuan_video_transformer, hunyuan_forward),
}
