"""VMoBA: partitions cycle over the layers, and rows keep their own cells and those of largest gate."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_problems import built, forced_of, layout_of, mask_of, planned, random_qkv

from dit_sparse.orderings.partition import cell_size, run_means

PARTS = ((3, 1, 1), (1, 2, 3), (2, 2, 2))


def cells_of(plan, layout, parts):
    """Cell of every position of the reordered video tokens, by coordinates alone."""
    size = [-(-n // count) for n, count in zip(layout.grid, parts, strict=True)]
    order = plan.q_order[: layout.video_tokens]
    t, h, w = torch.unravel_index(order, layout.grid)
    return torch.stack([t // size[0], h // size[1], w // size[2]], dim=-1)


@settings(max_examples=20)
@given(st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9)), st.integers(0, 8))
def test_the_partition_cycles_and_cells_are_runs(grid, layer):
    layout = layout_of(grid)
    _, plan = planned(built("vmoba", parts=PARTS, density=0.5), layout, layer=layer)
    cells = cells_of(plan, layout, PARTS[layer % 3])
    changes = (cells[1:] != cells[:-1]).any(dim=-1).sum().item()
    assert changes + 1 == len(torch.unique(cells, dim=0))


def test_the_papers_cells():
    assert [cell_size((21, 45, 80), parts) for parts in built("vmoba").ordering.parts] == [
        (3, 45, 80),
        (21, 9, 10),
        (7, 15, 20),
    ]
    # 2 of 7, 10 of 40, 9 of 36.
    assert [round(built("vmoba").selector.top_k * n) for n in (7, 40, 36)] == [2, 10, 9]


def gates(q, k, plan, cells):
    """Gate of every query block and cell, and the cells that every block reaches into."""
    q, k = (x[0, plan.q_order].double() for x in (q, k))
    names = torch.unique_consecutive(cells, dim=0)
    member = (cells[:, None] == names).all(dim=-1)  # [N, C]
    key_means = torch.stack([k[member[:, c]].mean(dim=0) for c in range(len(names))])
    query_means = torch.stack([part.mean(dim=0) for part in q.split(16)])
    gate = torch.einsum("ihd,chd->hic", query_means, key_means)
    reach = torch.stack([part.any(dim=0) for part in member.split(16)])
    return gate, reach


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("grid", [(6, 8, 12), (5, 7, 11)])
def test_rows_keep_their_own_cells_and_those_of_largest_gate(grid, layer):
    layout = layout_of(grid)
    q, k, v = random_qkv(layout, heads=3, scale=3.0)
    _, plan = planned(built("vmoba", parts=PARTS, top_k=0.5), layout, [q, k, v], layer=layer)
    gate, reach = gates(q, k, plan, cells_of(plan, layout, PARTS[layer]))
    kept = max(1, round(0.5 * gate.shape[-1]))
    mask = plan.block_map.to_mask()[0]
    for head in range(3):
        for row in range(len(reach)):
            own = reach[row].nonzero().flatten().tolist()
            others = [c for c in gate[head, row].argsort(descending=True).tolist() if c not in own]
            chosen = own + others[: max(0, kept - len(own))]
            expected = reach[:, chosen].any(dim=-1)
            expected[row] = True
            assert torch.equal(mask[head, row], expected)


def test_global_threshold_keeps_the_largest_gates_of_the_head():
    layout = layout_of((6, 8, 12))
    q, k, v = random_qkv(layout, heads=2, scale=3.0)
    method = built("vmoba", parts=PARTS, selection="global_threshold", threshold=0.4)
    _, plan = planned(method, layout, [q, k, v], layer=1)
    gate, reach = gates(q, k, plan, cells_of(plan, layout, PARTS[1]))
    mask = plan.block_map.to_mask()[0]
    for head in range(2):
        scaled = (gate[head] - gate[head].min()) / (gate[head].max() - gate[head].min())
        pairs = [(float(scaled[i, c]), i, c) for i in range(len(reach)) for c in range(reach.shape[1])]
        own = [p for p in pairs if reach[p[1], p[2]]]
        others = sorted((p for p in pairs if not reach[p[1], p[2]]), reverse=True)
        expected = torch.eye(len(reach), dtype=torch.bool)
        total, spent = float(scaled.sum()), 0.0
        for weight, i, c in sorted(own, reverse=True) + others:
            if spent >= 0.4 * total and not reach[i, c]:
                break
            expected[i] |= reach[:, c]
            spent += weight
        assert torch.equal(mask[head], expected)


def test_a_planted_cell_is_found():
    """Every query looks for what one cell's keys have in common."""
    layout = layout_of((6, 8, 8))
    q, k, v = random_qkv(layout, heads=2, scale=0.3)
    q[..., 0] = 4.0
    t, _, _ = torch.unravel_index(torch.arange(384), layout.grid)
    k[:, t // 2 == 1, :, 0] += 2.0
    for selection in ("local_topk", "global_threshold"):
        # Two of three cells, the own one and the planted one.
        fields = {"density": 0.67, "selection": selection}
        _, plan = planned(built("vmoba", parts=((3, 1, 1),), **fields), layout, [q, k, v])
        there = (t[plan.q_order] // 2 == 1).view(-1, 16).all(dim=-1)
        assert there.sum() == 8
        assert plan.block_map.to_mask()[0, :, :, there].all()


@pytest.mark.parametrize("position", ["first", "last"])
def test_rows_have_equal_budgets_beside_text(position):
    layout = layout_of((6, 8, 8), 20, position)
    method = built("vmoba", parts=PARTS, density=0.4)
    for layer in range(3):
        mask = mask_of(method, layout, layer=layer)
        free = ~forced_of(layout, reordered=True).all(dim=-1)
        counts = mask[:, :, free].sum(dim=-1)
        assert counts.max() - counts.min() <= 1


def test_run_means():
    x = torch.randn(2, 20, 3, 4, generator=torch.Generator().manual_seed(0))
    means = run_means(x, (1, 7, 10))
    for i, rows in enumerate((slice(0, 1), slice(1, 8), slice(8, 18))):
        torch.testing.assert_close(means[:, :, i], x[:, rows].mean(dim=1))
