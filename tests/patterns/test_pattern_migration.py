"""Files of an earlier version are brought up to date; a made-up version 0 stands for them.

It had the densities in percent, the step groups as their first steps, and no precisions.
"""

import json

import pytest
import torch
from made_profiles import assert_same, make_header, make_table, write_sealed

from dit_sparse.patterns import MASK, ProfileError, load_profile, migrate, read_header
from dit_sparse.patterns.named_tensors import to_tensors


def old_file(path, change=lambda facts, tensors: None):
    header = make_header()
    table = make_table(header, kinds=(MASK, 0))
    table.precision.zero_()
    table.density[:] = (table.density * 100).round().clamp(min=1) / 100
    facts, tensors = header.model_dump(mode="json"), to_tensors(table)
    facts["format_version"] = 0
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
