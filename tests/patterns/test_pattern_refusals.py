"""Files that must be refused, in words, without harm: damaged or hostile."""

import json
import os
import pickle
import stat
import struct
import tracemalloc

import pytest
import torch
from made_profiles import make_header, make_table, refused
from safetensors.torch import save_file

from dit_sparse.patterns import MASK, WINDOW, ProfileError, load_profile, read_header, save_profile
from dit_sparse.patterns.container import MAX_HEADER_BYTES
from dit_sparse.patterns.seal import METADATA_KEY


@pytest.fixture
def valid(tmp_path):
    """(path, bytes) of a good file."""
    path = tmp_path / "a.safetensors"
    header = make_header()
    save_profile(path, header, make_table(header, kinds=(MASK, WINDOW)))
    return path, path.read_bytes()


def container(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def split(content):
    """(header, data) of a container."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def test_paths_that_are_no_files(tmp_path):
    refused(tmp_path, "not a regular file")
    refused(tmp_path / "missing.safetensors", "No such file")
    refused(tmp_path / "missing" / "a", "No such file")
    refused(tmp_path / ("x" * 300), "too long")
    with pytest.raises(ProfileError, match="null"):
        load_profile(f"{tmp_path}/a\0b")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file")  # and does not wait for a writer


def test_no_permission(valid, monkeypatch):
    path, _ = valid
    path.chmod(0)
    if os.geteuid() == 0:  # the superuser may read everything

        def deny(self, *_):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr("pathlib.Path.open", deny)
    for read in (load_profile, read_header):
        with pytest.raises(ProfileError, match="Permission denied"):
            read(path)


def test_every_truncation_is_refused(valid):
    path, content = valid
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path, "truncated|too short|not a pattern file")


def test_every_flipped_bit_is_refused(valid):
    """But for those in white space, every bit counts."""
    path, content = valid
    end = 8 + int.from_bytes(content[:8], "little")
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        if place >= end:
            refused(path, "SHA-256")
        elif content[place : place + 1] != b" ":
            with pytest.raises(ProfileError):
                load_profile(path)


@pytest.mark.parametrize("extra", [b"\0", b"x" * 100])
def test_something_behind_the_end_is_refused(valid, extra):
    path, content = valid
    path.write_bytes(content + extra)
    refused(path, "the file has")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_pickles_are_not_loaded(tmp_path):
    path, executed = tmp_path / "a.safetensors", tmp_path / "executed"
    bomb = pickle.dumps(Bomb(str(executed)))
    for content in (bomb + b" " * 100, container(bomb), struct.pack("<Q", len(bomb)) + bomb):
        path.write_bytes(content)
        refused(path, "not a pattern file|not JSON")
    torch.save({"kind": torch.ones(3)}, path)
    refused(path, "not a pattern file")
    assert not executed.exists()
    pickle.loads(bomb)
    assert executed.exists()  # it would have gone off


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (b"1234567", "7 bytes"),
        (b"PK\x03\x04" + b"\0" * 100, "not a pattern file"),
        (b"method: svg2\nfields: {}\n", "not a pattern file"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "18446744073709551615 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "9223372036854775808 bytes"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1), "1048577 bytes"),
        (struct.pack("<Q", 1000) + b"{}", "truncated"),
        (container(b""), "not JSON"),
        (container(b"[]"), "must be a JSON object"),
        (container(b"nul"), "not JSON"),
        (container(b"\xff\xfe"), "not JSON"),
        (container(b'{"a": 1} {}'), "not JSON"),
        (container(b'{"a": NaN}'), "'NaN' is not a number"),
        (container(b'{"a": 1e999}'), "'1e999' is not a number"),
        (container(b'{"a": ' + b"9" * 100_000 + b"}"), "is not a number"),
        (container(b'{"a": 1, "a": 1}'), "'a' is given twice"),
        (container(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deeply"),
        (container(b'{"a":' + b"[" * 500 + b"]" * 500 + b"}"), "nested too deeply"),
        (container({}), "metadata holds"),
        (container({"__metadata__": {}}), "metadata holds"),
        (container({"__metadata__": []}), "must be texts by name"),
        (container({"__metadata__": {METADATA_KEY: 3}}), "must be texts by name"),
        (container({"__metadata__": {"format": "pt"}}), "no pattern file"),
        (container({"__metadata__": {METADATA_KEY: "{"}}), "not JSON"),
        (container({"__metadata__": {METADATA_KEY: "[" * 1000 + "]" * 1000}}), "must be a JSON|too deeply"),
        (container({"__metadata__": {METADATA_KEY: "{}"}}), "format_version is None"),
        (
            container({"__metadata__": {METADATA_KEY: '{"profile": {"format_version": 1}}'}}),
            "tensors is|Field",
        ),
    ],
)
def test_what_is_no_pattern_file(tmp_path, content, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    refused(path, message)
    with pytest.raises(ProfileError):
        read_header(path)


def test_a_checkpoint_is_no_pattern_file(tmp_path):
    save_file({"kind": torch.zeros(3, dtype=torch.uint8)}, tmp_path / "a", {"format": "pt"})
    refused(tmp_path / "a", "but no pattern file; make one with `dit-sparse profile`")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"shape": [2**62]}, "takes 4611686018427387904 bytes"),
        ({"shape": [2**40, 2**40, 2**40]}, "bytes, but lies at"),
        ({"shape": [10**30]}, "is not a number"),
        ({"shape": [0, 2**62]}, "integers of at least 1"),
        ({"shape": [-1, -24]}, "integers of at least 1"),
        ({"shape": [1] * 100}, "1 to 8 integers"),
        ({"shape": []}, "1 to 8 integers"),
        ({"shape": [2, 2, 6.0]}, "integers"),
        ({"shape": [2, 2, True]}, "integers"),
        ({"shape": "12"}, "integers"),
        ({"shape": {"0": 1}}, "integers"),
        ({"shape": None}, "integers"),
        ({"dtype": "F64"}, "'F64', must be one of U8, I16, F32"),
        ({"dtype": ["U8"]}, "must be one of U8, I16, F32"),
        ({"dtype": "O"}, "must be one of"),
        ({"data_offsets": [0, 2**63]}, "lies at"),
        ({"data_offsets": [-12, 0]}, "must be a begin and an end"),
        ({"data_offsets": [12, 0]}, "lies at"),
        ({"data_offsets": [0]}, "must be a begin and an end"),
        ({"data_offsets": [10**15, 10**15 + 12]}, "begins at byte"),
        ({"extra": 1}, "must have a dtype, a shape and data_offsets"),
    ],
)
def test_hostile_entries(valid, entry, message):
    path, content = valid
    header, data = split(content)
    header["kind"].update(entry)
    path.write_bytes(container(header, data))
    refused(path, message)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a/b",
        "..",
        "",
        "kind\0",
        "mask.-1.0",
        "x" * 10_000,
        "k\u0131nd",
        "con:",
    ],
)
def test_names_with_tricks(valid, name):
    path, content = valid
    header, data = split(content)
    header[name] = header.pop("kind")
    path.write_bytes(container(header, data))
    refused(path, "holds a tensor named")


def test_overlapping_tensors(valid):
    path, content = valid
    header, data = split(content)
    header["axes"]["data_offsets"] = header["kind"]["data_offsets"]
    path.write_bytes(container(header, data))
    refused(path, "begins at byte")


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":[' + b"[]," * 330_000 + b"1]}",
        b"{" + b",".join(b'"%x":{}' % i for i in range(70_000)) + b"}",
        b'{"__metadata__":{"' + METADATA_KEY.encode() + b'":"[' + b"[]," * 330_000 + b'1]"}}',
        b'{"a":[' + b'"' + b"\\u0041" * 150_000 + b'"]}',
        b'{"a":[' + b"1.5," * 250_000 + b"1]}",
    ],
)
def test_memory_of_hostile_headers(tmp_path, text):
    path = tmp_path / "a"
    path.write_bytes(container(text))
    assert len(text) <= MAX_HEADER_BYTES
    tracemalloc.start()
    try:
        refused(path, "a.*")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(peak)
    assert peak < 40e6


def test_an_edited_header_is_refused(valid):
    path, content = valid
    assert content.count(b"balanced") == 1
    path.write_bytes(content.replace(b"balanced", b"bAlanced"))
    refused(path, "header has the SHA-256 .* edited")
    with pytest.raises(ProfileError, match="SHA-256"):
        read_header(path)


def test_tensors_must_be_those_that_the_header_lists(valid):
    path, content = valid
    header, data = split(content)
    header["note"] = {"dtype": "U8", "shape": [4], "data_offsets": [len(data), len(data) + 4]}
    path.write_bytes(container(header, data + b"abcd"))
    refused(path, r"tensor 'note': the file holds .* lists None")


def test_the_header_is_read_without_the_tensors(valid):
    """Of a file whose tensors are damaged, too: quick means that they are not looked at."""
    path, content = valid
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert read_header(path) == make_header()
    refused(path, "SHA-256")


def test_files_are_readable_by_others(valid):
    path, _ = valid
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
