"""``dit-sparse list``: methods, models, backends of this machine, shipped profiles."""

from __future__ import annotations

from pathlib import Path


def list_everything() -> None:
    """List methods, supported models, backends found on this machine, and shipped profiles."""
    from rich.console import Console
    from rich.table import Table

    import dit_sparse
    from dit_sparse import kernels
    from dit_sparse.adapters.loading import quiet
    from dit_sparse.patterns import ProfileError, read_header
    from dit_sparse.presets import PATTERN_SUFFIX, load_preset, shipped_profiles

    quiet()
    console = Console()

    def section(title: str, rows: list[tuple[str, str]], empty: str = "none") -> None:
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for row in rows or [(empty, "")]:
            table.add_row(*row)
        console.print(table)
        console.print()

    def about(path: Path) -> str:
        if path.suffix != PATTERN_SUFFIX:
            return f"preset of {load_preset(path).method}"
        try:
            header = read_header(path)
        except ProfileError as error:
            return str(error)
        model, grid, schedule = header.model, header.grid, header.schedule
        return (
            f"pattern file for {model.transformer}, {grid.frames}x{grid.height}x{grid.width} tokens, "
            f"{schedule.num_steps} steps of {schedule.scheduler}, density {header.figures.density:.2f}"
        )

    first_lines = [dit_sparse.describe(name).splitlines()[0] for name in dit_sparse.list_methods()]
    section(
        "Methods", [(name, text.strip()) for name, _, text in (line.partition(":") for line in first_lines)]
    )
    section("Models", [("tiny-wan", "embedded, the default")] + [
        (family, ", ".join(classes)) for family, classes in dit_sparse.supported_models().items()
    ])  # fmt: skip
    section("Backends", list(kernels.available_backends().items()))
    section(
        "Profiles",
        [(name, about(path)) for name, path in shipped_profiles().items()],
        empty="none shipped with this version",
    )
