"""Ten thousand damaged and forged files: each loads as a table that passes all checks, or is refused."""

from __future__ import annotations

import json
import random
import resource
import tracemalloc

import pytest
import torch
from made_profiles import assert_same, make_header, make_table, write_sealed

from dit_sparse.layout import TokenLayout
from dit_sparse.patterns import KINDS, OBSERVED, ProfileError, load_profile, save_profile
from dit_sparse.patterns.container import DTYPES
from dit_sparse.patterns.named_tensors import to_tensors

ROUNDS, PER_ROUND = 8, 1300
TRACED = 2  # rounds: tracing takes three times as long
PEAK_BYTES = 50e6
OLDER = 0.2  # of the forged files say that they are of version 1
NUMBERS = (0, 1, -1, 2, 7, 255, 256, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 10**30, 0.5, 1e308)
VALUES = (*NUMBERS, True, None, "", "0", "../../x", "x" * 5000, [], {}, [[]], [1, 2], [[0, 1]], {"a": {}})


def originals():
    """Small ones: masks without text, everything with text, rules alone."""
    first = make_header(layers=1, heads=2)
    second = make_header(TokenLayout(2, 3, 5, 7, "first"), ((0, 4), (4, 6), (6, 9)), 2, 3, (4, 5))
    third = make_header(TokenLayout(3, 3, 3, 2, "last"), ((1, 2),), 1, 1)
    kinds = ((2,), tuple(range(len(KINDS))), (3, OBSERVED))
    return [(h, make_table(h, i, k)) for i, (h, k) in enumerate(zip((first, second, third), kinds))]


def damaged(rng, content):
    """Bytes as an accident leaves them: flips, cuts, insertions, moved and copied ranges."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        a, b = rng.choice(((a, b), (a, min(a + 8, b)), (0, min(8, b))))
        how = rng.randrange(8)
        if how <= 1 and a < len(data):
            data[a] ^= 1 << rng.randrange(8)
        elif how == 2:
            del data[a:]
        elif how == 3:
            del data[a:b]
        elif how == 4:
            data[a:a] = rng.randbytes(rng.choice((1, 8, 100)))
        elif how == 5:
            data[a:b] = rng.choice((b"\0", b"\xff", b"[", b'"', b"9")) * (b - a)
        elif how == 6:
            data[a:b] = data[b - (b - a) : b][::-1]
        else:
            c = rng.randrange(len(data) + 1)
            data[c : c + b - a] = data[a:b]
        if not data:
            break
    return bytes(data)


def changed(rng, value):
    """A JSON value with one place somewhere in it replaced, dropped, doubled or renamed."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, copy = rng.choice(keys), value.copy()
        how = rng.random()
        if how < 0.1:
            del copy[key]
        elif how < 0.2 and isinstance(copy, dict):
            copy[rng.choice(("../x", "kind", "mask.0.0", "mask.99999.0", "x"))] = copy.pop(key)
        elif how < 0.2:
            copy.append(copy[key])
        else:
            copy[key] = changed(rng, copy[key])
        return copy
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 8))
    return rng.choice(VALUES)


def edited(rng, content):
    """A container whose JSON somebody edited: sizes, offsets, names, checksums."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header["__metadata__"]
    if rng.random() < 0.3:
        (key,) = metadata
        metadata[key] = json.dumps(changed(rng, json.loads(metadata[key])))
    else:
        header = changed(rng, header)
    text = json.dumps(header).encode()
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 2**64 - 1, 2**63, 10**9, len(text) + 1))
    return length.to_bytes(8, "little") + text + content[end:]


def forged(rng, path, header, table):
    """A file with right checksums and other content."""
    facts, tensors = header.model_dump(mode="json"), dict(to_tensors(table))
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(sorted(tensors))
        tensor = tensors[name]
        how = rng.random()
        if how < 0.35:
            facts = changed(rng, facts)
        elif how < 0.7:
            tensor = tensor.clone()
            value = rng.choice((0, 1, 2, 3, 5, 6, 7, 255, -1, 0.5, 1.5, float("nan"), float("inf")))
            whole = not tensor.dtype.is_floating_point
            place = rng.randrange(tensor.numel())
            tensor.view(-1)[place] = (0 if value != value else int(min(value, 255)) % 256) if whole else value
            tensors[name] = tensor
        elif how < 0.8:
            tensors[name] = tensor.to(rng.choice(list(DTYPES.values())))
        elif how < 0.9:
            shape = rng.choice((tensor.shape[::-1], (tensor.numel(),), (1, *tensor.shape)))
            tensors[name] = tensor.reshape(shape)
        elif how < 0.95:
            del tensors[name]
        else:
            tensors[rng.choice(("mask.0.0", "mask.1.1", "mask.99999.99999", "other", "kind"))] = torch.ones(2)
    if rng.random() < OLDER and isinstance(facts, dict):
        facts = {**facts, "format_version": 1}
        if rng.random() < 0.9:
            facts.pop("correction", None)
    write_sealed(path, facts, tensors)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_every_outcome_is_a_profile_or_a_profile_error(tmp_path, seed):
    rng, path = random.Random(seed), tmp_path / "a"
    made = originals()
    contents = []
    for header, table in made:
        save_profile(path, header, table)
        contents.append(path.read_bytes())
        load_profile(path)  # what is allocated once is not the files'
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = {"damaged": 0, "edited": 0, "forged": 0}
    if seed < TRACED:
        tracemalloc.start()
    try:
        for _ in range(PER_ROUND):
            which, how = rng.randrange(len(made)), rng.choice(tuple(loaded))
            header, table = made[which]
            if how == "forged":
                forged(rng, path, header, table)
            else:
                path.write_bytes((damaged if how == "damaged" else edited)(rng, contents[which]))
            try:
                found = load_profile(path)
            except ProfileError:
                continue
            loaded[how] += 1
            if how == "forged":  # it passes all checks: they are made again on writing
                save_profile(path, found.header, found.table)
                assert_same(load_profile(path).table, found.table)
            else:
                assert found.header == header
                assert_same(found.table, table)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # Tracing sees no tensors, and the resident set no peaks below those of earlier tests: together they do.
    assert peak < PEAK_BYTES
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) * 1024 < PEAK_BYTES
    assert loaded["forged"] > PER_ROUND / 100  # nonsense is refused, not everything
    assert loaded["damaged"] + loaded["edited"] < PER_ROUND / 10
