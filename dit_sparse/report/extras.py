"""Import the optional packages of the ``report`` extra, with one clear line when they are missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

INSTALL_COMMAND = "pip install 'dit-sparse[report]'"


class MissingExtraError(ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


def require(module: str) -> ModuleType:
    """Import ``module`` (for example "av" or "skimage.metrics").

    Raises:
        MissingExtraError: if its top-level package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(f"the report needs the package {package!r}: {INSTALL_COMMAND}") from error
