"""SALE keeps blocks by their strongest element, against what is attended exactly."""

import pytest
import torch
from pattern_problems import built, dense, forced_of, layout_of, mask_of, planned, random_qkv

LAYOUT = layout_of((2, 8, 16))


def needle(block=16, key=100, weight=5.0):
    """Every query finds one strong key, in a block whose other keys repel: no mean shows it."""
    q = torch.ones(1, 256, 1, 16)
    k = 0.3 * torch.randn(1, 256, 1, 16, generator=torch.Generator().manual_seed(2))
    first = key // block * block
    k[:, first : first + block] -= 1.0
    k[:, key] = weight
    return q, k, torch.randn(1, 256, 1, 16, generator=torch.Generator().manual_seed(3))


def test_one_strong_key_in_a_weak_block_is_found():
    qkv = needle()
    others = torch.arange(16) != 100 // 16
    sale = mask_of(built("sale", density=0.125), LAYOUT, qkv)[0, 0]
    assert sale[others, 100 // 16].all()
    pooled = mask_of(built("minference", density=0.125, pattern="block_sparse"), LAYOUT, qkv)[0, 0]
    assert not pooled[others, 100 // 16].any(), "the means show it too: the needle proves nothing"
    out = planned(built("sale", density=0.125), LAYOUT, qkv)[0]
    exact = dense(*qkv)
    assert (out - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("tau", [0.5, 0.05, 0.005])
@pytest.mark.parametrize(("text", "position"), [(0, "none"), (21, "first"), (21, "last")])
def test_tau_is_a_weight_in_units_of_the_local_part(tau, text, position):
    """Against the rule in exact logits: they may differ only where 4 bits cannot tell."""
    layout = layout_of((2, 8, 16), text, position)
    q, k, _ = qkv = random_qkv(layout, batch=2)
    mask = mask_of(built("sale", tau=tau), layout, qkv)
    forced = forced_of(layout, False)
    n = layout.num_tokens
    rows = torch.arange(n) // 16
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) * 8**-0.5
    local = logits.masked_fill(~forced[rows][:, rows], -torch.inf).logsumexp(-1, keepdim=True)
    padded = torch.nn.functional.pad(logits - local, (0, -n % 16, 0, -n % 16), value=-torch.inf)
    margin = padded.unflatten(3, (-1, 16)).unflatten(2, (-1, 16)).amax(dim=(3, 5))
    wanted = (margin >= torch.tensor(tau).log()) | forced
    unsure = (margin - torch.tensor(tau).log()).abs() < 1.0
    assert torch.equal(mask | unsure, wanted | unsure)
    assert (mask & ~forced).any(), "only forced pairs prove nothing"
    assert (mask == wanted).float().mean() > 0.9


def test_a_smaller_tau_keeps_more():
    kept = [mask_of(built("sale", tau=tau), LAYOUT).sum().item() for tau in (1.0, 0.1, 0.01, 1e-9)]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1] == 2 * 16 * 16


@pytest.mark.parametrize("scope", ["row", "head", "layer"])
def test_every_scope_has_its_own_tau(scope):
    q, k, v = random_qkv(LAYOUT)
    q[:, :, 1] *= 3.0  # a sharp head: elements far above its local part
    mask = mask_of(built("sale", density=0.4, scope=scope), LAYOUT, (q, k, v))
    per_head = mask.float().mean(dim=(0, 2, 3))
    if scope == "layer":
        assert per_head[1] > per_head[0] + 0.05
        assert per_head.mean() == pytest.approx(0.4, abs=0.01)
    else:
        torch.testing.assert_close(per_head, torch.full((2,), 0.4), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"tau": 0.0}, "tau must be > 0, got 0.0"),
        ({"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        ({"scope": "model"}, "scope must be"),
        ({"ordering": "clusters"}, "has no diagonal: use 'raster'"),
        ({"ordering": "zigzag"}, "unknown ordering 'zigzag'"),
    ],
    ids=str,
)
def test_bad_fields_are_refused(fields, hint):
    with pytest.raises(ValueError, match=hint):
        built("sale", **fields)
