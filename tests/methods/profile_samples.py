"""Hand-made profiles, and profiles for the tiny pipelines."""

from dataclasses import replace

import torch
from made_profiles import make_header, make_table

from dit_sparse.adapters import find_adapter
from dit_sparse.adapters.attach import transformers_of
from dit_sparse.kernels import PRECISIONS
from dit_sparse.layout import TokenLayout, pack_bits
from dit_sparse.methods import ModelInfo
from dit_sparse.methods.profiled import make_profiled
from dit_sparse.orderings import AXIS_ORDERS
from dit_sparse.patterns import KINDS, OBSERVED, PatternTable, Profile, model_facts
from dit_sparse.patterns.checks import check_header, check_table

MODEL = ModelInfo("wan", 1, 8)
NO_SHAPE = (0.0, 0.0, 0.0)
TINY_GRIDS = {
    "wan": TokenLayout(3, 5, 7),
    "cogvideox": TokenLayout(3, 5, 7, 16, "first"),
    "hunyuan_video": TokenLayout(3, 5, 7, 11, "last"),
}
"""Layouts of the pipelines in tiny.py at the inputs given there."""


def profile_of(
    rows, layout, *, precision=None, masks=None, constant=0.0, groups=None, block=16, correction="none"
):
    """A profile from ``rows[group][layer][head] = (kind, axes, density)``, and a shape for windows.

    ``precision[group][layer]`` is a name, ``masks[group, layer]`` bool ``[heads of kind mask, nQ, nK]``.
    Without ``groups`` there are four steps, shared evenly.
    """
    count, layers, heads = len(rows), len(rows[0]), len(rows[0][0])
    if groups is None:
        groups = tuple((4 * i // count, 4 * (i + 1) // count) for i in range(count))
    precision = precision or [["native"] * layers] * count
    parts = [[[(*head, NO_SHAPE)[:4] for head in layer] for layer in group] for group in rows]

    def column(place, value=lambda x: x):
        return [[[value(head[place]) for head in layer] for layer in group] for group in parts]

    owner = [[g if (g, x) in (masks or {}) else -1 for x in range(layers)] for g in range(count)]
    density = torch.tensor(column(2))
    table = PatternTable(
        kind=torch.tensor(column(0, KINDS.index), dtype=torch.uint8),
        axes=torch.tensor(column(1, AXIS_ORDERS.index), dtype=torch.uint8),
        density=density,
        constant=torch.full_like(density, constant),
        shape=torch.tensor(column(3)),
        precision=torch.tensor([[PRECISIONS.index(x) for x in g] for g in precision], dtype=torch.uint8),
        mask_group=torch.tensor(owner, dtype=torch.int16),
        masks={place: pack_bits(mask) for place, mask in (masks or {}).items()},
    )
    header = make_header(layout, groups, layers, heads, (block, block))
    return checked(Profile(header.model_copy(update={"correction": correction}), table))


def checked(profile):
    """The profile, which a file could hold."""
    check_header(profile.header)
    check_table(profile.table, profile.header)
    return profile


def with_facts(profile, **parts):
    """A profile with other facts in its header: ``with_facts(profile, model={"layers": 9})``."""
    changed = {
        name: getattr(profile.header, name).model_copy(update=fields) for name, fields in parts.items()
    }
    return replace(profile, header=profile.header.model_copy(update=changed))


def built(profile, allow_resample=False, **fields):
    """The method of a profile."""
    config = make_profiled(profile, ["transformer"], **fields)
    return replace(config, allow_resample=allow_resample).build(MODEL)


def profile_for(pipe, family, profile, component="transformer"):
    """A profile that says it is for this pipeline."""
    transformer, adapter = transformers_of(pipe)[component], find_adapter(transformers_of(pipe)[component])
    facts = model_facts(
        transformer,
        adapter.attention_layers(transformer),
        name=f"tiny {family}",
        family=adapter.family,
        component=component,
    )
    scheduler = type(pipe.scheduler).__name__
    return with_facts(profile, model=facts.model_dump(), schedule={"scheduler": scheduler})


AT_ONCE = tuple(range(OBSERVED))
"""Kinds that need no dense step."""


def random_profile(
    pipe, family, seed=0, groups=((1, 2), (2, 4)), component="transformer", precisions=True, kinds=AT_ONCE
):
    """A profile for a tiny pipeline in which every head does something else."""
    header = make_header(TINY_GRIDS[family], groups, 2, 2, (16, 16))
    table = make_table(header, seed, kinds)
    if not precisions:
        table = replace(table, precision=torch.zeros_like(table.precision))
    return profile_for(pipe, family, Profile(header, table), component)
