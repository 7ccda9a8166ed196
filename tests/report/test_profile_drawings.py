"""Maps and masks of pattern files: what is drawn is what the profile says."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "patterns"))
from made_profiles import make_header, make_table

from dit_sparse.layout import TokenLayout, unpack_bits
from dit_sparse.patterns import DENSE, DYNAMIC, KINDS, MASK, OBSERVED, SKIP, Profile, ProfileError
from dit_sparse.report.profile_drawings import map_figure, mask_figure, write_pictures
from dit_sparse.report.profile_maps import (
    head_pairs,
    kind_shares,
    layer_densities,
    parse_places,
)

TEXT_LAST = TokenLayout(3, 4, 5, 5, "last")  # 65 tokens in 9 blocks; the video ends inside of one


def made(layout=TEXT_LAST, seed=0):
    header = make_header(layout, layers=4, heads=5)
    return Profile(header, make_table(header, seed))


def places(profile, kind):
    return [tuple(place) for place in (profile.table.kind == kind).nonzero().tolist()]


@pytest.mark.parametrize("layout", [TEXT_LAST, TokenLayout(3, 4, 5, 5, "first"), TokenLayout(3, 4, 5)])
def test_pairs_are_what_the_kinds_say(layout):
    profile = made(layout)
    count, video = -(-layout.num_tokens // 8), layout.video_tokens // 8
    forced = torch.eye(count, dtype=torch.bool)
    if layout.text_tokens:
        forced[video:] = True
        forced[:, video:] = True
    for place in places(profile, MASK):
        group, layer, head = place
        owner = int(profile.table.mask_group[group, layer])
        index = int((profile.table.kind[group, layer, :head] == MASK).sum())
        stored = unpack_bits(profile.table.masks[owner, layer][index], count)
        assert torch.equal(head_pairs(profile, place), stored | forced)
    assert all(head_pairs(profile, place).all() for place in places(profile, DENSE))
    text_rows = torch.zeros(count, count, dtype=torch.bool)
    if layout.text_tokens:
        # A block that the video shares is no row of text.
        text_rows[-(-layout.video_tokens // 8) if layout.video_tokens % 8 else video :] = True
    for place in places(profile, SKIP):
        kept = head_pairs(profile, place)
        assert not kept[:video].any()
        assert kept[text_rows].all()
    for kind, message in (
        (DYNAMIC, "is dynamic: .*every call"),
        (OBSERVED, "observed: .*dense attention"),
    ):
        with pytest.raises(ProfileError, match=message):
            head_pairs(profile, places(profile, kind)[0])


def test_shares_weigh_step_groups_by_their_length():
    profile = made()
    kind, density = profile.table.kind.numpy(), profile.table.density.double().numpy()
    weight = np.array([3 / 8, 5 / 8])  # groups of 3 and 5 steps
    shares = {share.kind: share for share in kind_shares(profile.header, profile.table)}
    assert set(shares) == {KINDS[k] for k in np.unique(kind)}
    spent = weight @ density.mean(axis=(1, 2))
    for name, share in shares.items():
        own = kind == KINDS.index(name)
        assert share.heads == pytest.approx(weight @ own.mean(axis=(1, 2)))
        assert share.heads * share.density == pytest.approx(weight @ (own * density).mean(axis=(1, 2)))
        assert share.pairs == pytest.approx(share.heads * share.density / spent)
    assert sum(share.pairs for share in shares.values()) == pytest.approx(1)
    assert layer_densities(profile.header, profile.table) == pytest.approx(weight @ density.mean(axis=2))


def test_the_map_holds_kinds_and_densities():
    profile = made()
    figure = map_figure(profile)
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert len(images) == 4  # choice and density of two step groups
    for g in range(2):
        assert np.array_equal(images[g].get_array(), profile.table.kind[g].numpy())
        assert np.array_equal(images[2 + g].get_array(), profile.table.density[g].numpy())
    assert [axis.get_title() for axis in figure.axes[:2]] == ["steps 2 to 4", "steps 5 to 9"]
    colours = {tuple(images[0].cmap(images[0].norm(k))) for k in range(len(KINDS))}
    assert len(colours) == len(KINDS)
    (legend,) = figure.legends
    listed = {
        text.get_text(): patch.get_facecolor() for text, patch in zip(legend.texts, legend.get_patches())
    }
    assert set(listed) == {KINDS[k] for k in profile.table.kind.unique().tolist()}
    assert all(
        colour == tuple(images[0].cmap(images[0].norm(KINDS.index(name)))) for name, colour in listed.items()
    )


def test_the_mask_is_drawn_with_its_density():
    profile = made()
    place = places(profile, MASK)[0]
    pairs = head_pairs(profile, place)
    (axis,) = mask_figure(profile, place, pairs).axes
    assert np.array_equal(axis.images[0].get_array(), pairs.float().numpy())
    assert f"{pairs.double().mean():.1%} of the pairs" in axis.get_title()
    assert f"layer {place[1]}, head {place[2]}" in axis.get_title()


def test_pictures_are_written_and_repeat_byte_for_byte(tmp_path):
    profile = made()
    place = places(profile, MASK)[0]
    first = write_pictures(tmp_path / "a", profile, [place])
    second = write_pictures(tmp_path / "b", profile, [place])
    assert [path.name for path in first] == ["map.png", "mask_{}_{}_{}.png".format(*place)]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    for kind in (DYNAMIC, OBSERVED):
        with pytest.raises(ProfileError, match=KINDS[kind]):
            write_pictures(tmp_path / "c", profile, places(profile, kind)[:1])
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("text", ["1,2", "a,0,0", "0,0,-1", "2,0,0", "0,4,0", "0,0,5"])
def test_places_outside_are_refused(text):
    with pytest.raises(ValueError, match=f"--mask.*{text}|{text}"):
        parse_places([text], (2, 4, 5))
    assert parse_places(["1, 3,4"], (2, 4, 5)) == [(1, 3, 4)]
