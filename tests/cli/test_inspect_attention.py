"""``dit-sparse inspect-attention`` as a user meets it: a small real run, errors on one line, documented."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_commands import error_line, run

from dit_sparse.api import DEFAULT_METHOD
from dit_sparse.report.attention_schema import (
    Attention,
    Curves,
    HeadFigures,
    Pattern,
    PointFigures,
)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
SECTION = DOCUMENT.partition("## inspect-attention")[2].partition("\n## ")[0]
SMALL = ["--height", "32", "--width", "32", "--num-frames", "5", "--steps", "2", "--set", "min_tokens=0"]


def test_a_run_on_the_embedded_model(tmp_path):
    arguments = ["--steps-at", "50%", "--layers", "0,7", "--heads", "1", "--points", "0,1,1"]
    result = run(
        *("inspect-attention", "a red circle", *SMALL, *arguments, "--density", "0.5"),
        *("--set", "block_size=16", "--seed", "3", "--output", str(tmp_path)),
    )
    assert result.exit_code == 0, result.output
    attention = Attention.model_validate_json((tmp_path / "attention.json").read_text())
    assert [(f.step, f.layer, f.head) for f in attention.figures] == [(1, 0, 1), (1, 7, 1)]
    assert attention.prompt == "a red circle"
    assert attention.seed == 3
    assert attention.grid == (2, 4, 4)
    assert attention.points == [(0, 1, 1)]
    assert attention.block_size == (16, 16)
    assert (attention.method["method"], attention.method["density"]) == (DEFAULT_METHOD, 0.5)
    assert attention.generation["num_inference_steps"] == 2
    assert attention.command.startswith("dit-sparse inspect-attention 'a red circle' --height 32")
    assert (tmp_path / "attention.html").stat().st_size > 10_000
    for name in attention.files:
        assert (tmp_path / name).is_file()
        assert name in result.stdout.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a prompt is missing"),
        (["x", "--method", "nope"], "nope"),
        (["x", "--density", "7", *SMALL], "got 7"),
        (["x", "--points", "1,2"], "'1,2'"),
        (["x", "--points", "0"], "got 0"),
        (["x", "--set", "topp=1"], "no field 'topp'"),
        (["x", "--steps", "4", "--steps-at", "4"], "0 to 3"),
        (["x", "--steps-at", "soon"], "'soon'"),
        (["x", "--layers", "8"], "0 to 7"),
        (["x", "--heads", "two"], "'two'"),
        (["x", "--device", "abacus"], "abacus"),
        (["x", "--model", "no/such/folder"], "no/such/folder"),
        (["x", *SMALL, "--points", "0,9,0", "--layers", "0", "--steps-at", "0"], "0,9,0"),
    ],
)
def test_errors_are_one_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert message in error_line(run("inspect-attention", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_every_option_is_documented():
    result = run("inspect-attention", "--help")
    options = {word.rstrip(",") for word in result.stdout.split() if word.startswith("--")} - {"--help"}
    assert {"--steps-at", "--layers", "--heads", "--points", "--method"} <= options
    assert [name for name in options if name not in SECTION] == []


@pytest.mark.parametrize("model", [Attention, HeadFigures, Pattern, Curves, PointFigures])
def test_every_field_of_the_file_is_documented(model):
    assert [name for name in model.model_fields if f"`{name}`" not in SECTION] == []


def test_help_needs_no_heavy_library():
    code = (
        "import sys\n"
        "from dit_sparse.cli.main import app\n"
        "try:\n    app(['inspect-attention', '--help'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'diffusers', 'numpy', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
