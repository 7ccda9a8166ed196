"""The file level of the header: checksums of every tensor and of the header itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from dit_sparse.patterns.container import Index, tensor_bytes
from dit_sparse.patterns.errors import ProfileError, quoted
from dit_sparse.patterns.migrate import check_version
from dit_sparse.patterns.strict_json import canonical_json, parse_json

METADATA_KEY = "dit_sparse_profile"
"""Under which the header lies in the metadata of the container."""

_NAMES = {torch.uint8: "uint8", torch.int16: "int16", torch.float32: "float32"}
_SHA256 = "^[0-9a-f]{64}$"
_Model = TypeVar("_Model", bound=BaseModel)


class TensorFacts(BaseModel):
    """What a tensor was when it was written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["uint8", "int16", "float32"]
    shape: tuple[int, ...]
    sha256: str = Field(pattern=_SHA256)  # of its bytes


class FileHeader(BaseModel):
    """The JSON in the metadata."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: dict[str, Any]  # a ProfileHeader of the file's own version
    tensors: dict[str, TensorFacts]  # by name
    sha256: str = Field(pattern=_SHA256)  # of the canonical JSON of the other two


def seal(profile: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The text for the metadata: the header, and checksums of it and of the tensors."""
    facts = {
        name: {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "sha256": hashlib.sha256(tensor_bytes(tensor)).hexdigest(),
        }
        for name, tensor in tensors.items()
    }
    body = {"profile": profile, "tensors": facts}
    return canonical_json({**body, "sha256": _digest(body)})


def open_seal(index: Index) -> FileHeader:
    """The header of a container, compared with its checksum and with the tensors that are there.

    Raises:
        ProfileError: where the metadata is missing, of a later version, damaged, or of other tensors.
    """
    if set(index.metadata) != {METADATA_KEY}:
        raise ProfileError(
            f"its metadata holds {quoted(sorted(index.metadata))}, must hold {METADATA_KEY!r} alone: it is a "
            "safetensors file, but no pattern file; make one with `dit-sparse profile`"
        )
    found = parse_json(index.metadata[METADATA_KEY], "the profile's header")
    check_version(found.get("profile"))
    header = validated(FileHeader, found, "the profile's header")
    body = {key: value for key, value in found.items() if key != "sha256"}
    if (got := _digest(body)) != header.sha256:
        raise ProfileError(
            f"the header has the SHA-256 {got[:16]}..., written was {header.sha256[:16]}...: it is damaged "
            "or was edited; copy or make the file again"
        )
    there = {name: (_NAMES[entry.dtype], entry.shape) for name, entry in index.entries.items()}
    listed = {name: (facts.dtype, facts.shape) for name, facts in header.tensors.items()}
    for name in sorted(there.keys() | listed.keys()):
        if there.get(name) != listed.get(name):
            raise ProfileError(
                f"tensor {quoted(name)}: the file holds {quoted(there.get(name))}, its header lists "
                f"{quoted(listed.get(name))}: the file is damaged"
            )
    return header


def validated(model: type[_Model], value: Any, what: str) -> _Model:
    """A pydantic model from parsed JSON, without conversions: "5" is not 5.

    Raises:
        ProfileError: that names every field which does not fit, with its value.
    """
    try:
        return model.model_validate_json(canonical_json(value), strict=True)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, found['loc'])) or 'it'} is {quoted(found['input'])} ({found['msg']})"
            for found in error.errors(include_url=False, include_context=False)[:8]
        ]
        raise ProfileError(f"{what} does not fit: {'; '.join(wrong)}") from None


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode("ascii")).hexdigest()
