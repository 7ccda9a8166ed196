"""Fused norms and RoPE on real diffusers classes: what the stock chain computes, and nothing left behind."""

import gc

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from fused_models import MODELS, attached, in_bfloat16, layers_of, randomised, wan_forward
from tiny import FAMILIES, embeddings, run, wan_transformer

from dit_sparse.adapters import fused
from dit_sparse.adapters.fused import make_fusion
from dit_sparse.adapters.processors import make_processor
from dit_sparse.kernels import rotary_table

fusible = pytest.mark.parametrize("family", ["wan", "hunyuan_video"])
DENSE = {"dense_steps": 1000}
SPARSE = {"dense_steps": 0, "dense_layers": [], "min_tokens": 0, "block_size": 16, "density": 0.5}


class Recorder:
    """A tap that keeps q, k and v and computes dense attention."""

    def __init__(self):
        self.seen = []

    def attend(self, q, k, v, mask, scale):
        self.seen.append((q, k, v))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def recorded(transformer, forward, setting, batch):
    """q, k and v of every layer."""
    layers, tap = layers_of(transformer), Recorder()
    fusion = make_fusion(setting, layers)
    stock = [module.processor for _, module in layers]
    for _, module in layers:
        module.set_processor(make_processor(module.processor, tap, fusion))
    with torch.no_grad():
        forward(transformer, batch)
    for (_, module), processor in zip(layers, stock, strict=True):
        module.set_processor(processor)
    assert len(tap.seen) == len(layers)
    assert fusion is None or fusion.fused_calls == len(layers)
    return tap.seen


@fusible
@pytest.mark.parametrize("batch", [1, 2])
def test_attention_receives_what_the_stock_chain_gives(family, batch):
    """float32, every layer: also HunyuanVideo's joint and single blocks, whose text is not turned."""
    make, forward = MODELS[family]
    transformer = randomised(make())
    stock = recorded(transformer, forward, False, batch)
    ours = recorded(transformer, forward, True, batch)
    for layer, expected in zip(ours, stock, strict=True):
        for x, y in zip(layer, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@fusible
def test_bfloat16_rounds_as_the_stock_chain_does(family):
    make, forward = MODELS[family]
    transformer = in_bfloat16(randomised(make()))
    stock = recorded(transformer, forward, False, 1)[0]
    ours = recorded(transformer, forward, True, 1)[0]
    for x, y in zip(ours, stock, strict=True):
        assert x.dtype == torch.bfloat16
        assert (x == y).double().mean() > 0.99


@fusible
def test_pipelines_agree_and_are_restored(family):
    make, inputs = FAMILIES[family]
    pipe, given = make(), inputs() | {"num_inference_steps": 2}
    randomised(pipe.transformer)
    dense = run(pipe, given)
    calls = 2 * 2 * 2  # layers, branches, steps
    with attached(pipe, True, **DENSE) as attachment:
        torch.testing.assert_close(run(pipe, given), dense, rtol=1e-4, atol=1e-4)
        assert attachment.fusion.fused_calls == calls
        run(pipe, given)
        assert attachment.fusion.summary() == f"norm and RoPE fused in {calls} attention calls"
    assert torch.equal(run(pipe, given), dense)
    with attached(pipe, False, **SPARSE):
        sparse = run(pipe, given)
    with attached(pipe, True, **SPARSE):
        torch.testing.assert_close(run(pipe, given), sparse, rtol=1e-3, atol=1e-3)
    assert torch.equal(run(pipe, given), dense)


def test_wan_image_to_video_with_image_tokens():
    """Cross-attention has key projections of its own for the image, and stays stock."""
    transformer = randomised(wan_transformer(in_channels=36, image_dim=24, added_kv_proj_dim=32))
    given = {"text": 512, "encoder_hidden_states_image": embeddings(1, 257, 24, seed=3)}
    with torch.no_grad():
        stock = wan_forward(transformer, **given)
        with attached(transformer, True, **DENSE) as attachment:
            torch.testing.assert_close(wan_forward(transformer, **given), stock, rtol=1e-5, atol=1e-5)
            assert attachment.fusion.fused_calls == 2
        assert torch.equal(wan_forward(transformer, **given), stock)


@torch.no_grad()
def test_fused_projections_and_a_backend_set_meanwhile():
    transformer = randomised(wan_transformer())
    stock = wan_forward(transformer)
    with attached(transformer, True, **DENSE) as attachment:
        transformer.fuse_qkv_projections()
        transformer.set_attention_backend("_native_math")
        try:
            torch.testing.assert_close(wan_forward(transformer), stock, rtol=1e-4, atol=1e-4)
        finally:
            transformer.reset_attention_backend()
            transformer.unfuse_qkv_projections()
        assert attachment.fusion.fused_calls == 2


@torch.no_grad()
def test_auto_leaves_a_cpu_alone():
    transformer = wan_transformer()
    stock = wan_forward(transformer)
    with attached(transformer, "auto", **DENSE) as attachment:
        assert torch.equal(wan_forward(transformer), stock)
        assert (attachment.fusion.fused_calls, attachment.fusion.stock_calls) == (0, {})


def hook_on_a_norm(transformer):
    transformer.blocks[0].attn1.norm_k.register_forward_hook(lambda module, args, out: out * 0.5)


def patched_forward(transformer):
    norm = transformer.blocks[0].attn1.norm_q
    norm.forward = lambda x: torch.nn.RMSNorm.forward(norm, x) * 0.5


def other_norm(transformer):
    transformer.blocks[0].attn1.norm_q = torch.nn.LayerNorm(32)


def float64(transformer):
    transformer.double().rope.float()


def angles_cast(transformer):
    transformer.to(torch.bfloat16)


class OwnProcessor(WanAttnProcessor):
    """Adds to what the stock one does."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        return super().__call__(attn, hidden_states, *args, **kwargs) + 1


@pytest.mark.parametrize(
    ("change", "layers", "reason"),
    [
        (hook_on_a_norm, 1, "hooks"),
        (patched_forward, 1, "hooks"),
        (other_norm, 1, "the norm is a LayerNorm"),
        (float64, 2, "float64"),
        (angles_cast, 2, "rotary embedding is torch.bfloat16"),
    ],
)
@torch.no_grad()
def test_what_differs_runs_stock_and_is_counted(change, layers, reason):
    transformer = wan_transformer()
    change(transformer)
    stock = wan_forward(transformer)
    with attached(transformer, True, **DENSE) as attachment:
        torch.testing.assert_close(wan_forward(transformer), stock, rtol=1e-5, atol=1e-5)
        (text, count), *others = attachment.fusion.stock_calls.items()
    assert not others
    assert count == layers
    assert reason in text
    assert attachment.fusion.fused_calls == 2 - layers
    assert attachment.fusion.summary().endswith(f"attention calls; stock in {layers}: {text}")


@torch.no_grad()
def test_a_processor_that_came_later_runs_stock():
    transformer = wan_transformer()
    with attached(transformer, True, **DENSE) as attachment:
        transformer.blocks[1].attn1.set_processor(OwnProcessor())
        out = wan_forward(transformer)
        assert attachment.fusion.stock_calls == {"the processor is a OwnProcessor": 1}
    assert type(transformer.blocks[1].attn1.processor) is OwnProcessor
    torch.testing.assert_close(out, wan_forward(transformer), rtol=1e-5, atol=1e-5)


def test_recording_gradients_runs_stock():
    transformer = wan_transformer()
    with attached(transformer, True, **DENSE) as attachment:
        wan_forward(transformer).sum().backward()
        assert list(attachment.fusion.stock_calls.values()) == [2]
    assert transformer.blocks[0].attn1.norm_q.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_angles_are_prepared_once_per_forward_and_not_kept(monkeypatch):
    made = []

    def counting(cos, sin):
        made.append(cos.shape)
        return rotary_table(cos, sin)

    monkeypatch.setattr(fused, "rotary_table", counting)
    transformer = wan_transformer(layers=4)
    with attached(transformer, True, **DENSE) as attachment:
        for _ in range(3):
            wan_forward(transformer)
        assert len(made) == 3
        gc.collect()
        assert attachment.fusion._table is None


def test_a_stock_call_that_does_something_else_is_refused(monkeypatch):
    """If diffusers changes the call that the fusion relies on, nothing wrong may come out in silence."""

    class Twice(WanAttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, rotary_emb=None):
            attn.norm_q(hidden_states)
            return super().__call__(attn, hidden_states, encoder_hidden_states, None, rotary_emb)

    monkeypatch.setitem(fused.ROTARY_ARGUMENT, fused._path(Twice), "rotary_emb")
    attn = wan_transformer().blocks[0].attn1
    fusion = make_fusion(True, [("attn1", attn)])
    angles = (torch.ones(1, 9, 1, 16), torch.zeros(1, 9, 1, 16))
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"Twice.*fuse_norm_rope=False"):
        fusion.run(Twice, Twice(), attn, torch.randn(1, 9, 32), rotary_emb=angles)


def test_settings_are_checked():
    cogvideox = FAMILIES["cogvideox"][0]().transformer
    with pytest.raises(ValueError, match="CogVideoXAttnProcessor2_0.*'auto' or False"):
        make_fusion(True, layers_of(cogvideox))
    assert make_fusion("auto", layers_of(cogvideox)) is None
    wan = wan_transformer()
    assert make_fusion(False, layers_of(wan)) is None
    with pytest.raises(ValueError, match="'auto', True or False, got 'always'"):
        make_fusion("always", layers_of(wan))


@torch.no_grad()
def test_compiled_blocks_keep_the_stock_chain():
    transformer = wan_transformer()
    stock = wan_forward(transformer)
    with attached(transformer, True, **DENSE) as attachment:
        torch._dynamo.reset()
        for block in transformer.blocks:
            block.compile(fullgraph=True, backend="eager")
        torch.testing.assert_close(wan_forward(transformer), stock, rtol=1e-5, atol=1e-5)
        assert attachment.fusion.fused_calls == 0
