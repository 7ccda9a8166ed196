"""What a pattern file says as arrays: the pairs of a head, and sums by kind and by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_sparse.context import PlanContext
from dit_sparse.layout import Site
from dit_sparse.methods.profiled_parts import fixed_pairs
from dit_sparse.methods.profiled_rows import HeadRows
from dit_sparse.orderings import TokenOrder, forced_pairs
from dit_sparse.patterns import DYNAMIC, KINDS, OBSERVED, PatternTable, Profile, ProfileError, ProfileHeader
from dit_sparse.patterns.checks import layout_of
from dit_sparse.selectors import SelectionInput
from dit_sparse.state import LayerState

Place = tuple[int, int, int]
CHOSEN_IN_THE_RUN = {DYNAMIC: "at every call", OBSERVED: "where the run's dense attention is observed"}


@dataclass(frozen=True)
class KindShare:
    """Heads of one kind, over all layers of the sparse steps.

    Args:
        kind: one of :data:`~dit_sparse.patterns.KINDS`.
        heads: fraction of the heads, in [0, 1].
        density: mean fraction of pairs that they compute; those of dynamic and observed heads are what they
            are given.
        pairs: fraction of all computed pairs that are theirs, in [0, 1].
    """

    kind: str
    heads: float
    density: float
    pairs: float


def kind_shares(header: ProfileHeader, table: PatternTable) -> list[KindShare]:
    """The kinds that occur; step groups weigh by their lengths."""
    kind, density = table.kind.numpy(), table.density.double().numpy()
    weight = np.broadcast_to(group_weights(header)[:, None, None], kind.shape) / kind[0].size
    spent = float((weight * density).sum())
    found = []
    for index, name in enumerate(KINDS):
        if not (own := kind == index).any():
            continue
        heads, pairs = float(weight[own].sum()), float((weight * density)[own].sum())
        found.append(KindShare(name, heads, pairs / heads, pairs / spent if spent else 0.0))
    return found


def layer_densities(header: ProfileHeader, table: PatternTable) -> NDArray[np.float64]:
    """Mean fraction of pairs by layer over the sparse steps, ``[L]``."""
    return np.tensordot(group_weights(header), table.density.double().numpy().mean(axis=-1), axes=1)


def group_weights(header: ProfileHeader) -> NDArray[np.float64]:
    """Share of the sparse steps in every step group, ``[G]``, sum 1."""
    steps = np.array([last - first for first, last in header.schedule.groups], dtype=np.float64)
    return steps / steps.sum()


def parse_places(given: Sequence[str], sizes: Place) -> list[Place]:
    """ "group,layer,head" each, counted from 0.

    Args:
        given: as typed.
        sizes: (G, L, H) of the profile.

    Raises:
        ValueError: for what is no such place, or outside of the profile.
    """
    found = []
    for text in given:
        parts = text.split(",")
        if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f"--mask takes group,layer,head, counted from 0, such as 0,3,1: got {text!r}")
        place = (int(parts[0]), int(parts[1]), int(parts[2]))
        for name, index, size in zip(("step group", "layer", "head"), place, sizes):
            if index >= size:
                raise ValueError(f"--mask {text}: {name} {index} is not there, they are 0 to {size - 1}")
        found.append(place)
    return found


def head_pairs(profile: Profile, place: Place) -> Tensor:
    """Pairs that a head computes in a step group, bool ``[nQ, nK]`` in the head's own order of tokens.

    Drawn by the code that runs them, so it holds forced pairs and the bands of windows and radial rules.

    Args:
        profile: read from a file.
        place: (step group, layer, head).

    Raises:
        ProfileError: for a dynamic or observed head: its pairs are chosen in the run.
    """
    group, layer, head = place
    if (when := CHOSEN_IN_THE_RUN.get(kind := int(profile.table.kind[place]))) is not None:
        raise ProfileError(
            f"step group {group}, layer {layer}, head {head} is {KINDS[kind]}: it has no mask, its pairs are "
            f"chosen {when}; `dit-sparse inspect-attention` shows what calls look like"
        )
    header = profile.header
    layout, size, steps = layout_of(header.grid), header.grid.block_size, header.schedule
    site = Site(layer, steps.groups[group][0], steps.num_steps, transformer=header.model.component)
    context = PlanContext(layout, site, 1.0, size, LayerState(), num_layers=header.model.layers)
    tokens = layout.num_tokens
    forced = forced_pairs(tokens, layout.video_tokens, layout.text_tokens, size, torch.device("cpu"))
    # These pairs do not depend on what is attended to.
    nothing = torch.zeros(1, tokens, header.model.heads, 1)
    given = SelectionInput(nothing, nothing, nothing, TokenOrder(), forced, 0, context)
    return fixed_pairs(HeadRows(profile).row(context), given)[head]
