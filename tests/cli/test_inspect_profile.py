"""``dit-sparse inspect``: good files are shown whole, bad ones are one line."""

import sys
from pathlib import Path

import pytest
from test_commands import error_line, run

sys.path.insert(0, str(Path(__file__).parents[1] / "patterns"))
from made_profiles import make_header, make_table

from dit_sparse.cli.profile_tables import LETTERS, STYLES, head_map, mask_lines
from dit_sparse.patterns import DYNAMIC, KINDS, MASK, OBSERVED, Profile, save_profile
from dit_sparse.report.profile_maps import head_pairs, layer_densities


@pytest.fixture
def profile(tmp_path):
    header = make_header(layers=3, heads=4).model_copy(update={"correction": "residual"})
    made = Profile(header, make_table(header, 5), tmp_path / "one.safetensors")
    save_profile(made.path, header, made.table)
    return made


def test_a_good_file_is_shown(profile, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    place = ",".join(map(str, (profile.table.kind == MASK).nonzero()[0].tolist()))
    result = run("inspect", str(profile.path), "--mask", place, "--png", str(tmp_path / "png"))
    assert result.exit_code == 0, result.output
    shown = result.stdout
    header = profile.header
    assert any(line.split() == ["correction", "residual"] for line in shown.splitlines())
    for text in (header.recipe, header.model.transformer, header.calibration.prompts[0], header.command):
        assert text in shown
    assert "3 x 4 x 5 tokens, blocks of 8 x 8" in shown
    assert "10 of UniPCMultistepScheduler; dense before 2" in shown
    assert "25.0% of the block pairs" in shown and "1.23% of a layer's output" in shown
    assert "not predicted" in shown
    for layer, density in enumerate(layer_densities(header, profile.table)):
        assert any(line.split()[:2] == [str(layer), f"{density:.1%}"] for line in shown.splitlines())
    assert (tmp_path / "png" / "map.png").is_file()
    assert (tmp_path / "png" / f"mask_{place.replace(',', '_')}.png").is_file()


def test_every_kind_has_a_letter_and_colours_of_its_own():
    assert len(set(LETTERS)) == len(set(STYLES)) == len(LETTERS) == len(STYLES) == len(KINDS)


@pytest.mark.parametrize("width", [160, 12])
def test_the_map_in_the_terminal_has_every_head(profile, width):
    for group in range(2):
        _, *lines = head_map(profile, group, width)
        assert len(lines) == 3
        for layer, line in enumerate(lines):
            letters = [LETTERS[k] for k in profile.table.kind[group, layer].tolist()]
            body = line.plain[6:]
            assert (body[::4] if width == 160 else body) == "".join(letters)


def test_the_mask_in_the_terminal_is_the_mask(profile):
    place = tuple((profile.table.kind == MASK).nonzero()[0].tolist())
    pairs = head_pairs(profile, place)
    title, *lines = mask_lines(profile, place, pairs)
    assert f"{pairs.double().mean():.1%} of 8 x 8 pairs" in title.plain
    assert [line.plain for line in lines] == [
        "".join("██" if x else "  " for x in row) for row in pairs.tolist()
    ]


def test_large_masks_are_averaged(profile):
    import torch

    place = tuple((profile.table.kind == MASK).nonzero()[0].tolist())
    pairs = torch.zeros(80, 80, dtype=torch.bool)
    pairs[:40] = True
    pairs[79, 79] = True
    _, *lines = mask_lines(profile, place, pairs)
    assert [line.plain for line in lines[:20]] == ["█" * 80] * 20
    assert lines[20].plain == " " * 80
    assert lines[39].plain == " " * 78 + "░" * 2


def damaged(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged, "one.safetensors"),
        (lambda content: b"", "one.safetensors"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "SHA-256"),
        (lambda content: content.replace(b"balanced", b"bAlanced"), "damaged"),
    ],
)
def test_bad_files_are_one_line(profile, change, message):
    profile.path.write_bytes(change(profile.path.read_bytes()))
    assert message in error_line(run("inspect", str(profile.path)))


def test_what_cannot_be_shown_is_one_line(profile, tmp_path):
    assert "none.safetensors" in error_line(run("inspect", str(tmp_path / "none.safetensors")))
    assert "no profile 'nothing'" in error_line(run("inspect", "nothing"))
    preset = tmp_path / "a.yaml"
    preset.write_text("method: svg2")
    assert "is a preset" in error_line(run("inspect", str(preset)))
    assert "0 to 2" in error_line(run("inspect", str(profile.path), "--mask", "0,3,0"))
    folder = tmp_path / "png"
    for kind in (DYNAMIC, OBSERVED):
        place = ",".join(map(str, (profile.table.kind == kind).nonzero()[0].tolist()))
        line = error_line(run("inspect", str(profile.path), "--mask", place, "--png", str(folder)))
        assert f"is {KINDS[kind]}: it has no mask" in line
    assert not folder.exists()
