"""Files whose checksums are right, but whose headers and tables make no sense."""

import pytest
import torch
from made_profiles import make_header, make_table, refused, write_sealed

from dit_sparse.layout import TokenLayout
from dit_sparse.patterns import MASK, OBSERVED, WINDOW, ProfileError, load_profile, read_header, save_profile
from dit_sparse.patterns.named_tensors import to_tensors


def facts_of(change):
    facts = make_header().model_dump(mode="json")
    change(facts)
    return facts


def setting(*path_and_value):
    *path, last, value = path_and_value

    def change(facts):
        for key in path:
            facts = facts[key]
        facts[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("format_version", 3), "format_version is 3, .* up to 2: upgrade dit_sparse"),
        (setting("format_version", 10**15), "upgrade dit_sparse"),
        (setting("format_version", 0), "format_version is 0, .* cannot read any more"),
        (setting("format_version", -1), "format_version is -1"),
        (setting("format_version", True), "format_version is True"),
        (setting("format_version", "1"), "format_version is '1'"),
        (setting("format_version", None), "format_version is None"),
        (setting("model", "layers", 0), "model.layers is 0"),
        (setting("model", "layers", 10**9), "model.layers is 1000000000"),
        (setting("model", "layers", "2"), "model.layers is '2'"),
        (setting("model", "layers", 3), r"kind is .*\[2, 2, 3\].*must be .*\[2, 3, 3\]"),
        (setting("model", "heads", 2), r"must be .*\[2, 2, 2\]"),
        (setting("model", "config_sha256", "xyz"), "config_sha256 is 'xyz'"),
        (setting("model", []), "model is"),
        (setting("new", 1), "new is 1"),
        (setting("correction", "magic"), "correction is 'magic' .*'none'.*'residual'"),
        (setting("correction", ""), "correction is ''"),
        (setting("correction", None), "correction is None"),
        (setting("correction", ["none"]), "correction is "),
        (setting("correction", "x" * 10_000), "correction is 'xxx"),
        (setting("grid", "frames", 2**60), "grid.frames"),
        (setting("grid", "frames", 60_000), r"mask\.\d\.\d is .*must be .*150000"),
        (setting("grid", "frames", 4), r"mask\.\d\.\d is .*must be"),
        (setting("grid", "text_tokens", 3), "text_tokens=3 does not fit text_position='none'"),
        (setting("grid", "text_position", "middle"), "text_position is 'middle'"),
        (setting("grid", "block_size", [0, 8]), r"block_size is \(0, 8\)"),
        (setting("grid", "block_size", [8, -8]), r"block_size is \(8, -8\)"),
        (setting("grid", "block_size", [8]), "grid.block_size"),
        (setting("grid", "block_size", [16, 8]), r"mask\.\d\.\d is .*must be"),
        (setting("schedule", "groups", []), r"step groups are \(\)"),
        (setting("schedule", "groups", [[2, 10]]), r"kind is .*must be .*\[1, 2, 3\]"),
        (setting("schedule", "groups", [[2, 5], [6, 10]]), r"step groups are \(\(2, 5\), \(6, 10\)\)"),
        (setting("schedule", "groups", [[2, 6], [5, 10]]), "without gaps"),
        (setting("schedule", "groups", [[2, 5], [5, 9]]), "without gaps up to 10"),
        (setting("schedule", "groups", [[2, 5], [5, 11]]), "without gaps"),
        (setting("schedule", "groups", [[5, 5], [5, 10]]), "ascending"),
        (setting("schedule", "groups", [[-1, 5], [5, 10]]), "ascending"),
        (setting("schedule", "groups", [[5, 10], [2, 5]]), "ascending"),
        (setting("schedule", "num_steps", 10**6), "num_steps is 1000000"),
        (setting("figures", "density", -0.5), "density is -0.5"),
        (setting("figures", "density", 2), "density is 2"),
        (setting("figures", "error", -1), "error is -1"),
        (setting("calibration", "seeds", ["a"]), "seeds.0 is 'a'"),
        (setting("command", ["x" * 10_000]), "command is"),
    ],
)
def test_headers_that_make_no_sense(tmp_path, change, message):
    """The checksums of these are right."""
    table = make_table(make_header(), kinds=(MASK, WINDOW))
    write_sealed(tmp_path / "a", facts_of(change), to_tensors(table))
    refused(tmp_path / "a", message)


def test_a_grid_of_too_many_tokens(tmp_path):
    facts = make_header(TokenLayout(60_000, 60_000, 60_000)).model_dump(mode="json")
    write_sealed(tmp_path / "a", facts, to_tensors(make_table(make_header(), kinds=(WINDOW,))))
    refused(tmp_path / "a", "216000000000000 tokens, at most 16777216")
    with pytest.raises(ProfileError, match="tokens"):
        read_header(tmp_path / "a")


def at(name, place, value):
    def change(tensors):
        tensors[name][place] = value

    return change


def instead(name, value):
    def change(tensors):
        tensors[name] = value

    return change


def first_mask(tensors):
    return sorted(name for name in tensors if name.startswith("mask."))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at("kind", (0, 1, 2), 7), r"kind\[0, 1, 2\] is 7, must be an index into dense, skip.*, observed"),
        (at("kind", (1, 1, 2), OBSERVED), r"shape\[1, 1, 2, 0\] is .*, must be 0 for what is not a window"),
        (at("axes", (1, 1, 1), 3), r"axes\[1, 1, 1\] is 3, must be 0 for an observed head"),
        (at("density", (1, 1, 1), 0.0), r"density\[1, 1, 1\] is 0.0, must be in \(0, 1\]"),
        (at("shape", (1, 1, 1, 2), 0.5), r"shape\[1, 1, 1, 2\] is 0.5, must be 0 for what is not a window"),
        (at("kind", (1, 0, 0), 255), r"kind\[1, 0, 0\] is 255"),
        (at("axes", (0, 0, 1), 6), r"axes\[0, 0, 1\] is 6, must be an index into THW"),
        (at("precision", (1, 1), 5), r"precision\[1, 1\] is 5, must be an index into native"),
        (at("density", (0, 0, 0), 0.0), r"density\[0, 0, 0\] is 0.0"),
        (at("density", (0, 0, 0), 1.5), r"density\[0, 0, 0\] is 1.5"),
        (at("density", (0, 0, 0), float("nan")), r"density\[0, 0, 0\] is nan"),
        (at("density", (0, 0, 0), float("inf")), r"density\[0, 0, 0\] is inf"),
        (at("constant", (0, 0, 0), -1.0), r"constant\[0, 0, 0\] is -1.0, must be in \[0, 16777216\]"),
        (at("constant", (0, 0, 0), 2e7), r"constant\[0, 0, 0\] is 20000000.0"),
        (at("constant", (0, 0, 0), float("nan")), r"constant\[0, 0, 0\] is nan"),
        (at("shape", (1, 1, 2, 0), float("nan")), r"shape\[1, 1, 2, 0\] is nan"),
        (at("shape", (1, 1, 2, 0), 2.0), r"shape\[1, 1, 2, 0\] is 2.0"),
        (at("shape", (0, 0, 0, 1), 0.5), r"shape\[0, 0, 0, 1\] is 0.5, must be 0 for what is not a window"),
        (at("shape", (1, 1, 2, 1), 0.0), r"shape\[1, 1, 2, 1\] is 0.0, must be in \(0, 1\] for a window"),
        (at("mask_group", (0, 0), 2), r"mask_group\[0, 0\] is 2, must be -1 or a step group below 2"),
        (at("mask_group", (0, 0), -2), r"mask_group\[0, 0\] is -2"),
        (at("mask_group", (0, 0), -1), r"mask_group\[0, 0\] is -1, must be a step group"),
        (at("mask_group", (0, 0), 1), r"mask_group\[0, 0\] is 1, must be a group in which"),
        (
            at("mask_group", (1, 1), 1),
            r"mask_group\[1, 1\] is 1, must be -1: the layer has no head of kind mask",
        ),
        (instead("kind", torch.zeros(2, 2, 3, dtype=torch.int16)), r"kind is torch.int16"),
        (instead("density", torch.ones(2, 6)), r"density is torch.float32 \[2, 6\]"),
        (instead("precision", torch.zeros(2, 2, 3, dtype=torch.uint8)), "precision is"),
        (instead("new", torch.ones(3)), "unknown tensor 'new'"),
        (instead("mask.01.0", torch.ones(3)), "unknown tensor 'mask.01.0'"),
        (
            instead("mask.1.1", torch.zeros(1, 8, 1, dtype=torch.uint8)),
            "mask.1.1 is there, but no mask_group",
        ),
        (instead("mask.9.9", torch.zeros(1, 8, 1, dtype=torch.uint8)), "mask.9.9 is there"),
        (
            instead("mask.0.0", torch.zeros(3, 8, 1, dtype=torch.uint8)),
            r"mask.0.0 is .*must be .*\[1, 8, 1\]",
        ),
        (
            instead("mask.0.0", torch.zeros(1, 8, 2, dtype=torch.uint8)),
            r"mask.0.0 is .*must be .*\[1, 8, 1\]",
        ),
        (lambda tensors: tensors.pop("mask.0.0"), "mask.0.0 is missing"),
        (lambda tensors: tensors.pop("axes"), "no tensors axes"),
    ],
)
def test_tables_that_make_no_sense(tmp_path, change, message):
    """Step group 0, layer 0, head 0 has a mask, so has head 1 in step group 1; head 1 of layer 1 is observed
    there; all else are windows."""
    header = make_header()
    table = make_table(header, kinds=(WINDOW,))
    table.kind[0, 0, 0] = table.kind[1, 0, 1] = MASK
    table.kind[1, 1, 1] = OBSERVED
    table.axes[1, 1, 1] = 0
    table.shape[0, 0, 0] = table.shape[1, 0, 1] = table.shape[1, 1, 1] = 0
    table.mask_group[:, 0] = torch.tensor([0, 1])
    table.masks.update({(group, 0): torch.full((1, 8, 1), 5, dtype=torch.uint8) for group in (0, 1)})
    tensors = {name: tensor.clone() for name, tensor in to_tensors(table).items()}
    write_sealed(tmp_path / "a", header.model_dump(mode="json"), tensors)
    load_profile(tmp_path / "a")
    change(tensors)
    write_sealed(tmp_path / "a", header.model_dump(mode="json"), tensors)
    refused(tmp_path / "a", message)


def test_shared_masks_must_be_of_the_same_heads_and_axes(tmp_path):
    header = make_header()
    table = make_table(header, kinds=(MASK,))
    table.axes[1] = table.axes[0]
    table.mask_group[:] = 0
    masks = {(0, layer): table.masks[0, layer] for layer in (0, 1)}
    table = type(table)(**{**vars(table), "masks": masks})
    save_profile(tmp_path / "a", header, table)
    table.axes[1, 1, 2] = (table.axes[1, 1, 2] + 1) % 6
    with pytest.raises(ProfileError, match=r"mask_group\[1, 1\] is 0, must be a group in which .* same axes"):
        save_profile(tmp_path / "b", header, table)
    table.axes[1] = table.axes[0]
    table.mask_group[:, 0] = torch.tensor([1, 0])
    with pytest.raises(ProfileError, match=r"mask_group\[0, 0\] is 1, must be a group that stores its own"):
        save_profile(tmp_path / "b", header, table)


def test_bits_behind_the_last_column(tmp_path):
    header = make_header(block_size=(8, 7))  # 60 tokens: nine key blocks, two bytes
    table = make_table(header, kinds=(MASK,))
    save_profile(tmp_path / "a", header, table)
    next(iter(table.masks.values()))[1, 2, -1] |= 4
    with pytest.raises(
        ProfileError, match=r"mask\.\d\.\d\[1, 2\] is \d, must be 0 in the bits behind column 8"
    ):
        save_profile(tmp_path / "a", header, table)
