"""One budget for all layers: the common cost, the budget over drifting steps, state, pipelines."""

import pytest
import torch
from pattern_problems import layout_of, random_qkv
from test_pattern_contract import NoReading
from tiny import FAMILIES, run

import dit_sparse
from dit_sparse.context import PlanContext
from dit_sparse.layout import Site
from dit_sparse.orderings import TokenOrder
from dit_sparse.selectors import SelectionInput, TopK, forced_pairs
from dit_sparse.selectors.model_budget import spend_at
from dit_sparse.selectors.spend import spend
from dit_sparse.state import State

LAYOUT = layout_of((5, 8, 8))
BLOCKS, LAYERS = 20, 3


def problem(state, step, layer, layout=LAYOUT, batch=1, branch="conditional"):
    q, k, v = random_qkv(layout, batch=batch)
    site = Site(layer, step, 9, branch)
    layer_state = state.layer(site)
    context = PlanContext(layout, site, 1.0, (16, 16), layer_state)
    forced = forced_pairs(layout.num_tokens, layout.text_start, 0, (16, 16), q.device)
    return SelectionInput(q, k, v, TokenOrder(), forced, 0, context)


def costs(step, batch=1, drift=0.0, seed=0):
    """Costs of every layer at a step: layer 0 is the cheapest by far, all of them drift."""
    generator = torch.Generator().manual_seed(seed)
    base = [torch.randn(batch, 2, BLOCKS, BLOCKS, generator=generator) + 1.5 * i for i in range(LAYERS)]
    noise = torch.Generator().manual_seed(100 + step)
    return [x + drift * step + 0.1 * bool(drift) * torch.randn(x.shape, generator=noise) for x in base]


def generation(steps, density=0.3, batch=1, drift=0.0, state=None, seed=0):
    """Masks ``[step][layer]``."""
    state = state or State()
    return [
        [
            spend_at(problem(state, step, layer, batch=batch), cost, density, "model")
            for layer, cost in enumerate(costs(step, batch, drift, seed))
        ]
        for step in range(steps)
    ]


def test_from_the_second_step_on_all_layers_share_one_cost():
    masks = generation(3)
    forced = torch.eye(BLOCKS, dtype=torch.bool)
    for layer, cost in enumerate(costs(0)):
        assert torch.equal(masks[0][layer], spend(cost, forced, 0.3, "layer")), "the first knows no others"
    first = [
        torch.zeros_like(x, dtype=torch.bool).scatter_(-1, x.argmin(-1, keepdim=True), True) | forced
        for x in costs(1)
    ]
    ranked = torch.cat([x.masked_fill(f, -torch.inf).flatten() for x, f in zip(costs(1), first)])
    cut = ranked.sort().values[round(0.3 * len(ranked)) - 1]
    for step in (1, 2):
        for mask, cost, kept in zip(masks[step], costs(step), first):
            expected = (cost <= cut) | kept
            assert (mask != expected).float().mean() < 0.005
    shares = [mask.float().mean().item() for mask in masks[1]]
    assert shares[0] > 2 * shares[1] > 2 * shares[2]


@pytest.mark.parametrize("drift", [0.0, -0.3, 0.3])
@pytest.mark.parametrize("density", [0.15, 0.3, 0.8])
def test_the_mean_over_layers_and_steps_meets_the_budget(density, drift):
    masks = generation(9, density, drift=drift)
    by_step = torch.tensor([[mask.float().mean() for mask in step] for step in masks]).mean(1)
    assert by_step.mean().item() == pytest.approx(density, rel=0.1)
    if drift == 0.0:
        torch.testing.assert_close(by_step, torch.full_like(by_step, density), rtol=0.02, atol=0.002)


def test_samples_have_budgets_of_their_own():
    together = generation(3, batch=2)
    state = State()
    for step in range(3):
        for layer, cost in enumerate(costs(step, 2)):
            alone = spend_at(problem(state, step, layer), cost[1:], 0.3, "model")
            assert torch.equal(together[step][layer][1:], alone)


def test_branches_and_generations_do_not_share():
    state = State()
    first = generation(3, state=state)
    assert state.nbytes > 0
    other = spend_at(problem(state, 3, 0, branch="unconditional"), costs(3)[0], 0.3, "model")
    assert torch.equal(other, spend(costs(3)[0], torch.eye(BLOCKS, dtype=torch.bool), 0.3, "layer"))
    state.reset()
    assert state.nbytes == 0
    again = generation(3, state=state)
    assert all(torch.equal(a, b) for x, y in zip(first, again) for a, b in zip(x, y))


def test_another_shape_begins_anew():
    state = State()
    generation(2, state=state)
    small = layout_of((2, 8, 8))
    given = problem(state, 2, 0, small)
    cost = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(spend_at(given, cost, 0.4, "model"), spend(cost, given.forced, 0.4, "layer"))


def test_nothing_is_read_back():
    state = State()
    problems = [[problem(state, step, layer) for layer in range(LAYERS)] for step in range(3)]
    with NoReading():
        for step in range(3):
            for given, cost in zip(problems[step], costs(step)):
                spend_at(given, cost, 0.3, "model")


def test_density_one_keeps_everything():
    assert all(mask.all() for step in generation(2, density=1.0) for mask in step)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("draft", {"scope": "model", "score": "mean_key"}),
        ("svg2", {"scope": "model"}),
        ("svg_ear", {"scope": "model", "ordering": "raster", "estimate": "moments"}),
    ],
    ids=str,
)
def test_pipelines_meet_the_budget(family, name, fields):
    make, inputs = FAMILIES[family]
    pipe = make()
    always = {"dense_steps": 0, "dense_layers": [], "min_tokens": 0, "block_size": 8, "strict": True}
    with dit_sparse.sparse_attention(pipe, name, density=0.5, **fields, **always) as handle:
        latents = run(pipe, inputs())
        assert handle.stats().density_sparse_sites == pytest.approx(0.5, rel=0.1)
        assert torch.equal(latents, run(pipe, inputs())), "state leaked from one generation to the next"


def test_unknown_scopes_are_refused():
    with pytest.raises(ValueError, match="scope must be one of row, head, layer, model, got 'world'"):
        TopK(0.5, "world")
