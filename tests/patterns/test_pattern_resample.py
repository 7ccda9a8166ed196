"""Profiles on another grid, with other blocks or steps."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_profiles import LAYOUTS, make_header, make_table, profiles

from dit_sparse.layout import TokenLayout, pack_bits, unpack_bits
from dit_sparse.orderings import AXIS_ORDERS, axis_order
from dit_sparse.patterns import DENSE, MASK, OBSERVED, SKIP, Profile, ProfileError, ProfileHeader, resample
from dit_sparse.patterns.checks import block_counts, check_header, check_table, layout_of
from dit_sparse.patterns.resample_masks import carry_masks
from dit_sparse.patterns.resample_scores import SAMPLES, Blocks, GridChange


def masked_profile(layout, masks, block=(8, 8), axes=0, constant=0.0):
    """One step group, one layer, heads with these masks ``[H, nQ, nK]``, their density that of the masks."""
    header = make_header(layout, ((2, 10),), 1, len(masks), block)
    table = make_table(header, kinds=(MASK,))
    table.density[0, 0] = masks.float().mean(dim=(1, 2))
    table.axes.fill_(axes)
    table.constant.fill_(constant)
    table.masks[0, 0] = pack_bits(masks)
    check_table(table, header)
    return Profile(header, table)


def mask_of(profile):
    """Bool ``[H, nQ, nK]`` of such a profile."""
    grid = profile.header.grid
    tokens = grid.frames * grid.height * grid.width + grid.text_tokens
    return unpack_bits(profile.table.masks[0, 0], -(-tokens // grid.block_size[1]))


def band(layout, block, width):
    """Bool ``[nQ, nK]``: blocks whose centres are within a share of the sequence, and what is forced."""
    places = [(torch.arange(n) + 0.5) / n for n in block_counts(layout, block)]
    return ((places[0][:, None] - places[1]).abs() < width) | Blocks(layout, block).forced()


@settings(max_examples=60)
@given(profiles(), LAYOUTS, st.tuples(st.integers(1, 20), st.integers(1, 20)), st.integers(1, 40))
def test_every_result_is_a_valid_profile(made, layout, block, steps):
    found = resample(Profile(*made), layout, block, steps)
    check_header(found.header)
    assert ProfileHeader.model_validate_json(found.header.model_dump_json(), strict=True) == found.header
    check_table(found.table, found.header)
    assert found.header.grid.block_size == block and found.header.schedule.num_steps == steps
    assert found.header is made[0] or found.header.figures.error is None
    new, n_k = Blocks(layout, block), block_counts(layout, block)[1]
    if new == Blocks(layout_of(made[0].grid), made[0].grid.block_size):
        return
    for (group, layer), bits in found.table.masks.items():
        masks = unpack_bits(bits, n_k)
        assert (masks | ~new.forced()).all()
        density = found.table.density[group, layer, found.table.kind[group, layer] == MASK]
        torch.testing.assert_close(masks.float().mean(dim=(1, 2)), density)


@given(profiles(), st.booleans())
@settings(max_examples=30)
def test_the_own_run_is_the_identity(made, told):
    profile = Profile(*made)
    grid = profile.header.grid
    layout = TokenLayout(grid.frames, grid.height, grid.width, grid.text_tokens, grid.text_position)
    steps = profile.header.schedule.num_steps if told else None
    assert resample(profile, layout, grid.block_size, steps) is profile


def test_density_follows_the_rule_of_the_head():
    """d - c / N + c / M, clamped; dense and skipped heads stay."""
    header = make_header(TokenLayout(3, 4, 5), ((0, 4),), 1, 7)
    table = make_table(header, kinds=(DENSE,))
    table.kind[0, 0] = torch.tensor([3, 4, 5, 5, DENSE, SKIP, OBSERVED])
    table.axes.zero_()
    table.shape[0, 0, 0] = 0.5
    table.density[0, 0] = torch.tensor([0.5, 0.5, 0.9, 0.1, 1.0, 0.25, 0.5])
    table.constant[0, 0] = torch.tensor([0.0, 15.0, 60.0, 60.0, 30.0, 30.0, 15.0])
    half, double = (
        resample(Profile(header, table), TokenLayout(3, 4, width), (8, 8), 4) for width in (3, 10)
    )
    # 60 tokens become 36 and 120: 15 tokens more of a row of 60 are 0.25, of 36 are 0.41667, of 120 0.125.
    torch.testing.assert_close(
        half.table.density[0, 0], torch.tensor([0.5, 2 / 3, 1.0, 0.1 + 2 / 3, 1, 0.25, 2 / 3])
    )
    torch.testing.assert_close(
        double.table.density[0, 0], torch.tensor([0.5, 0.375, 0.4, 1 / 15, 1, 0.25, 0.375])
    )
    assert double.header.figures.density == pytest.approx(double.table.density.double().mean().item())
    assert torch.equal(double.table.shape, table.shape) and torch.equal(double.table.constant, table.constant)


@pytest.mark.parametrize("axes", range(6))
@pytest.mark.parametrize("text", [(0, "none"), (13, "first"), (13, "last")])
def test_scores_count_tokens(axes, text):
    """Against a loop over tokens: shares of blocks by relative place, sampled pairs by distance."""
    old, new = Blocks(TokenLayout(3, 7, 5, *text), (8, 6)), Blocks(TokenLayout(4, 5, 9, *text), (10, 7))
    change, name = GridChange(old, new), AXIS_ORDERS[axes]
    sequence, was = (
        [
            (token // (grid[1] * grid[2]), token // grid[2] % grid[1], token % grid[2])
            for token in axis_order(grid, name, torch.device("cpu")).tolist()
        ]
        for grid in (new.layout.grid, old.layout.grid)
    )

    def stands_at(token):
        return tuple(int((c + 0.5) / n * m) for c, n, m in zip(token, new.layout.grid, old.layout.grid))

    def block(token, axis):
        whole = 105 // old.size[axis] if text[0] else -(-105 // old.size[axis])
        return min(was.index(token) // old.size[axis], whole - 1)

    for axis in (0, 1):
        expected = torch.zeros(new.counts[axis], old.counts[axis])
        for place, token in enumerate(sequence):
            expected[place // new.size[axis], block(stands_at(token), axis)] += 1
        expected /= expected.sum(dim=1, keepdim=True).clamp(min=1)
        torch.testing.assert_close(change.shares(name, axis).to_dense(), expected)

    pairs, video = change.distant_pairs(name), new.layout.video_tokens
    samples = [[int((s + 0.5) / SAMPLES * n) for s in range(SAMPLES)] for n in new.size]
    for i, j in ((0, 0), (3, 5), (12, 20), (17, 24), (17, 0)):  # whole blocks of video
        assert (i + 1) * 10 <= video and (j + 1) * 7 <= video
        expected = []
        for s, r in product(*samples):
            q, k = sequence[i * 10 + s], sequence[j * 7 + r]
            at = stands_at(q)
            moved = [min(max(a + c - b, 0), n - 1) for a, b, c, n in zip(at, q, k, old.layout.grid)]
            expected.append(block(at, 0) * old.counts[1] + block(tuple(moved), 1))
        assert pairs[:, i, j].tolist() == expected


@pytest.mark.parametrize("axes", range(6))
@pytest.mark.parametrize("new", [TokenLayout(9, 16, 16), TokenLayout(5, 12, 10), TokenLayout(7, 24, 21)])
@pytest.mark.parametrize("width", [0.04, 0.15])
def test_a_diagonal_band_stays_one(axes, new, width):
    """In every axis order, as dense as before. Along an axis of few tokens a band cannot keep its width to
    less than one of the old tokens: two new frames in the place of an old one attend to each other."""
    old = TokenLayout(5, 16, 16)
    profile = masked_profile(old, band(old, (8, 8), width)[None], axes=axes)
    mask = mask_of(resample(profile, new, (8, 8), 10))[0]
    assert mask.float().mean().item() == pytest.approx(profile.table.density.item(), rel=0.1)
    slowest = "THW".index(AXIS_ORDERS[axes][0])
    places = (torch.arange(len(mask)) + 0.5) / len(mask)
    assert (places[:, None] - places).abs()[mask].max() < width + 1 / old.grid[slowest] + 2 / len(mask)
    core = band(new, (8, 8), width / 2)
    assert (mask & core).sum() > 0.9 * core.sum()
    if new.grid[slowest] == old.grid[slowest]:
        assert (mask & band(new, (8, 8), width)).sum() > 0.85 * mask.sum()


@pytest.mark.parametrize("text", [(0, "none"), (20, "first"), (20, "last")])
def test_patterns_stay_where_they_are(text):
    """Vertical stripes, stripes beside the diagonal and a local pattern: the kept area is where it was, in
    relative coordinates."""
    old, new, block = TokenLayout(4, 16, 16, *text), TokenLayout(4, 20, 12, *text), (8, 8)

    def drawn(layout):
        n_q, n_k = block_counts(layout, block)
        q, k = (torch.arange(n) * 8 / layout.video_tokens for n in (n_q, n_k))
        stripe = ((k > 0.3) & (k < 0.4))[None].expand(n_q, -1)
        beside = ((q[:, None] - k).abs() - 0.5).abs() < 0.06
        local = (q[:, None] * 4).floor() == (k * 4).floor()
        return torch.stack([stripe, beside, local]) | Blocks(layout, block).forced()

    found = resample(masked_profile(old, drawn(old)), new, block, 10)
    mask, ideal = mask_of(found), drawn(new)
    overlap = (mask & ideal).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))
    assert (overlap > 0.85).all(), overlap
    density = mask.float().mean(dim=(1, 2))
    torch.testing.assert_close(density, drawn(old).float().mean(dim=(1, 2)), rtol=0.1, atol=0)


@pytest.mark.parametrize("constant", [0.0, 40.0, 150.0])
@pytest.mark.parametrize("new", [TokenLayout(4, 24, 20), TokenLayout(2, 16, 12)])
def test_masks_have_the_density_of_the_rule(constant, new):
    """Random masks, without structure; met to one pair where no more is forced."""
    old = TokenLayout(3, 16, 16)
    n = block_counts(old, (8, 8))[0]
    rng = torch.Generator().manual_seed(0)
    masks = torch.rand(4, n, n, generator=rng) < torch.tensor([0.2, 0.3, 0.5, 0.8])[:, None, None]
    profile = masked_profile(old, masks | Blocks(old, (8, 8)).forced(), constant=constant)
    found = resample(profile, new, (8, 8), 10)
    rule = profile.table.density[0, 0] - constant / old.num_tokens + constant / new.num_tokens
    forced = Blocks(new, (8, 8)).forced().float().mean()
    expected = rule.clamp(max=1.0).clamp(min=forced.item())
    got = mask_of(found).float().mean(dim=(1, 2))
    torch.testing.assert_close(got, expected, rtol=0, atol=1 / mask_of(found)[0].numel())
    torch.testing.assert_close(got, found.table.density[0, 0])


def test_a_band_is_thinned_from_its_edges():
    """Where the rule takes density away, the middle of the band stays."""
    layout = TokenLayout(4, 16, 16)
    wide = band(layout, (8, 8), 0.3)
    change = GridChange(Blocks(layout, (8, 8)), Blocks(TokenLayout(6, 20, 12), (8, 8)))
    bits, kept = carry_masks(pack_bits(wide[None]), [0], [0.3], change)
    mask = unpack_bits(bits, 180)[0]
    assert kept[0] == pytest.approx(0.3, abs=1e-4)
    assert (mask & band(TokenLayout(6, 20, 12), (8, 8), 0.165)).sum() / mask.sum() > 0.95


def test_pairs_are_added_beside_kept_ones():
    """Where the rule adds density, a stripe far from the diagonal grows before anything else does."""
    old, new = Blocks(TokenLayout(4, 16, 16), (8, 8)), Blocks(TokenLayout(4, 20, 16), (8, 8))
    stripe = old.forced()
    stripe[:, 100:104] = True
    before = carry_masks(pack_bits(stripe[None]), [0], [stripe.float().mean().item()], GridChange(old, new))
    after = carry_masks(
        pack_bits(stripe[None]), [0], [stripe.float().mean().item() + 2 / 160], GridChange(old, new)
    )
    added = unpack_bits(after[0], 160)[0] & ~unpack_bits(before[0], 160)[0]
    columns = added.float().mean(dim=0).topk(2).indices.tolist()
    assert added.sum() == pytest.approx(320, abs=2)
    assert all(120 <= column <= 134 for column in columns), columns


def test_other_blocks_cover_the_same_pairs():
    """Blocks of half the size: every old pair becomes four new ones."""
    layout = TokenLayout(4, 8, 8)
    rng = torch.Generator().manual_seed(1)
    mask = (torch.rand(1, 16, 16, generator=rng) < 0.3) | torch.eye(16, dtype=torch.bool)
    found = resample(masked_profile(layout, mask, (16, 16)), layout, (8, 8), 10)
    assert torch.equal(mask_of(found), mask.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_text_does_not_leak_into_the_video():
    """The rows and columns of text are full because they are forced: video near the text is not."""
    old, new = TokenLayout(4, 8, 8, 20, "last"), TokenLayout(4, 16, 8, 20, "last")
    blocks = Blocks(old, (24, 24))  # the block at the border holds 16 tokens of video and 8 of text
    found = resample(masked_profile(old, blocks.forced()[None], (24, 24)), new, (24, 24), 10)
    whole = 512 // 24
    video = mask_of(found)[0, :whole, :whole]
    # The density asks for more pairs than are forced here; they go to the diagonal, as in the old video.
    assert video.sum() > 2 * whole
    assert video[-1].float().mean() < 0.5 and video[:, -1].float().mean() < 0.5


@pytest.mark.parametrize(
    ("layout", "block", "steps", "message"),
    [
        (TokenLayout(1, 70_000, 1), (8, 8), 10, "the grid to resample to does not fit: height is 70000"),
        (TokenLayout(600, 600, 600), (8, 8), 10, "216000000 tokens"),
        (TokenLayout(3, 4, 5), (0, 8), 10, "block_size"),
        (TokenLayout(3, 4, 5), (8, 8), 0, "num_steps is 0"),
        (TokenLayout(3, 4, 5), (8, 8), 20_000, "num_steps is 20000"),
    ],
)
def test_runs_that_no_profile_can_hold(layout, block, steps, message):
    header = make_header()
    with pytest.raises(ProfileError, match=message):
        resample(Profile(header, make_table(header)), layout, block, steps)
