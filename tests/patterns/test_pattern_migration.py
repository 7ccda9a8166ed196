"""Files of earlier versions are brought up to date: of version 1, and of a made-up version 0.

Version 1 had no observed heads, and no correction. Version 0 had the densities in percent, the step groups as
their first steps, and no precisions either.
"""

import json

import pytest
import torch
from made_profiles import assert_same, make_header, make_table, write_sealed

from dit_sparse.patterns import (
    FORMAT_VERSION,
    KINDS,
    MASK,
    OBSERVED,
    ProfileError,
    load_profile,
    migrate,
    read_header,
    save_profile,
)
from dit_sparse.patterns.named_tensors import to_tensors


def old_file(path, change=lambda facts, tensors: None):
    header = make_header()
    table = make_table(header, kinds=(MASK, 0))
    table.precision.zero_()
    table.density[:] = (table.density * 100).round().clamp(min=1) / 100
    facts, tensors = header.model_dump(mode="json"), to_tensors(table)
    facts["format_version"] = 0
    del facts["correction"]
    facts["schedule"]["starts"] = [first for first, _ in facts["schedule"].pop("groups")]
    del tensors["precision"]
    tensors["percent"] = (tensors.pop("density") * 100).round().to(torch.uint8)
    change(facts, tensors)
    write_sealed(path, facts, tensors)
    return header, table


def from_version_0(facts, tensors):
    starts = facts["schedule"].pop("starts")
    ends = [*starts[1:], facts["schedule"]["num_steps"]]
    facts["schedule"]["groups"] = [list(group) for group in zip(starts, ends, strict=True)]
    tensors["density"] = tensors.pop("percent").float() / 100
    tensors["precision"] = torch.zeros(tensors["kind"].shape[:2], dtype=torch.uint8)
    return facts, tensors


def file_of_version_1(path, change=lambda facts, tensors: None, kinds=tuple(range(OBSERVED))):
    """As the first release wrote them."""
    header = make_header()
    table = make_table(header, kinds=kinds)
    facts = {**header.model_dump(mode="json"), "format_version": 1}
    del facts["correction"]
    tensors = {name: tensor.clone() for name, tensor in to_tensors(table).items()}
    change(facts, tensors)
    write_sealed(path, facts, tensors)
    return header, table


def test_files_of_version_1_load_as_they_did(tmp_path):
    header, table = file_of_version_1(tmp_path / "a")
    found = load_profile(tmp_path / "a")
    assert found.header == header == read_header(tmp_path / "a")
    assert (found.header.format_version, found.header.correction) == (FORMAT_VERSION, "none") == (2, "none")
    assert_same(found.table, table)
    save_profile(tmp_path / "b", found.header, found.table)
    save_profile(tmp_path / "c", header, table)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda facts, tensors: tensors["kind"].view(-1)[3].fill_(OBSERVED),
            "version 1 and holds a head of kind 6, must be below 6",
        ),
        (lambda facts, tensors: tensors["kind"].fill_(255), "version 1 and holds a head of kind 255"),
        (lambda facts, tensors: facts.update(correction="none"), "version 1 and has a correction, 'none'"),
        (lambda facts, tensors: facts.update(correction={"a": 1}), "has a correction"),
        (lambda facts, tensors: tensors.pop("kind"), "damaged: from version 1 on it lacks KeyError"),
        (lambda facts, tensors: tensors.update(kind=torch.full((2, 2, 3), float("nan"))), "version 1"),
        (lambda facts, tensors: tensors.update(kind=torch.ones(3, dtype=torch.int16)), "kind is torch.int16"),
        (lambda facts, tensors: facts.pop("recipe"), "recipe"),
        (lambda facts, tensors: facts.update(new=1), "new is 1"),
    ],
)
def test_files_of_version_1_are_checked_as_such(tmp_path, change, message):
    file_of_version_1(tmp_path / "a", change)
    for read in (load_profile, read_header):
        with pytest.raises(ProfileError, match=message):
            read(tmp_path / "a")


def test_files_that_call_themselves_older_than_they_are(tmp_path):
    """A whole file of today under the number of yesterday."""
    file_of_version_1(tmp_path / "a", kinds=tuple(range(len(KINDS))))
    with pytest.raises(ProfileError, match="holds a head of kind 6"):
        load_profile(tmp_path / "a")
    file_of_version_1(tmp_path / "a", lambda facts, tensors: facts.update(format_version=2))
    assert load_profile(tmp_path / "a").header.correction == "none"


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(migrate.MIGRATIONS, 0, from_version_0)


def test_an_old_file_loads(tmp_path, known):
    header, table = old_file(tmp_path / "a")
    found = load_profile(tmp_path / "a")
    assert found.header == header == read_header(tmp_path / "a")
    assert_same(found.table, table)


def test_without_its_migration_it_is_refused(tmp_path):
    old_file(tmp_path / "a")
    with pytest.raises(ProfileError, match="format_version is 0, .* make the file again"):
        load_profile(tmp_path / "a")


def test_versions_are_climbed_one_by_one(tmp_path, known, monkeypatch):
    monkeypatch.setattr(migrate, "FORMAT_VERSION", 3)
    seen = []

    def step(facts, tensors):
        seen.append(facts["format_version"])
        return facts, tensors

    monkeypatch.setitem(migrate.MIGRATIONS, 1, step)
    with pytest.raises(ProfileError, match="cannot read any more"):
        migrate.check_version({"format_version": 0})  # from 2 on there is no way
    monkeypatch.setitem(migrate.MIGRATIONS, 2, step)
    facts, tensors = migrate.migrate({"format_version": 1, "x": 1}, {"a": torch.ones(1)})
    assert seen == [1, 2]
    assert facts == {"format_version": 3, "x": 1} and tensors.keys() == {"a"}
    with pytest.raises(
        ProfileError, match="is 4, this dit_sparse reads versions up to 3: upgrade dit_sparse"
    ):
        migrate.check_version({"format_version": 4})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts, tensors: facts.pop("schedule"), "KeyError.*schedule"),
        (lambda facts, tensors: facts.update(schedule=3), "damaged"),
        (lambda facts, tensors: facts["schedule"].update(starts=[]), "damaged"),
        (lambda facts, tensors: facts["schedule"].update(starts=["a", "b"]), "groups"),
        (lambda facts, tensors: tensors.pop("percent"), "percent"),
        (lambda facts, tensors: tensors["percent"].fill_(200), r"density\[0, 0, 0\] is 2.0"),
        (lambda facts, tensors: tensors.update(kind=torch.ones(3, dtype=torch.uint8)), "precision|kind"),
    ],
)
def test_damaged_old_files(tmp_path, known, change, message):
    """What a migration returns is checked like any file, and what it stumbles over is a ProfileError."""
    old_file(tmp_path / "a", change)
    with pytest.raises(ProfileError, match=message):
        load_profile(tmp_path / "a")


def test_checksums_are_compared_before_a_migration(tmp_path, monkeypatch):
    def never(facts, tensors):
        raise AssertionError("a migration saw a damaged file")

    monkeypatch.setitem(migrate.MIGRATIONS, 0, never)
    old_file(tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ProfileError, match="SHA-256"):
        load_profile(tmp_path / "a")
    text = json.dumps({"profile": {"format_version": 0}, "tensors": {}, "sha256": "0" * 64})
    write_sealed(tmp_path / "a", {}, {}, text)
    with pytest.raises(ProfileError, match="SHA-256"):
        load_profile(tmp_path / "a")
