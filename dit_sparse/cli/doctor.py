"""``dit-sparse doctor``: what is installed, which backend will run, what is missing and how to get it."""

from __future__ import annotations

import typer

MARKS = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "broken": "[red]broken[/]"}


def doctor() -> None:
    """Examine this machine; exit code 0 if generate --compare can run here, else 1."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from dit_sparse.adapters.loading import quiet
    from dit_sparse.cli.probes import examine

    quiet()
    findings = list(examine())
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings:
        remedy = f" -> {finding.remedy}" if finding.remedy and finding.state != "ok" else ""
        table.add_row(finding.name, MARKS[finding.state], escape(finding.detail + remedy))
    console = Console()
    console.print(table)
    missing = [finding.name for finding in findings if finding.needed and finding.state != "ok"]
    if missing:
        console.print(f"[red]generate cannot run here[/]: {', '.join(missing)}")
        raise typer.Exit(1)
    console.print("[green]generate can run here.[/]")
