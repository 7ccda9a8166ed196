"""The whole sparse path on a GPU: equal to dense at density 1, close to the CPU, nothing waits for the
device."""

import pytest
import torch
from tiny import FAMILIES, run

import dit_sparse
from dit_sparse.engine import observed_attention, sparse_attention
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.state import LayerState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
ALWAYS = {"dense_steps": 0, "dense_layers": [], "min_tokens": 0}
METHODS = dit_sparse.list_methods()


def on_gpu(inputs):
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pipelines(family, method):
    make, inputs = FAMILIES[family]
    pipe, given = make().to("cuda"), on_gpu(inputs())
    dense = run(pipe, given)
    with dit_sparse.sparse_attention(
        pipe, method, density=1.0, strict=True, block_size=16, **ALWAYS
    ) as handle:
        torch.testing.assert_close(run(pipe, given), dense, rtol=2e-3, atol=2e-3)
        assert handle.stats().backends == ["triton"]
    with dit_sparse.sparse_attention(
        pipe, method, density=0.5, strict=True, block_size=16, **ALWAYS
    ) as handle:
        assert torch.isfinite(run(pipe, given)).all()
        assert handle.stats().density_sparse_sites == pytest.approx(0.5, rel=0.2)
    assert torch.equal(run(pipe, given), dense)


def attend(method, layout, x, state, step, impl="auto", **fields):
    built = make_method(method, **ALWAYS, **fields).build(ModelInfo("wan", 1, x[0].shape[-1]))
    context = built.context(layout, Site(0, step, 10), state, head_dim=x[0].shape[-1])
    state.match(layout, x[0].shape[0], x[0].shape[2])
    if any(part.wants(context) for part in built.observers):  # at the first step: learn, then use it
        observed_attention(*x, method=built, context=context, impl=impl)
    return sparse_attention(*x, method=built, context=context, impl=impl)


@pytest.mark.parametrize(
    "layout",
    [TokenLayout(5, 30, 45), TokenLayout(5, 30, 45, 226, "first"), TokenLayout(4, 33, 47, 77, "last")],
    ids=str,
)
@pytest.mark.parametrize("method", METHODS)
def test_fast_kernels_agree_with_the_definition(method, layout):
    """Same plan, bf16 on the GPU: at most twice the error of eager bf16 attention, against float32."""
    x = [torch.randn(2, layout.num_tokens, 3, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    exact = [t.float() for t in x]
    fast, plan = attend(method, layout, x, LayerState(), 0, density=0.3, block_size=128)
    slow, plan_32 = attend(
        method, layout, exact, LayerState(), 0, impl="reference", density=0.3, block_size=128
    )
    assert float(plan.density) == pytest.approx(float(plan_32.density), rel=0.05)
    same = (plan.block_map.to_mask() == plan_32.block_map.to_mask()).all()
    if same:  # rounding to bf16 may tip a choice; then outputs differ by more than arithmetic
        assert (fast.float() - slow).abs().max() < 2e-2
    full, _ = attend(method, layout, x, LayerState(), 0, density=1.0, block_size=128)
    dense = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in exact)).transpose(
        1, 2
    )
    eager = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in x)).transpose(1, 2)
    assert (full - dense).abs().max() <= 2 * (eager - dense).abs().max() + 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits_for_the_gpu(method):
    layout = TokenLayout(5, 30, 45, 77, "last")
    x = [torch.randn(1, layout.num_tokens, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    state = LayerState()
    attend(method, layout, x, state, 0, density=0.3)  # kernels are built and grid orders made on first use
    attend(method, layout, x, state, 1, density=0.3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(method, layout, x, state, 2, density=0.3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_blocks_on_the_gpu():
    make, inputs = FAMILIES["wan"]
    pipe, given = make(layers=12).to("cuda"), on_gpu(inputs())
    pipe.enable_sparse_attention("svg2", density=0.5, block_size=16, **ALWAYS)
    expected = run(pipe, given)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for block in pipe.transformer.blocks:
        block.compile(fullgraph=True)
    torch.testing.assert_close(run(pipe, given), expected, rtol=2e-2, atol=2e-2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
