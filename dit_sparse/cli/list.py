"""``dit-sparse list``: methods, models, backends of this machine, shipped profiles."""

from __future__ import annotations


def list_everything() -> None:
    """List methods, supported models, backends found on this machine, and shipped profiles."""
    from rich.console import Console
    from rich.table import Table

    import dit_sparse
    from dit_sparse import kernels
    from dit_sparse.adapters.loading import quiet
    from dit_sparse.presets import list_presets

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

    first_lines = [dit_sparse.describe(name).splitlines()[0] for name in dit_sparse.list_methods()]
    section(
        "Methods", [(name, text.strip()) for name, _, text in (line.partition(":") for line in first_lines)]
    )
    section("Models", [("tiny-wan", "embedded, the default")] + [
        (family, ", ".join(classes)) for family, classes in dit_sparse.supported_models().items()
    ])  # fmt: skip
    section("Backends", list(kernels.available_backends().items()))
    section("Profiles", [(name, "") for name in list_presets()], empty="none shipped with this version")
