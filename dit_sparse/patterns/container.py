"""The safetensors container, read as if its author meant harm.

Eight bytes of header length, a JSON header of names, types, shapes and byte ranges, the bytes
(https://huggingface.co/docs/safetensors). It is read and written here rather than by the library so that
every limit is checked before memory is taken, and equal input gives equal bytes with every version of it;
files are read by the library as well.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import BinaryIO

import torch
from torch import Tensor

from dit_sparse.patterns.errors import ProfileError, quoted
from dit_sparse.patterns.strict_json import parse_json

MAX_HEADER_BYTES = 1 << 20
"""Room for 4,000 masks: 60 layers of 60 step groups. JSON takes up to thirty times its size in memory."""
MAX_DIMENSIONS = 8
DTYPES = {"U8": torch.uint8, "I16": torch.int16, "F32": torch.float32}
"""Types of the tensors of a profile, by their names in the container."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_METADATA = "__metadata__"
_LENGTH = 8
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}(\.[0-9]{1,5}){0,2}")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Args:
        dtype, shape: of the tensor; every dimension >= 1.
        begin, end: its bytes, counted from the start of the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Index:
    """What a container says of itself."""

    metadata: dict[str, str]
    entries: dict[str, Entry]


def read_index(file: BufferedReader, size: int) -> Index:
    """Read and check the header; the tensors are those of the whole file, without holes or overlaps.

    Args:
        file: at its start.
        size: of the file in bytes.

    Raises:
        ProfileError: where the header is none, or does not fit the size.
    """
    if size < _LENGTH:
        raise ProfileError(f"it has {size} bytes, which is too short for a pattern file")
    length = int.from_bytes(read_exactly(file, _LENGTH), "little")
    if length > MAX_HEADER_BYTES:
        raise ProfileError(
            f"its first eight bytes ask for a header of {length} bytes, at most {MAX_HEADER_BYTES} are "
            "allowed: it is not a pattern file, or a damaged one"
        )
    if _LENGTH + length > size:
        raise ProfileError(
            f"its header should have {length} bytes, the whole file has {size}: it is truncated or not a "
            "pattern file"
        )
    found = parse_json(bytes(read_exactly(file, length)), "the safetensors header")
    metadata = found.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ProfileError(f"the safetensors metadata must be texts by name, got {quoted(metadata)}")
    entries = {name: _entry(name, facts, _LENGTH + length) for name, facts in found.items()}
    _check_tiling(entries, _LENGTH + length, size)
    return Index(metadata, entries)


def read_exactly(file: BufferedReader, length: int) -> bytearray:
    """The next bytes of a file.

    Raises:
        ProfileError: where there are fewer: the file shrank while it was read.
    """
    buffer = bytearray(length)
    got = file.readinto(buffer)
    if got != length:
        raise ProfileError(f"{got} bytes could be read where {length} were expected: it changed meanwhile")
    return buffer


def read_tensor(file: BufferedReader, name: str, entry: Entry, sha256: str) -> Tensor:
    """A tensor, its checksum compared.

    Raises:
        ProfileError: where the bytes are not those that were written.
    """
    file.seek(entry.begin)
    buffer = read_exactly(file, entry.end - entry.begin)
    if (got := hashlib.sha256(buffer).hexdigest()) != sha256:
        raise ProfileError(
            f"the bytes of {name} have the SHA-256 {got[:16]}..., written were {sha256[:16]}...: the file is "
            "damaged, copy or make it again"
        )
    return torch.frombuffer(buffer, dtype=entry.dtype).reshape(entry.shape)


def write_container(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors of :data:`DTYPES`, wide types first, so that all of them lie aligned.

    Raises:
        ProfileError: if the header would be too long to be read again.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {_METADATA: dict(metadata)}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % _LENGTH)
    if len(text) > MAX_HEADER_BYTES:
        raise ProfileError(
            f"the header would have {len(text)} bytes, at most {MAX_HEADER_BYTES} can be read again: use "
            "fewer step groups with masks of their own, or shorter texts"
        )
    file.write(len(text).to_bytes(_LENGTH, "little"))
    file.write(text)
    for _, tensor in ordered:
        file.write(tensor_bytes(tensor))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor, without a copy where it is contiguous."""
    return tensor.contiguous().flatten().numpy().data.cast("B")


def _entry(name: str, facts: object, start: int) -> Entry:
    if not _NAME.fullmatch(name):
        raise ProfileError(f"it holds a tensor named {quoted(name)}, which no pattern file does")
    if not isinstance(facts, dict) or set(facts) != {"dtype", "shape", "data_offsets"}:
        raise ProfileError(f"{name} must have a dtype, a shape and data_offsets, got {quoted(facts)}")
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ProfileError(f"{name} has the dtype {quoted(dtype)}, must be one of {', '.join(DTYPES)}")
    if not _counts(shape) or not 1 <= len(shape) <= MAX_DIMENSIONS or min(shape) < 1:
        raise ProfileError(
            f"{name} has the shape {quoted(shape)}, must be 1 to {MAX_DIMENSIONS} integers of at least 1"
        )
    if not _counts(offsets) or len(offsets) != 2:
        raise ProfileError(f"{name} has the data_offsets {quoted(offsets)}, must be a begin and an end")
    begin, end = offsets
    if (need := math.prod(shape) * DTYPES[dtype].itemsize) != end - begin:
        raise ProfileError(
            f"{name} is {dtype} {quoted(shape)}, which takes {quoted(need)} bytes, but lies at "
            f"{quoted(offsets)}: the header is damaged"
        )
    return Entry(DTYPES[dtype], tuple(shape), start + begin, start + end)


def _counts(value: object) -> bool:
    """Whether this is a list of integers >= 0. JSON's true is Python's 1."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_tiling(entries: dict[str, Entry], start: int, size: int) -> None:
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != start:
            raise ProfileError(
                f"{name} begins at byte {entry.begin}, what lies before it ends at {start}: the header is "
                "damaged"
            )
        start = entry.end
    if start != size:
        raise ProfileError(
            f"its tensors end at byte {start}, the file has {size}: it is truncated or damaged"
        )
