"""``dit-sparse compare`` as a user meets it: a small real comparison, resumed; errors on one line."""

import json
from pathlib import Path

import pytest
from test_commands import error_line, run

from dit_sparse.cli.compare import parse_candidates, read_prompts
from dit_sparse.report.comparison_schema import Comparison
from dit_sparse.report.evaluation_folder import writing_in

SMALL = ["--height", "32", "--width", "32", "--num-frames", "9", "--steps", "2", "--prompts", "1"]
METHODS = ["--method", "draft:block_size=16", "--method", "svg2:score=mean_key,block_size=16"]


def test_a_comparison_and_its_resumption(tmp_path):
    arguments = ["compare", *SMALL, *METHODS, "--density", "0.5", "--output", str(tmp_path)]
    result = run(*arguments, "--layers", "--baseline", "draft:block_size=16")
    assert result.exit_code == 0, result.output
    names = {"comparison.json", "comparison.md"} | {
        f"quality_{cost}.{suffix}" for cost in ("density", "time") for suffix in ("png", "svg")
    }
    assert {path.name for path in tmp_path.iterdir()} == names | {".lock"}
    assert str(tmp_path / "comparison.md") in result.stdout.replace("\n", "")
    first = Comparison.model_validate_json((tmp_path / "comparison.json").read_text())
    assert [row.label for row in first.rows if row.kind == "method"] == METHODS[1::2]
    assert first.command.startswith("dit-sparse compare --height 32")
    assert all(row.layers for row in first.rows if row.kind == "method")
    page = (tmp_path / "comparison.md").read_text()
    assert "tiny-wan, 9 x 32 x 32, 2 steps, 1 prompts, float32" in page
    assert "| `svg2:score=mean_key,block_size=16` |" in page

    result = run(*arguments[:-2], "--density", "0.9", "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    second = Comparison.model_validate_json((tmp_path / "comparison.json").read_text())
    assert second.rows[: len(first.rows)] == first.rows
    assert [row.density for row in second.rows[len(first.rows) :]] == [0.9, 0.9]

    assert "another setup, prompts" in error_line(run(*arguments[:7], *arguments[7:], "--prompts", "2"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "nope"], "nope"),
        (["--method", "draft:oops"], "key=value"),
        (["--method", "draft", "--method", "draft"], "draft twice"),
        (["--method", "draft:topp=1"], "no field 'topp'"),
        (["--density", "7"], "density"),
        (["--baseline", "svg9"], "none of the compared methods"),
        (["--prompts", "0"], "--prompts"),
        (["--prompts", "100000"], "held-out prompts, got 100000"),
        (["--prompt-file", "none.txt"], "none.txt"),
        (["--steps", "0"], "--steps"),
        (["--device", "abacus"], "abacus"),
        (["--model", "no/such/folder"], "no/such/folder"),
    ],
)
def test_errors_are_one_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert message in error_line(run("compare", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_candidates_are_typed():
    (svg2,) = parse_candidates(["svg2:score=mean_key,dense_layers=0-1,47,top_p=0.8"])
    assert svg2.method == "svg2"
    assert svg2.fields == {"score": "mean_key", "dense_layers": "0-1,47", "top_p": 0.8}
    assert {candidate.label for candidate in parse_candidates(None)} >= {"draft", "oracle", "sale", "svg_ear"}


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a circle\n\n  a square \n")
    assert read_prompts(path, 16) == ["a circle", "a square"]
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(path, 16)


def test_every_option_is_documented():
    document = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    section = document.partition("## compare")[2].partition("\n## ")[0]
    result = run("compare", "--help")
    options = {word.rstrip(",") for word in result.stdout.split() if word.startswith("--")} - {"--help"}
    assert {"--method", "--density", "--baseline", "--layers"} <= options
    assert [name for name in options if name.partition("/")[0] not in section] == []


def test_rows_of_the_file_are_json(tmp_path):
    arguments = ["compare", *SMALL, *METHODS[:2], "--density", "1.0", "--no-floor", "--output", str(tmp_path)]
    assert run(*arguments).exit_code == 0
    rows = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == ["dense", "method"]
    assert rows[1]["psnr"][0] > 60


def test_profiles_stand_beside_methods():
    pattern, preset = parse_candidates(None, ["tiny-wan/balanced:correction=residual", "wan2.1-1.3b/fast"])
    assert (pattern.method, pattern.profile, pattern.density) == (None, "tiny-wan/balanced", 0.25)
    assert pattern.fields == {"correction": "residual"}
    assert (preset.profile, preset.density) == ("wan2.1-1.3b/fast", None)


def test_a_method_with_a_density_of_its_own_has_one_row():
    """Beside the asked density that it is equal to, or alone: never under one that it did not run at."""
    (candidate,) = parse_candidates(["svg2:density=0.5"])
    assert candidate.rows([0.5, 0.3]) == {0.5: {"method": "svg2", "density": 0.5}}
    assert list(candidate.rows([0.3, 0.2])) == [0.5]


@pytest.mark.parametrize("spec", ["svg2:method=draft", "svg2:backend=reference", "svg2:profile=x"])
def test_what_is_no_field_of_a_method_is_refused(spec):
    with pytest.raises(ValueError, match="which is no field of a method: use --"):
        parse_candidates([spec])


def test_two_comparisons_do_not_write_in_one_folder(tmp_path):
    with writing_in(tmp_path):
        line = error_line(run("compare", *SMALL, *METHODS, "--density", "0.5", "--output", str(tmp_path)))
    assert "another command writes in" in line
