"""What ``profile`` and ``inspect`` print: tables, and maps of heads and masks in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from dit_sparse.orderings import AXIS_ORDERS
from dit_sparse.patterns import DENSE, KINDS, SKIP, Profile, ProfileHeader
from dit_sparse.report.profile_maps import Place, kind_shares, layer_densities

STYLES = (
    "white on grey23",
    "black on grey85",
    "white on blue3",
    "white on green4",
    "black on orange1",
    "white on medium_violet_red",
    "black on dark_turquoise",
)
"""Of the kinds, in the order of KINDS."""
LETTERS = ("D", "-", "M", "W", "R", "Y", "O")
SHADES = " ░▒▓█"
MASK_CELLS = 40
"""Rows and columns of a mask in the terminal, at most."""


def header_table(header: ProfileHeader) -> Table:
    """For what a profile was made, from what, and how."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    model, grid, schedule, made = header.model, header.grid, header.schedule, header.calibration
    text = f", {grid.text_tokens} of text {grid.text_position}" if grid.text_tokens else ""
    pixels = " for {} frames of {} x {} pixels".format(*made.pixels) if made.pixels else ""
    groups = ", ".join(f"{first}-{last - 1}" for first, last in schedule.groups)
    table.add_row("recipe", header.recipe)
    table.add_row("correction", header.correction)
    table.add_row(
        "model",
        f"{model.name}: {model.transformer} ({model.component}), {model.layers} layers of {model.heads} "
        f"heads of {model.head_dim}",
    )
    table.add_row("config", f"SHA-256 {model.config_sha256[:16]}")
    table.add_row(
        "grid",
        f"{grid.frames} x {grid.height} x {grid.width} tokens{text}{pixels}, blocks of "
        f"{grid.block_size[0]} x {grid.block_size[1]}",
    )
    table.add_row(
        "steps", f"{schedule.num_steps} of {schedule.scheduler}; dense before {schedule.groups[0][0]}"
    )
    table.add_row("step groups", groups)
    for prompt, seed in zip(made.prompts, made.seeds):
        table.add_row("calibration", Text(f"{prompt or 'a prompt given as tensors'} (seed {seed})"))
    table.add_row(
        "made by",
        f"dit-sparse {header.dit_sparse_version}, torch {header.torch_version}, diffusers "
        f"{header.diffusers_version}, on {header.device}",
    )
    table.add_row("command", Text(header.command or "-"))
    return table


def prediction_table(header: ProfileHeader) -> Table:
    """What the profile is predicted to do."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    figures = header.figures
    table.add_row("density", f"{figures.density:.1%} of the block pairs, mean over the sparse steps")
    if figures.error is not None:
        table.add_row("layer error", f"{figures.error:.2%} of a layer's output, predicted, root mean square")
    if figures.output_error is not None:
        table.add_row(
            "output error",
            f"{figures.output_error:.2%} of the transformer's output, predicted, root mean square",
        )
    table.add_row(
        "speed-up",
        "not predicted: no cost table was given"
        if figures.attention_speedup is None
        else f"{figures.attention_speedup:.2f} x attention of the sparse steps, predicted",
    )
    table.add_row("cost table", figures.cost_table or "none: the density was the cost")
    return table


def kinds_table(profile: Profile) -> Table:
    """A row per kind that occurs."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("kind")
    for name in ("heads", "mean density", "share of the pairs"):
        table.add_column(name, justify="right")
    for share in kind_shares(profile.header, profile.table):
        index = KINDS.index(share.kind)
        kind = Text.assemble((f" {LETTERS[index]} ", STYLES[index]), f" {share.kind}")
        table.add_row(kind, f"{share.heads:.1%}", f"{share.density:.1%}", f"{share.pairs:.1%}")
    return table


def layers_table(profile: Profile) -> Table:
    """Density of every layer, over all sparse steps and by step group."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("layer", justify="right")
    table.add_column("density", justify="right")
    for first, last in profile.header.schedule.groups:
        table.add_column(f"{first}-{last - 1}", justify="right")
    by_group = profile.table.density.double().mean(dim=-1)
    for layer, mean in enumerate(layer_densities(profile.header, profile.table)):
        table.add_row(str(layer), f"{mean:.1%}", *(f"{value:.1%}" for value in by_group[:, layer].tolist()))
    return table


def head_map(profile: Profile, group: int, width: int) -> Iterator[Text]:
    """A line per layer with a cell per head: letter and colour of the kind, density in percent if it fits.

    Args:
        profile: to draw.
        group: step group.
        width: of the terminal, in characters.
    """
    _, layers, heads = profile.table.sizes
    kind, density = profile.table.kind[group].tolist(), profile.table.density[group].tolist()
    numbers = 6 + 4 * heads <= width
    first, last = profile.header.schedule.groups[group]
    yield Text(f"steps {first} to {last - 1}, a row per layer, a column per head", style="dim")
    for layer in range(layers):
        line = Text(f"{layer:4d}  ", no_wrap=True, overflow="crop")
        for k, d in zip(kind[layer], density[layer]):
            line.append(LETTERS[k] + (_percent(k, d) if numbers else ""), STYLES[k])
            if numbers:
                line.append(" ")
        yield line


def _percent(kind: int, density: float) -> str:
    """Two characters."""
    if kind in (DENSE, SKIP):
        return "  "
    return f"{min(99, round(100 * density)):2d}"


def mask_lines(profile: Profile, place: Place, pairs: Tensor) -> Iterator[Text]:
    """A head's pairs as shades; larger masks averaged.

    Args:
        profile: where the head is from.
        place: (step group, layer, head).
        pairs: bool ``[nQ, nK]``.
    """
    group, layer, head = place
    first, last = profile.header.schedule.groups[group]
    rows, columns = (min(MASK_CELLS, size) for size in pairs.shape)
    kind, order = int(profile.table.kind[place]), AXIS_ORDERS[int(profile.table.axes[place])]
    yield Text(
        f"layer {layer}, head {head}, steps {first} to {last - 1}: {KINDS[kind]}, order {order}, "
        f"{float(pairs.float().mean()):.1%} of {pairs.shape[0]} x {pairs.shape[1]} pairs",
        style="dim",
    )
    shown = adaptive_avg_pool2d(pairs.float()[None], (rows, columns))[0]
    for row in shown.tolist():
        # What is kept at all shows, and only what is kept whole is solid.
        levels = [0 if x <= 0 else 4 if x >= 1 else min(3, 1 + int(3 * x)) for x in row]
        yield Text("".join(SHADES[level] * 2 for level in levels), no_wrap=True, overflow="crop")


def print_profile(console: Console, profile: Profile) -> None:
    """Kinds and predictions, as ``profile`` ends."""
    console.print(kinds_table(profile))
    console.print()
    console.print(prediction_table(profile.header))


def recipes_table() -> Table:
    """The recipes, what they do, and the papers."""
    from dit_sparse.profiler import recipes

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("recipe", "what it does", "budget unasked", "source"):
        table.add_column(name, no_wrap=name == "recipe")
    for recipe in recipes().values():
        budget = "its own rule" if recipe.budget is None else f"{recipe.budget.name} {recipe.budget.value:g}"
        table.add_row(recipe.name, recipe.summary, budget, recipe.source or "-")
    return table
