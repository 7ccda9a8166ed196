"""Fetch torchvision's AlexNet from PyTorch's server into torch's cache, as torchvision itself would.

Off where ``HF_HUB_OFFLINE`` is set, the switch that keeps diffusers off the network too.
"""

from __future__ import annotations

import hashlib
import os
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from dit_sparse.report.atomic import atomic_path

URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
SHA256_START = "7be5be79"  # PyTorch's servers put the start of the digest into the name
TIMEOUT_S = 10.0
CHUNK_BYTES = 1 << 20


def offline() -> bool:
    """Whether the user asked for no network."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "on", "yes")


def download(target: Path) -> None:
    """Write the file (233 MB) to ``target``, whole or not at all.

    Raises:
        OSError: if it cannot be reached, breaks off, or is not the file that its name promises.
    """
    digest = hashlib.sha256()
    try:
        with urlopen(URL, timeout=TIMEOUT_S) as response, atomic_path(target) as temporary:
            with temporary.open("wb") as file:
                while chunk := response.read(CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
            if not digest.hexdigest().startswith(SHA256_START):
                raise OSError(f"{URL} sent something else")
    except HTTPException as error:
        raise OSError(f"{URL}: {type(error).__name__}") from error
