"""The command-line application. Heavy libraries are imported inside the commands: ``--help`` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from dit_sparse.cli.compare import compare
from dit_sparse.cli.doctor import doctor
from dit_sparse.cli.errors import OneLineErrors
from dit_sparse.cli.eval import evaluate
from dit_sparse.cli.generate import generate
from dit_sparse.cli.inspect_attention import inspect_attention
from dit_sparse.cli.inspect_profile import inspect_profile
from dit_sparse.cli.list import list_everything
from dit_sparse.cli.profile import profile

app = typer.Typer(
    name="dit-sparse",
    cls=OneLineErrors,
    help="Training-free sparse attention for the diffusion transformers of diffusers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate)
app.command("compare")(compare)
app.command("eval")(evaluate)
app.command("inspect-attention")(inspect_attention)
app.command("profile")(profile)
app.command("inspect")(inspect_profile)
app.command("list")(list_everything)
app.command("doctor")(doctor)


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """Training-free sparse attention for the diffusion transformers of diffusers."""


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
