"""Errors as one line on stderr: exit code 2 for an error, 130 for Ctrl-C; ``--debug`` shows the traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

EXIT_FAILURES = 1
"""Some of the work failed, and the output says what."""
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
DEBUG_FLAG = "--debug"
EXPECTED = (ValueError, OSError, ImportError, MemoryError)


def one_line(error: BaseException) -> str:
    """What went wrong, on one line, for someone who has not read our source."""
    if callable(formatted := getattr(error, "format_message", None)):  # usage errors of typer and click
        text = str(formatted())
    else:
        text = str(error)
    text = " ".join(text.split()) or type(error).__name__
    if isinstance(error, EXPECTED) or formatted is not None:
        return text
    if type(error).__name__ == "OutOfMemoryError":
        return f"the GPU is out of memory: try --offload model, a smaller size or fewer frames ({text})"
    return f"unexpected {type(error).__name__}: {text} ({DEBUG_FLAG} shows the traceback)"


class OneLineErrors(TyperGroup):
    """A command group whose every failure, usage errors included, is one line."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit with its code; with ``standalone_mode`` off, raise as typer does."""
        arguments = list(sys.argv[1:] if args is None else args)
        debug = DEBUG_FLAG in arguments
        arguments = [argument for argument in arguments if argument != DEBUG_FLAG]

        def run() -> Any:
            # The arguments travel as the context's object: the report quotes the command line.
            context = {"obj": tuple(arguments), **extra}
            return super(OneLineErrors, self).main(
                arguments, prog_name, complete_var, False, windows_expand_args, **context
            )

        if not standalone_mode:
            return run()
        try:
            code = run()
        except (KeyboardInterrupt, typer.Abort):
            code = EXIT_INTERRUPTED
        except Exception as error:
            if debug:
                raise
            print(f"error: {one_line(error)}", file=sys.stderr)
            code = EXIT_ERROR
        if code == EXIT_INTERRUPTED:
            print("interrupted", file=sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)
