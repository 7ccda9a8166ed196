"""Compensation by head, the offset that is carried, and branches that share what was learnt."""

import pytest
import torch
from planted import SHARP, dense, densities, random, relative_error, run

from dit_sparse.corrections import LearntCompensation, PooledCompensation
from dit_sparse.corrections.learnt import OFFSET, USE
from dit_sparse.engine import SparseMethod
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.methods import ModelInfo, Mosaic
from dit_sparse.orderings import Raster
from dit_sparse.runtime import Call, Runtime
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import TopK

LAYOUT = TokenLayout(2, 8, 8)
HERE = ModelInfo("wan", 1, 16)


def method(correction, density=0.3):
    return SparseMethod(
        "t", TopK(density, "head"), Raster(), correction, Schedule(min_tokens=0), block_size=16
    )


def heads(layout=LAYOUT, offset=0.0, seed=0):
    """A diffuse head, and one in which every query attends to one key that lies in a block of unlike ones."""
    generator = torch.Generator().manual_seed(seed)
    n, dim = layout.num_tokens, 16
    q, k, v = (torch.randn(1, n, 2, dim, generator=generator) for _ in range(3))
    q[:, :, 0] *= 0.2
    k[0, :, 1] = -SHARP * torch.nn.functional.one_hot(torch.zeros(n, dtype=torch.long), dim)
    k[0, ::16, 1] *= -1.0
    q[0, :, 1] = 0.1 * SHARP * torch.nn.functional.one_hot(torch.zeros(n, dtype=torch.long), dim)
    v[0, ::16, 1] += 3.0
    v[0, :, 1] += torch.randn(n, dim, generator=generator)
    return q, k, v + offset


def state_of(runtime):
    (state,) = runtime.state._layers.values()
    return state.values


def test_heads_that_lose_by_it_are_not_compensated():
    x = heads()
    exact = dense(*x)[0]
    plain = relative_error(run(method(None), x, LAYOUT, 1)[0][0], exact)[0]
    pooled = relative_error(run(method(PooledCompensation()), x, LAYOUT, 1)[0][0], exact)[0]
    out, runtime = run(method(LearntCompensation(0.9, offset=False, again=None)), x, LAYOUT, 2)
    assert state_of(runtime)[USE].tolist() == [(pooled**2 < 0.9 * plain**2).tolist()]
    expected = torch.where(state_of(runtime)[USE][0], pooled, plain)
    torch.testing.assert_close(relative_error(out[1], exact)[0], expected, rtol=1e-4, atol=0)
    assert pooled[0] < 0.5 * plain[0], "the diffuse head gains"
    assert pooled[1] > 0.95 * plain[1], "the sharp head does not"


@pytest.mark.parametrize(("text", "position"), [(0, "none"), (16, "first"), (5, "last")])
def test_the_offset_is_what_all_queries_lacked(text, position):
    layout = TokenLayout(2, 8, 8, text, position)
    x = random(layout.num_tokens, 3, 16, batch=2)
    exact = dense(*x)[0]
    plain, _ = run(method(PooledCompensation(), 0.5), x, layout, 1)
    out, runtime = run(method(LearntCompensation(1.0, offset=True, again=None), 0.5), x, layout, 2)
    assert densities(runtime) == [pytest.approx(0.5, abs=0.02)]
    video = slice(layout.video_start, layout.video_start + layout.video_tokens)
    error = (exact - out[1].double())[:, video]
    assert error.mean(dim=1).abs().max() < 1e-6, "no head is off by the same vector everywhere"
    values = state_of(runtime)
    used = values[USE][:, None, :, None].expand_as(out[1][:, video])
    lacked = (exact - plain[0].double())[:, video].mean(dim=1, keepdim=True)
    torch.testing.assert_close(
        values[OFFSET].double().expand_as(out[1][:, video])[used],
        lacked.expand_as(used)[used],
        rtol=1e-4,
        atol=1e-6,
    )
    others = torch.ones(layout.num_tokens, dtype=torch.bool)
    others[video] = False
    assert relative_error(out[1][:, others], exact[:, others]).nan_to_num().max() < 1e-5, "text is exact"


def test_it_serves_later_steps_and_is_learnt_again():
    before, after = heads(), heads(offset=5.0, seed=1)
    built = method(LearntCompensation(again=0.5))
    out, runtime = run(built, [before] * 3 + [after] * 3, LAYOUT, 6)
    assert [r.site.step for r in runtime.records if r.dense_reason == "observed"] == [0, 3]
    for step, x in ((2, before), (5, after)):
        exact = dense(*x)[0]
        pooled, _ = run(method(PooledCompensation()), x, LAYOUT, 1)
        assert relative_error(out[step], exact).mean() < relative_error(pooled[0], exact).mean()


def test_nothing_learnt_is_refused():
    runtime = Runtime(method(LearntCompensation()))
    context = runtime.method.context(LAYOUT, Site(0, 1, 4), runtime.state.layer(Site(0, 1, 4)), head_dim=16)
    with pytest.raises(ValueError, match=r"compensation\.use.*observed before"):
        LearntCompensation().apply(type("Given", (), {"context": context})())


@pytest.mark.parametrize("share", [True, False])
def test_branches_share_what_the_first_learnt(share):
    built = Mosaic(
        density=0.3, dense_steps=1, min_tokens=0, block_size=16, relearn=None, share_branches=share
    ).build(HERE)
    runtime = Runtime(built)
    out = {}
    for step in range(2):
        for branch, x in (("conditional", random(128, 2, 16)), ("unconditional", random(128, 2, 16, seed=9))):
            q, k, v = x

            def stock(x=x):
                return dense(*x)[0].float()

            call = Call(Site(0, step, 2, branch), LAYOUT, 1, None, stock, None, None)
            out[branch, step] = runtime.run(q, k, v, call)
    records = [(r.site.branch, r.site.step, r.dense_reason) for r in runtime.records]
    assert records[:2] == [
        ("conditional", 0, "dense_step"),
        ("unconditional", 0, "dense_step"),
    ] or records[0] == ("conditional", 0, "observed")
    assert [reason for _, step, reason in records if step == 1] == [None, None]
    assert len(runtime.state._layers) == (1 if share else 2)
    # The conditional branch does not depend on the other; the other does if it takes its plan.
    alone = Runtime(built)
    x = random(128, 2, 16, seed=9)
    for step in range(2):
        call = Call(
            Site(0, step, 2, "unconditional"), LAYOUT, 1, None, lambda: dense(*x)[0].float(), None, None
        )
        own = alone.run(*x, call)
    assert torch.equal(own, out["unconditional", 1]) is not share


@pytest.mark.parametrize(
    "make",
    [lambda: LearntCompensation(0.0), lambda: LearntCompensation(1.5), lambda: LearntCompensation(again=-1)],
)
def test_bad_fields_are_refused(make):
    with pytest.raises(ValueError, match=r"must be"):
        make()
