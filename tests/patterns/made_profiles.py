"""Headers and tables for the tests of pattern files: random, and sealed by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st

from dit_sparse.kernels import PRECISIONS
from dit_sparse.layout import TokenLayout, pack_bits
from dit_sparse.patterns import (
    KINDS,
    MASK,
    OBSERVED,
    SKIP,
    WINDOW,
    Calibration,
    Figures,
    GridFacts,
    ModelFacts,
    PatternTable,
    ProfileError,
    ProfileHeader,
    ScheduleFacts,
    load_profile,
)
from dit_sparse.patterns.checks import block_counts, layout_of
from dit_sparse.patterns.container import write_container
from dit_sparse.patterns.named_tensors import FIELDS
from dit_sparse.patterns.seal import METADATA_KEY, seal


def make_header(
    layout: TokenLayout | None = None,
    groups: tuple[tuple[int, int], ...] = ((2, 5), (5, 10)),
    layers: int = 2,
    heads: int = 3,
    block_size: tuple[int, int] = (8, 8),
) -> ProfileHeader:
    layout = layout or TokenLayout(3, 4, 5)
    return ProfileHeader(
        dit_sparse_version="0.1.0",
        recipe="balanced",
        model=ModelFacts(
            name="tiny-wan",
            transformer="WanTransformer3DModel",
            family="wan",
            config_sha256="ab" * 32,
            layers=layers,
            heads=heads,
            head_dim=64,
        ),
        grid=GridFacts(
            frames=layout.frames,
            height=layout.height,
            width=layout.width,
            text_tokens=layout.text_tokens,
            text_position=layout.text_position,
            block_size=block_size,
        ),
        schedule=ScheduleFacts(scheduler="UniPCMultistepScheduler", num_steps=groups[-1][1], groups=groups),
        calibration=Calibration(prompts=("ein roter Ball, „süß“", ""), seeds=(0, 1), guidance=4.0),
        figures=Figures(density=0.25, error=0.012345678901234567),
        command="dit-sparse profile",
        torch_version="2.11",
        diffusers_version="0.42.1",
        device="cpu",
    )


def make_table(
    header: ProfileHeader, seed: int = 0, kinds: tuple[int, ...] = tuple(range(len(KINDS)))
) -> PatternTable:
    """Random choices; about half of the layers share the masks of the first step group with all others."""
    rng = torch.Generator().manual_seed(seed)
    size = (len(header.schedule.groups), header.model.layers, header.model.heads)

    def drawn(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=rng).to(torch.uint8)

    kind = torch.tensor(kinds, dtype=torch.uint8)[drawn(len(kinds), *size).long()]
    axes = drawn(6, *size)
    n_q, n_k = block_counts(layout_of(header.grid), header.grid.block_size)
    mask_group = torch.full(size[:2], -1, dtype=torch.int16)
    masks = {}
    for layer in range(size[1]):
        shared = bool(drawn(2, 1))
        for group in range(size[0]):
            if shared and group > 0:
                kind[group, layer], axes[group, layer] = kind[0, layer], axes[0, layer]
            if count := int((kind[group, layer] == MASK).sum()):
                owner = mask_group[group, layer] = 0 if shared else group
                if owner == group:
                    masks[group, layer] = pack_bits(torch.rand(count, n_q, n_k, generator=rng) < 0.3)
    axes[kind == OBSERVED] = 0
    window = (kind == WINDOW)[..., None]
    density = 1 - torch.rand(size, generator=rng)
    return PatternTable(
        kind=kind,
        axes=axes,
        density=torch.where((kind == SKIP) & (density < 0.5), 0.0, density),
        constant=torch.rand(size, generator=rng) * layout_of(header.grid).num_tokens,
        shape=torch.where(window, 1 - torch.rand(*size, 3, generator=rng), 0.0),
        precision=drawn(len(PRECISIONS), *size[:2]),
        mask_group=mask_group,
        masks=masks,
    )


def assert_same(a: PatternTable, b: PatternTable) -> None:
    """Bit by bit."""
    for name, dtype in FIELDS.items():
        assert getattr(a, name).dtype == dtype
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.masks.keys() == b.masks.keys()
    assert all(torch.equal(a.masks[key], b.masks[key]) for key in a.masks)


def write_sealed(path: Path, facts: dict, tensors: dict[str, torch.Tensor], text: str | None = None) -> None:
    """A file whose checksums are right, whatever it holds."""
    with path.open("wb") as file:
        write_container(file, tensors, {METADATA_KEY: text or seal(facts, tensors)})


def refused(path: Path, message: str) -> None:
    """Loading is refused with this message, which names the file and is not too long to be read."""
    with pytest.raises(ProfileError, match=message) as caught:
        load_profile(path)
    assert type(caught.value) is ProfileError
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1500


LAYOUTS = st.builds(
    lambda grid, text, place: TokenLayout(*grid, text, place if text else "none"),
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 7)),
    st.integers(0, 9),
    st.sampled_from(["first", "last"]),
)
"""Grids that no block size divides, text first, last and none."""


@st.composite
def step_groups(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    edges = sorted(draw(st.sets(st.integers(0, 30), min_size=2, max_size=5)))
    return tuple(pairwise(edges))


@st.composite
def profiles(draw: st.DrawFn) -> tuple[ProfileHeader, PatternTable]:
    header = make_header(
        draw(LAYOUTS),
        draw(step_groups()),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 5)),
        draw(st.tuples(st.integers(1, 20), st.integers(1, 20))),
    )
    kinds = draw(st.sets(st.integers(0, len(KINDS) - 1), min_size=1))
    return header, make_table(header, draw(st.integers(0, 2**31)), tuple(kinds))
