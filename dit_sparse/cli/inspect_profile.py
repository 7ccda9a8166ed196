"""``dit-sparse inspect``: what a pattern file holds, in the terminal and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option


def inspect_profile(
    file: Annotated[str, typer.Argument(help="Pattern file (.safetensors), or a shipped one's name.")],
    masks: Annotated[
        list[str] | None,
        Option("--mask", help="group,layer,head from 0: also draw this head's mask; repeatable."),
    ] = None,
    png: Annotated[Path | None, Option(help="Folder for pictures of the same.")] = None,
) -> None:
    """Show a pattern file: header, densities, predictions, a map of all heads; checks the whole file."""
    from rich.console import Console

    from dit_sparse.cli import profile_tables as tables
    from dit_sparse.patterns import ProfileError, load_profile
    from dit_sparse.presets import PATTERN_SUFFIX, find_profile
    from dit_sparse.report.profile_maps import head_pairs, parse_places

    path = find_profile(file)
    if path.suffix != PATTERN_SUFFIX:
        raise ProfileError(
            f"{file!r} is a preset of a method, not a pattern file: it is YAML, read it as it is"
        )
    profile = load_profile(path)
    places = parse_places(masks or (), profile.table.sizes)
    drawn = [(place, head_pairs(profile, place)) for place in places]
    written = []
    if png is not None:
        from dit_sparse.report.profile_drawings import write_pictures

        written = write_pictures(png, profile, places)
    console = Console()
    console.print(tables.header_table(profile.header))
    for section in (
        tables.prediction_table(profile.header),
        tables.kinds_table(profile),
        tables.layers_table(profile),
    ):
        console.print()
        console.print(section)
    for group in range(len(profile.header.schedule.groups)):
        console.print()
        for line in tables.head_map(profile, group, console.width):
            console.print(line)
    for place, pairs in drawn:
        console.print()
        for line in tables.mask_lines(profile, place, pairs):
            console.print(line)
    for picture in written:
        print(picture)
