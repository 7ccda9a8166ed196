"""AdaSpa: the heaviest blocks by exact mass, equal counts per row, tiers of heads, a second search by old
log-sum-exp."""

import pytest
import torch
from planted import block_mass, dense, densities, groups, observed_steps, random, relative_error, run

from dit_sparse.layout import TokenLayout, unpack_bits
from dit_sparse.methods import AdaSpa, ModelInfo
from dit_sparse.selectors.observed import BITS, LSE

MODEL = ModelInfo("wan", 1, 16)
ALWAYS = {"dense_steps": 0, "min_tokens": 0, "block_size": 16}
LAYOUT = TokenLayout(4, 8, 8)
BLOCKS = 16


def carried(runtime):
    (state,) = runtime.state._layers.values()
    return unpack_bits(state.values[BITS], BLOCKS), state


def heaviest(mass, per_row):
    """The definition: own block, then the heaviest of the row."""
    own = torch.eye(BLOCKS, dtype=torch.bool)
    order = mass.masked_fill(own, 9.0).argsort(dim=-1, descending=True)[..., :per_row]
    return torch.zeros_like(mass, dtype=torch.bool).scatter_(-1, order, True)


def test_the_mask_is_the_heaviest_blocks_of_every_row():
    x = random(256, sharp=3.0, batch=2)
    _, runtime = run(AdaSpa(density=0.25, tier_recall=None, **ALWAYS).build(MODEL), x, LAYOUT, 2)
    mask, _ = carried(runtime)
    assert torch.equal(mask, heaviest(block_mass(x[0], x[1], 16), 4))
    assert densities(runtime) == [0.25]


def test_what_lies_in_few_blocks_is_exact():
    x = groups(LAYOUT, "W", "HW")
    out, _ = run(AdaSpa(density=0.26, tier_recall=None, **ALWAYS).build(MODEL), x, LAYOUT, 2)
    assert relative_error(out[1], dense(*x)[0]).max() < 2e-3


def test_heads_change_tiers_in_pairs():
    q, k, v = random(256, heads=5, dim=64)
    q[:, :, :2], k[:, :, :2], _ = groups(LAYOUT, "W", "W")  # two heads of five are concentrated
    q[:, :, 2:] *= torch.tensor([0.1, 0.2, 0.3])[:, None]
    _, runtime = run(AdaSpa(density=0.2, tier_recall=0.6, **ALWAYS).build(MODEL), (q, k, v), LAYOUT, 2)
    mask, _ = carried(runtime)
    mass = block_mass(q, k, 16)
    even = heaviest(mass, 3) & (mass > 0)
    recall = (mass * even).sum((-1, -2))[0] / BLOCKS
    assert (recall[:2] > 0.6).all() and (recall[2:] < 0.6).all(), "the test's own premise"
    per_head = mask[0].sum((-1, -2))
    total, own = round(0.2 * BLOCKS**2), BLOCKS
    swing = (total - own) // 2
    assert per_head.tolist() == [total - swing] * 2 + [total + swing, total + swing, total]
    counts = mask[0].sum(-1)
    assert (counts.amax(-1) - counts.amin(-1)).max() <= 1
    assert densities(runtime)[0] == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize("density", [0.5, 0.8, 0.95])
def test_tiers_never_ask_for_more_than_a_head_has(density):
    q, k, v = random(256, heads=4, dim=64)
    q[:, :, :2], k[:, :, :2], _ = groups(LAYOUT, "W", "W")
    _, runtime = run(AdaSpa(density=density, tier_recall=0.5, **ALWAYS).build(MODEL), (q, k, v), LAYOUT, 2)
    mask, _ = carried(runtime)
    assert densities(runtime)[0] == pytest.approx(density, abs=0.004)
    assert mask.sum((-1, -2)).min() < mask.sum((-1, -2)).max() <= BLOCKS**2


def test_the_second_search_takes_new_queries_and_the_old_normaliser():
    first, later = random(256, sharp=3.0), random(256, sharp=3.0, seed=1)
    method = AdaSpa(density=0.25, tier_recall=None, second_search=0.6, **ALWAYS).build(MODEL)
    _, runtime = run(method, [first] * 3 + [later] * 2, LAYOUT, 5)
    assert observed_steps(runtime) == [0], "the second search needs no dense step"
    mask, state = carried(runtime)
    old_lse = dense(*first)[1].half()
    expected = heaviest(block_mass(later[0], later[1], 16, old_lse), 4)
    assert torch.equal(mask, expected)
    assert not torch.equal(mask, heaviest(block_mass(first[0], first[1], 16), 4))
    assert LSE not in state.values, "it serves once"


def test_the_log_sum_exp_is_kept_only_where_it_will_serve():
    for fields, kept in (({}, True), ({"second_search": None}, False), ({"dense_steps": 4}, False)):
        method = AdaSpa(density=0.25, **(ALWAYS | fields)).build(MODEL)
        _, runtime = run(method, random(256), LAYOUT, 5 if fields else 2)
        assert (LSE in carried(runtime)[1].values) == kept
