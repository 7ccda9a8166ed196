"""Pattern files: what is written is read again, bit by bit, and by the safetensors library too."""

import json
import math
import os
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from made_profiles import assert_same, make_header, make_table, profiles, write_sealed
from safetensors import safe_open

from dit_sparse.corrections import CORRECTIONS
from dit_sparse.layout import TokenLayout
from dit_sparse.patterns import DENSE, MASK, SKIP, ProfileError, load_profile, read_header, save_profile
from dit_sparse.patterns.checks import block_counts, check_table
from dit_sparse.patterns.container import MAX_HEADER_BYTES
from dit_sparse.patterns.header import CorrectionName
from dit_sparse.patterns.named_tensors import to_tensors
from dit_sparse.patterns.seal import METADATA_KEY


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(profiles())
def test_round_trip(tmp_path, made):
    header, table = made
    path = tmp_path / "some" / "folder" / "a.safetensors"
    save_profile(path, header, table)
    found = load_profile(path)
    assert found.header == header == read_header(str(path))
    assert found.path == path
    assert_same(found.table, table)


def test_every_correction_can_be_named(tmp_path):
    names = get_args(CorrectionName)
    assert set(names) == set(CORRECTIONS)
    for name in names:
        header = make_header().model_copy(update={"correction": name})
        save_profile(tmp_path / "a", header, make_table(header))
        assert load_profile(tmp_path / "a").header.correction == name
    with pytest.raises(ProfileError, match="correction"):
        save_profile(
            tmp_path / "b", make_header().model_copy(update={"correction": "magic"}), make_table(header)
        )


def test_equal_input_gives_equal_bytes(tmp_path):
    header, table = make_header(), make_table(make_header())
    save_profile(tmp_path / "a", header, table)
    # Views, other strides and another order of the masks are the same table.
    masks = dict(reversed([(key, mask.clone()) for key, mask in table.masks.items()]))
    kind = table.kind.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not kind.is_contiguous()
    again = make_header().model_validate_json(header.model_dump_json())
    save_profile(tmp_path / "b", again, type(table)(**{**vars(table), "kind": kind, "masks": masks}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_library_reads_the_same(tmp_path):
    header, table = make_header(), make_table(make_header(), seed=3)
    save_profile(tmp_path / "a.safetensors", header, table)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        tensors = to_tensors(table)
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
        sealed = json.loads(file.metadata()[METADATA_KEY])
    assert sealed["profile"] == json.loads(header.model_dump_json())
    assert sealed["tensors"]["axes"]["shape"] == list(table.sizes)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    header, table = make_header(), make_table(make_header())
    save_profile(path, header, table)
    before = path.read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dit_sparse.patterns.container.tensor_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        save_profile(path, header, make_table(header, seed=1))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 0}, "format_version is 0"),
        ({"command": "\ud800"}, "command|header"),
        ({"figures": {"density": math.nan}}, "density"),
        ({"figures": {"density": 0.5, "error": math.inf}}, "header|error"),
        ({"calibration": {"prompts": ["x" * MAX_HEADER_BYTES], "seeds": [1]}}, "at most 1048576 can be read"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, change, message):
    header = make_header()
    changed = {
        name: type(getattr(header, name))(**value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    with pytest.raises(ProfileError, match=message):
        save_profile(tmp_path / "a", header.model_copy(update=changed), make_table(header))
    assert not os.listdir(tmp_path)


def test_a_table_that_does_not_fit_is_not_written(tmp_path):
    with pytest.raises(ProfileError, match=r"kind is torch\.uint8 \[2, 2, 3\] .* must be .* \[2, 2, 4\]"):
        save_profile(tmp_path / "a", make_header(heads=4), make_table(make_header()))
    assert not os.listdir(tmp_path)


def test_the_disk_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match="cannot be"):
        save_profile(tmp_path / "file" / "a", make_header(), make_table(make_header()))


def test_texts_of_any_language_survive(tmp_path):
    header = make_header().model_copy(update={"command": "ᚠ 熊 \x00 \u2028 \"'\\ 🐻"})
    save_profile(tmp_path / "a", header, make_table(header))
    assert read_header(tmp_path / "a").command == header.command


def test_a_skipped_head_without_text_has_density_zero(tmp_path):
    header = make_header()
    table = make_table(header, kinds=(SKIP,))
    table.density.zero_()
    save_profile(tmp_path / "a", header, table)
    assert load_profile(tmp_path / "a").table.density.max() == 0
    table.kind[0, 0, 0] = DENSE
    with pytest.raises(ProfileError, match=r"density\[0, 0, 0\] is 0\.0, must be in \(0, 1\]"):
        save_profile(tmp_path / "a", header, table)


def test_size_of_wan_14b_at_720p():
    """81 frames of 1280 x 720 are 21 x 45 x 80 tokens; 40 layers of 40 heads, four step groups, all heads
    have masks and no groups share them."""
    layout = TokenLayout(21, 45, 80)
    groups = tuple((10 * i, 10 * i + 10) for i in range(1, 5))
    for block, limit in ((128, 0.3e9), (64, 1.2e9)):
        header = make_header(layout, groups, 40, 40, (block, block))
        n_q, n_k = block_counts(layout, header.grid.block_size)
        one = torch.zeros(40, n_q, -(-n_k // 8), dtype=torch.uint8)
        rules = make_table(header, kinds=(DENSE,))
        table = type(rules)(
            **{
                **vars(rules),
                "kind": torch.full_like(rules.kind, MASK),
                "mask_group": torch.arange(4, dtype=torch.int16)[:, None].expand(4, 40).contiguous(),
                "masks": {(group, layer): one for group in range(4) for layer in range(40)},
            }
        )
        check_table(table, header)  # these are the shapes that a file would have
        bits = sum(tensor.numel() * tensor.element_size() for tensor in to_tensors(table).values())
        assert bits + MAX_HEADER_BYTES < limit


def test_size_of_rules(tmp_path):
    """The same model without masks, really written, with ten long prompts."""
    header = make_header(TokenLayout(21, 45, 80), tuple((i, i + 10) for i in range(10, 50, 10)), 40, 40)
    calibration = header.calibration.model_copy(update={"prompts": ("a prompt of some words " * 40,) * 10})
    header = header.model_copy(update={"calibration": calibration})
    save_profile(tmp_path / "a", header, make_table(header, kinds=(0, 1, 3, 4, 5)))
    assert (tmp_path / "a").stat().st_size < 1e6
    assert_same(load_profile(tmp_path / "a").table, make_table(header, kinds=(0, 1, 3, 4, 5)))


def test_sealing_by_hand_makes_the_same_file(tmp_path):
    """The tests of refusals change files that this function writes: unchanged they must load."""
    header, table = make_header(), make_table(make_header())
    save_profile(tmp_path / "a", header, table)
    write_sealed(tmp_path / "b", header.model_dump(mode="json"), to_tensors(table))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
