"""Parts of a method that learn from dense attention: what they are shown, when, and what it leaves behind."""

from dataclasses import dataclass, field

import pytest
import torch

from dit_sparse.engine import SparseMethod, sparse_attention
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.orderings import AxisPermutation
from dit_sparse.runtime import Call, Runtime
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import TopK


@dataclass(frozen=True)
class Watching(TopK):
    """Top-k that asks for the last dense step and keeps all it was shown."""

    seen: list = field(default_factory=list)

    def wants(self, context):
        return context.site.step == context.last_dense_step

    def observe(self, seen):
        self.seen.append((seen, seen.sparse()))


def heads_first_attention(q, k, v):
    q, k, v = (x.transpose(1, 2).double() for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (logits.softmax(dim=-1) @ v).transpose(1, 2), logits.logsumexp(dim=-1)


def run(runtime, x, layout, steps, valid_text=None):
    def dense():
        return heads_first_attention(*x)[0].to(x[0].dtype)

    return [
        runtime.run(*x, Call(Site(0, step, steps), layout, 1, valid_text, dense, None, None))
        for step in range(steps)
    ]


def tensors(tokens, batch=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, tokens, 2, 16, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("guard", [0, 2, 0.5])
def test_the_last_dense_step_is_observed_and_dense(guard):
    layout = TokenLayout(4, 5, 6, 7, "first")
    selector = Watching(0.3)
    method = SparseMethod(
        "t", selector, AxisPermutation("HWT"), schedule=Schedule(guard, min_tokens=0), block_size=16
    )
    runtime, x = Runtime(method), tensors(layout.num_tokens)
    out = run(runtime, x, layout, 4)
    ((seen, (sparse_out, sparse_lse)),) = selector.seen
    expected, lse = heads_first_attention(*x)
    assert seen.context.site.step == {0: 0, 2: 1, 0.5: 1}[guard]
    torch.testing.assert_close(seen.out.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.lse.double(), lse, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[seen.context.site.step], seen.out)
    # What `sparse` computed is what the method computes at its next step, in the model's order.
    torch.testing.assert_close(sparse_out, out[-1])
    missing = lse - sparse_lse  # a part of the sum, but for the text's rows, which keep everything
    assert missing.min() > -1e-5 and missing[:, :, 32:].mean() > 0.1
    assert missing[:, :, :7].abs().max() < 1e-5
    reasons = [record.dense_reason for record in runtime.records]
    dense = max(1, seen.context.first_sparse_step)
    assert reasons == (["dense_step"] * dense if guard else ["observed"]) + [None] * (4 - dense)


def test_padded_text_is_observed_per_sample():
    layout = TokenLayout(2, 5, 6, 8, "last")
    selector = Watching(0.4)
    runtime = Runtime(SparseMethod("t", selector, schedule=Schedule(min_tokens=0), block_size=16))
    x = tensors(layout.num_tokens)
    run(runtime, x, layout, 1, valid_text=(3, 8))
    lengths = [seen.context.layout.num_tokens for seen, _ in selector.seen]
    assert lengths == [63, 68]
    for (seen, _), row in zip(selector.seen, (0, 1)):
        live = [t[row : row + 1, : seen.context.layout.num_tokens] for t in x]
        torch.testing.assert_close(seen.out.double(), heads_first_attention(*live)[0], rtol=1e-4, atol=1e-5)


def test_observing_drops_the_carried_plan():
    layout = TokenLayout(4, 5, 6)
    schedule = Schedule({1}, refresh_interval=9, min_tokens=0)
    selector = Watching(0.3)
    method = SparseMethod("t", selector, schedule=schedule, block_size=16)
    runtime, x = Runtime(method), tensors(layout.num_tokens)
    run(runtime, x, layout, 1)
    state = runtime.state.layer(Site(0, 0))
    context = method.context(layout, Site(0, 1, 4), state, head_dim=16)
    sparse_attention(*x, method=method, context=context)
    assert state.plan is not None and state.plan_step == 1
    again = sparse_attention(*x, method=method, context=context)[1]
    assert torch.equal(again.block_map.to_mask(), state.plan.unpacked().block_map.to_mask())
    run(runtime, x, layout, 1)  # step 0 is observed
    assert state.plan is None
