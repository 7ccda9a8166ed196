"""SpargeAttention: blocks whose tokens differ are computed whole, the others by top-p over pooled scores."""

import pytest
import torch
from pattern_problems import built, layout_of, mask_of, random_qkv

from dit_sparse import kernels

BLOCKS, BLOCK = 12, 16
LAYOUT = layout_of((3, 8, 8))


def alike(odd_q=(), odd_k=(), heads=1, sharpness=2.0, seed=0):
    """q, k, v whose blocks hold near-equal tokens, but for the odd ones, whose tokens point anywhere."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(2, BLOCKS, 1, heads, 32, generator=generator)
    noise = 0.05 * torch.randn(2, BLOCKS, BLOCK, heads, 32, generator=generator)
    q, k = sharpness * (codes + noise)
    for x, odd in ((q, odd_q), (k, odd_k)):
        for i in odd:
            x[i] = sharpness * torch.randn(BLOCK, heads, 32, generator=generator)
    return [x.flatten(0, 1)[None] for x in (q, k, torch.zeros_like(k))]


@pytest.mark.parametrize("fields", [{}, {"density": 0.5}], ids=str)
def test_planted_blocks_of_unlike_tokens_are_kept(fields):
    qkv = alike(odd_q=(4,), odd_k=(7,), heads=2)
    mask = mask_of(built("sparge", top_p=0.1, **fields), LAYOUT, qkv)
    assert mask[0, :, 4].all()
    assert mask[0, :, :, 7].all()
    plain = mask_of(built("sparge", top_p=0.1, similarity=-1.0, **fields), LAYOUT, qkv)
    assert not plain[0, :, 4].all() or not plain[0, :, :, 7].all()


def test_the_others_are_top_p_over_the_pooled_scores_of_their_kind():
    q, k, v = alike(odd_k=(7,), heads=3)
    mask = mask_of(built("sparge", top_p=0.7), LAYOUT, [q, k, v])[0]
    means = [x[0].view(BLOCKS, BLOCK, 3, 32).double().mean(dim=1).transpose(0, 1) for x in (q, k)]
    scores = means[0] @ means[1].mT / 32**0.5
    scores[..., 7] = -torch.inf
    mass = scores.softmax(dim=-1)
    for head in range(3):
        for row in range(BLOCKS):
            expected, captured = {row, 7}, 0.0
            for column in mass[head, row].argsort(descending=True).tolist():
                if captured >= 0.7:
                    break
                expected.add(column)
                captured += mass[head, row, column].item()
            assert set(mask[head, row].nonzero().flatten().tolist()) == expected


def test_with_a_density_every_head_has_one_p():
    q, k, v = alike(heads=2)
    q[:, :, 0] *= 3.0
    mask = mask_of(built("sparge", density=0.4), LAYOUT, [q, k, v])[0]
    assert mask.float().mean(dim=(1, 2)).tolist() == pytest.approx([0.4, 0.4], abs=0.01)
    mass = kernels.pooled_scores(q, k, (BLOCK, BLOCK)).softmax(dim=-1)[0]
    ranked, columns = mass.sort(dim=-1, descending=True)
    before = torch.zeros_like(mass).scatter_(-1, columns, ranked.cumsum(-1) - ranked)
    free = ~torch.eye(BLOCKS, dtype=torch.bool) & (before > 0)  # the heaviest and the own block come first
    for head in range(2):
        kept, dropped = before[head][mask[head] & free[head]], before[head][~mask[head] & free[head]]
        assert kept.max() <= dropped.min()


def test_where_nothing_is_alike_the_guard_leaves_half_of_the_budget():
    layout = layout_of((4, 8, 8))
    q, k, v = random_qkv(layout, dim=32)
    assert (kernels.block_similarity(q, 16) < 0.3).all()
    assert mask_of(built("sparge"), layout, [q, k, v]).all(), "the paper's rule computes everything"
    mask = mask_of(built("sparge", density=0.3), layout, [q, k, v])
    assert mask.float().mean().item() == pytest.approx(0.3, abs=0.01)
    whole = mask.all(dim=-1).sum(dim=-1) + mask.all(dim=-2).sum(dim=-1)
    assert (whole * 16 <= 0.5 * 0.3 * 256 + 16).all()
    # The rest follows the scores: every row has its heaviest block.
    heaviest = kernels.pooled_scores(q, k, (16, 16)).argmax(dim=-1, keepdim=True)
    guarded = mask.all(dim=-2, keepdim=True)
    best = kernels.pooled_scores(q, k, (16, 16)).masked_fill(guarded, -torch.inf).argmax(-1, keepdim=True)
    assert (mask.gather(-1, heaviest) | mask.gather(-1, best)).all()


def test_keys_are_compared_without_their_common_part():
    """A large vector that all keys share changes no softmax, and must not make unlike blocks look alike."""
    q, k, v = alike(odd_k=(7,))
    shifted = k + 20 * torch.ones(32)
    assert (kernels.block_similarity(shifted, BLOCK) > 0.9).all()
    mask = mask_of(built("sparge", top_p=0.1), LAYOUT, [q, shifted, v])
    assert mask[0, 0, :, 7].all()
    assert torch.equal(mask, mask_of(built("sparge", top_p=0.1), LAYOUT, [q, k, v]))
