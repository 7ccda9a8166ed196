"""What all methods that learn from dense attention share: budgets, text, batches, determinism, no host
reads."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import dense, densities, random, run
from torch.utils._python_dispatch import TorchDispatchMode

from dit_sparse.engine import observed_attention, sparse_attention
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.state import LayerState

MODEL = ModelInfo("wan", 4, 16)
NAMES = ("adaspa", "mosaic", "paro", "rettention", "sparse_vdit")
names = pytest.mark.parametrize("name", NAMES)
LAYOUTS = (
    TokenLayout(4, 7, 9),
    TokenLayout(3, 9, 8, 23, "first"),
    TokenLayout(3, 9, 8, 23, "last"),
    TokenLayout(1, 13, 16),
)


def built(name, density, **fields):
    always = {"dense_steps": 0, "min_tokens": 0, "block_size": 16}
    return make_method(name, density=density, **(always | fields)).build(MODEL)


@settings(max_examples=12)
@given(st.floats(0.35, 0.95), st.integers(0, 99), st.sampled_from(LAYOUTS), st.sampled_from(NAMES))
def test_density_is_met(density, seed, layout, name):
    x = random(layout.num_tokens, heads=4, batch=2, seed=seed, sharp=2.0)
    _, runtime = run(built(name, density), x, layout, 3)
    assert densities(runtime)[0] == pytest.approx(density, rel=0.1)


@names
def test_density_one_is_dense_and_nothing_is_observed(name):
    layout = LAYOUTS[1]
    x = random(layout.num_tokens, batch=2)
    out, runtime = run(built(name, 1.0), x, layout, 3)
    assert densities(runtime) == [1.0] * 3
    for step in out:
        torch.testing.assert_close(step.double(), dense(*x)[0], rtol=1e-4, atol=1e-5)


@names
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_runs_repeat_and_samples_do_not_influence_one_another(name, layout):
    x = random(layout.num_tokens, heads=4, batch=2, sharp=2.0)
    method = built(name, 0.4)
    first, again = (run(method, x, layout, 4)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    for i in range(2):
        alone, _ = run(method, tuple(t[i : i + 1] for t in x), layout, 4)
        torch.testing.assert_close(alone[3], first[3][i : i + 1], rtol=1e-5, atol=1e-6)
    assert (first[3] - dense(*x)[0]).abs().max() > 1e-3, "it is sparse"


@names
@pytest.mark.parametrize("layout", LAYOUTS[1:3], ids=str)
def test_text_is_computed_in_full(name, layout):
    x = random(layout.num_tokens, heads=4, sharp=2.0)
    method = built(name, 0.5, **({"growth": 0.0} if name == "rettention" else {}))
    out, _ = run(method, x, layout, 3)
    text = slice(layout.text_start, layout.text_start + 23)
    torch.testing.assert_close(out[1][:, text].double(), dense(*x)[0][:, text], rtol=2e-3, atol=2e-3)


@names
def test_text_columns_are_kept(name):
    """Where all of the attention goes to the text, nothing is lost."""
    layout = LAYOUTS[2]
    q, k, v = random(layout.num_tokens, heads=4)
    q[..., 0], k[..., 0] = 20.0, -20.0
    k[:, layout.text_start :, :, 0] = 20.0
    out, _ = run(built(name, 0.4), (q, k, v), layout, 3)
    torch.testing.assert_close(out[1].double(), dense(q, k, v)[0], rtol=2e-3, atol=2e-3)


class NoHostReads(TorchDispatchMode):
    """Raises where a tensor's value reaches the host or decides a shape."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in self.FORBIDDEN or any(i is not None and i.dtype == torch.bool for i in indices):
            raise AssertionError(f"{name} reads the device")
        return function(*args, **(kwargs or {}))


def masked_attention(q, k, v, block_map, *, scale, return_lse=False, **options):
    """Block-sparse attention that reads nothing, unlike the CPU kernel, which reads the block counts."""
    size_q, size_k = block_map.block_size
    mask = block_map.to_mask().repeat_interleave(size_q, -2).repeat_interleave(size_k, -1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    logits = (q @ k.mT * scale).masked_fill(~mask[..., : q.shape[2], : k.shape[2]], -torch.inf)
    lse = logits.logsumexp(-1)
    out = (logits.softmax(-1).nan_to_num(0.0) @ v).transpose(1, 2)
    return (out, lse) if return_lse else out


@names
@pytest.mark.parametrize("layout", LAYOUTS[:3], ids=str)
def test_no_step_waits_for_the_device(name, layout, monkeypatch):
    for home in ("", ".dense", ".mask_error"):
        module = importlib.import_module(f"dit_sparse.kernels{home}")
        monkeypatch.setattr(module, "block_sparse_attention", masked_attention)
    x = random(layout.num_tokens, heads=4, sharp=2.0)
    method, state = built(name, 0.4), LayerState()
    calls = [(0, observed_attention), (1, sparse_attention), (2, sparse_attention), (3, sparse_attention)]
    with NoHostReads():
        for step, attend in calls:
            attend(*x, method=method, context=method.context(layout, Site(0, step, 4), state, head_dim=16))
    with pytest.raises(AssertionError, match="reads the device"), NoHostReads():
        float(x[0].sum())
