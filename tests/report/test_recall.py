"""Recall of sampled rows against its definition in float64, and what becomes of it in the report."""

from __future__ import annotations

import pytest
import tiny
import torch

import dit_sparse
from dit_sparse import kernels
from dit_sparse.kernels import VariableBlocks
from dit_sparse.layout import AttentionPlan, BlockMap, Site, TokenLayout
from dit_sparse.report.pair import NOT_ASKED, NOTHING_SPARSE, generate_pair
from dit_sparse.report.recall import (
    CallRecall,
    RecallProbe,
    plan_recall,
    recall_section,
    sampled_positions,
)

B, N, H, D = 2, 45, 3, 9
BLOCK = (8, 16)  # 45 tokens: both axes end in a ragged block


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(B, N, H, D, generator=generator) for _ in range(2))
    return q, k


def orders(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(*shape, N, generator=torch.Generator().manual_seed(len(shape))).argsort(dim=-1)


def token_mask(plan: AttentionPlan) -> torch.Tensor:
    """Kept pairs by token in the plan's order, bool [B, H, N, N]."""
    if isinstance(plan.block_map, VariableBlocks):
        out = torch.zeros(B, H, N, N, dtype=torch.bool)
        for b in range(B):
            for h in range(H):
                q_of = torch.arange(plan.block_map.q_lengths.shape[-1]).repeat_interleave(
                    plan.block_map.q_lengths[b, h]
                )
                k_of = torch.arange(plan.block_map.kv_lengths.shape[-1]).repeat_interleave(
                    plan.block_map.kv_lengths[b, h]
                )
                out[b, h] = plan.block_map.mask[b, h][q_of][:, k_of]
        return out
    mask = plan.block_map.to_mask().repeat_interleave(BLOCK[0], 2).repeat_interleave(BLOCK[1], 3)
    return mask[:, :, :N, :N]


def definition(q, k, plan: AttentionPlan, positions, scale) -> torch.Tensor:
    """Softmax of every token over all keys in float64, summed over what its row keeps."""
    share = (torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * scale).softmax(dim=-1)

    def sort(x, order, dim):
        full = torch.arange(N).expand(B, H, N) if order is None else order.expand(B, H, N)
        index = full[..., None].expand_as(x) if dim == 2 else full[:, :, None].expand_as(x)
        return x.gather(dim, index)

    share = sort(sort(share, plan.q_order, 2), plan.kv_order, 3)
    return (share * token_mask(plan)).sum(dim=-1)[:, :, positions].mean(dim=(0, 2))


def plan_of(q_order, kv_order, *, variable: bool = False) -> AttentionPlan:
    generator = torch.Generator().manual_seed(7)
    if variable:
        cuts = torch.tensor([[0, 20, 25], [45, 0, 0], [5, 13, 27]]).expand(B, H, 3).contiguous()
        mask = torch.rand(B, H, 3, 3, generator=generator) < 0.5
        blocks = VariableBlocks(cuts, cuts.flip(-1).contiguous(), mask)
        return AttentionPlan(q_order, kv_order, blocks, blocks.density())
    mask = torch.rand(B, H, 6, 3, generator=generator) < 0.5
    mask[0, 1, 2] = False  # a row that keeps nothing
    made = BlockMap.from_mask(mask, N, N, BLOCK)
    return AttentionPlan(q_order, kv_order, made, made.density())


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("shapes", [(None, None), ((), ()), ((H,), (H,)), ((B, H), (H,)), (None, (B, H))])
@pytest.mark.parametrize("scale", [None, 0.6])
def test_recall_of_rows_is_their_kept_share(variable, shapes, scale):
    q, k = inputs()
    q_order, kv_order = (None if shape is None else orders(shape) for shape in shapes)
    plan = plan_of(q_order, kv_order, variable=variable)
    positions = torch.tensor([0, 3, 17, 30, 44])
    found = plan_recall(q, k, plan, positions, scale)
    expected = definition(q, k, plan, positions, D**-0.5 if scale is None else scale)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert 0 < found.min() < found.max() < 1


def test_keeping_everything_is_a_recall_of_one():
    q, k = inputs()
    full = BlockMap.full(B, H, N, N, BLOCK, torch.device("cpu"))
    plan = AttentionPlan(None, None, full, full.density())
    torch.testing.assert_close(plan_recall(q, k, plan, torch.arange(N)), torch.ones(H))


def test_positions_spread_over_the_video_and_leave_text_out():
    layout = TokenLayout(3, 4, 5, text_tokens=7, text_position="first")
    plain = sampled_positions(layout, 6, call=0, reordered=False)
    assert plain.tolist() == [7, 17, 27, 37, 47, 57]  # one in each stretch of ten, behind the text
    sorted_last = sampled_positions(layout, 6, call=1, reordered=True)  # text goes to the end
    assert sorted_last.tolist() == [6, 16, 26, 36, 46, 56]
    assert sampled_positions(layout, 100, call=3, reordered=True).tolist() == list(range(60))
    seen = {p for call in range(40) for p in sampled_positions(layout, 6, call, reordered=True).tolist()}
    assert seen == set(range(60))


def test_bad_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        RecallProbe(rows=0)


def call(layer, step, heads, *, branch="conditional", transformer="transformer") -> CallRecall:
    return CallRecall(Site(layer, step, 4, branch, transformer), torch.tensor(heads))


def test_section_means_and_worst_layers():
    section = recall_section(
        [
            call(0, 1, [0.5, 0.7]),
            call(0, 1, [0.7, 0.9], branch="unconditional"),
            call(0, 2, [0.9, 0.9]),
            call(0, 2, [0.9, 0.9], branch="unconditional"),
            call(3, 2, [0.2, 0.6]),
            call(1, 1, [1.0, 1.0], transformer="transformer_2"),
        ],
        rows=32,
    )
    assert section is not None
    assert section.mean == pytest.approx((0.6 + 0.8 + 0.9 + 0.9 + 0.4 + 1.0) / 6)
    first, second = section.maps
    assert (first.layers, first.steps) == ([0, 3], [1, 2])
    assert first.by_step[0] == pytest.approx([0.7, 0.9])
    assert first.by_step[1] == [None, pytest.approx(0.4)]
    assert first.by_head[0] == pytest.approx([(0.5 + 0.7 + 1.8) / 4, (0.7 + 0.9 + 1.8) / 4])
    assert second.by_head == [[1.0, 1.0]]
    assert [(w.transformer, w.layer) for w in section.worst_layers] == [
        ("transformer", 3),
        ("transformer", 0),
        ("transformer_2", 1),
    ]
    worst = section.worst_layers[1]
    assert (worst.head, worst.step) == (0, 1)
    assert (worst.head_recall, worst.step_recall) == pytest.approx((0.75, 0.7))
    assert recall_section([], rows=32) is None


SPARSE = {"method": "svg2", "density": 0.4, "dense_steps": 1, "min_tokens": 0, "block_size": 8}


def small(family: str) -> dict:
    inputs = tiny.FAMILIES[family][1]() | {"height": 48, "width": 64, "num_frames": 5}
    inputs["num_inference_steps"] = 3
    del inputs["output_type"]
    return inputs


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_watching_leaves_the_run_and_the_handle_as_they_were(family):
    pipe, call_with = tiny.FAMILIES[family][0](), small(family)

    def generate(probe: RecallProbe | None) -> torch.Tensor:
        with dit_sparse.sparse_attention(pipe, **SPARSE) as handle, torch.no_grad():

            def run() -> torch.Tensor:
                generator = torch.Generator().manual_seed(0)
                return pipe(**call_with, generator=generator, output_type="latent").frames

            if probe is None:
                return run()
            with probe.attached(handle):
                frames = run()
            assert all(runtime.watch is None for runtime in handle.runtimes)
            sparse = sum(record.dense_reason is None for record in handle.stats().records)
            assert len(probe.calls()) == sparse > 0
            return frames

    probe = RecallProbe(rows=5)
    state = torch.get_rng_state()
    assert torch.equal(generate(None), generate(probe))
    assert torch.equal(torch.get_rng_state(), state)
    for seen in probe.calls():
        assert seen.heads.shape == (2,)
        assert ((seen.heads > 0) & (seen.heads <= 1 + 1e-6)).all()


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_with_every_row_it_is_what_the_kernels_log_sum_exp_says(family):
    """Recall of a row is exp(lse over kept keys - lse over all): an independent way to the same figure."""
    pipe, call_with = tiny.FAMILIES[family][0](), small(family)
    pairs = []

    def watch(q, k, plan, context) -> None:
        layout = context.layout
        every = sampled_positions(layout, 10**6, 0, reordered=plan.q_order is not None)
        assert len(every) == layout.video_tokens
        q_sorted, k_sorted = (
            x if order is None else kernels.permute_rows(x, order)
            for x, order in ((q, plan.q_order), (k, plan.kv_order))
        )
        _, kept = kernels.block_sparse_attention(
            q_sorted,
            k_sorted,
            k_sorted,
            plan.block_map,
            scale=context.scale,
            return_lse=True,
            impl="reference",
        )
        everything = BlockMap.full(*plan.block_map.shape[:2], *[layout.num_tokens] * 2, (8, 8), q.device)
        _, whole = kernels.block_sparse_attention(
            q_sorted, k_sorted, k_sorted, everything, scale=context.scale, return_lse=True, impl="reference"
        )
        exact = (kept - whole).exp()[:, :, every].mean(dim=(0, 2))
        pairs.append((plan_recall(q, k, plan, every, context.scale), exact))

    with dit_sparse.sparse_attention(pipe, **SPARSE) as handle, torch.no_grad():
        for runtime in handle.runtimes:
            runtime.watch = watch
        pipe(**call_with, generator=torch.Generator().manual_seed(0), output_type="latent")
    assert pairs
    for found, exact in pairs:
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_pairs_estimate_recall_when_asked_and_say_why_not():
    pipe, call_with = tiny.wan_pipeline(), small("wan")
    with torch.no_grad():
        asked = generate_pair(pipe, call_with, SPARSE, seed=0, compare=False, recall=True)
        plain = generate_pair(pipe, call_with, SPARSE, seed=0, compare=False)
        dense = generate_pair(
            pipe, call_with, SPARSE | {"dense_steps": 3}, seed=0, compare=False, recall=True
        )
    assert asked.recall is not None and asked.recall_unmeasured is None
    assert asked.recall.maps[0].steps == [1, 2]
    assert 0.2 < asked.recall.mean < 1
    assert (plain.recall, plain.recall_unmeasured) == (None, NOT_ASKED)
    assert (dense.recall, dense.recall_unmeasured) == (None, NOTHING_SPARSE)
