"""The commands as a user meets them: help, errors on one line, exit codes, and a real small generation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
import typer
from typer.testing import CliRunner

from dit_sparse.api import DEFAULT_METHOD
from dit_sparse.cli import generate as generate_module
from dit_sparse.cli import probes, session
from dit_sparse.cli.main import app
from dit_sparse.cli.probes import Finding
from dit_sparse.report.schema import Report

SMALL = ["--height", "32", "--width", "32", "--num-frames", "5", "--steps", "2", "--min-tokens", "0"]


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def error_line(result) -> str:
    """The one line of an error that ended with exit code 2."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_help_needs_no_heavy_library():
    code = (
        "import sys\n"
        "from dit_sparse.cli.main import app\n"
        "try:\n    app(['generate', '--help'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'diffusers', 'numpy', 'av', 'skimage', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 5  # about half a second on an idle machine
    assert "--density" in done.stdout
    assert "--lpips-weights" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--bogus"], "--bogus"),
        (["frobnicate"], "frobnicate"),
        (["generate"], "a prompt is missing"),
        (["generate", "x", "--steps", "0"], "--steps"),
        (["generate", "x", "--set", "oops"], "key=value"),
        (["generate", "x", "--model", "no/such/folder/here"], "no/such/folder/here"),
        (["generate", "x", "--device", "cuda:99"], "cuda:99"),
        (["generate", "x", "--device", "abacus"], "abacus"),
        (["generate", "x", "--device", "cpu", "--offload", "model"], "needs a GPU"),
        (["generate", "x", "--method", "nope"], "nope"),
        (["generate", "x", "--density", "7"], "density"),
        (["generate", "x", "--image", "cat.png"], "cat.png"),
        (["generate", "x", "--backend", "abacus"], "abacus"),
        (["generate", "x", "--floor"], "--compare"),
    ],
)
def test_errors_are_one_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert message in error_line(run(*arguments))
    assert list(tmp_path.iterdir()) == []


def test_unknown_options_of_a_pipeline_are_named(monkeypatch):
    class Pipe:
        def __call__(self, prompt=None, height=None): ...

    options = session.GenerateOptions(prompt="x", guidance=3.0, model="elsewhere")
    with pytest.raises(ValueError, match="Pipe takes no --guidance"):
        session.pipeline_call(Pipe(), options)


def test_image_models_ask_for_an_image():
    class Pipe:
        def __call__(self, image, prompt=None): ...

    with pytest.raises(ValueError, match="give --image"):
        session.pipeline_call(Pipe(), session.GenerateOptions(prompt="x", model="elsewhere"))


def test_debug_shows_the_traceback():
    result = run("generate", "x", "--steps", "0", "--debug")
    assert isinstance(result.exception, ValueError)


def test_a_bug_is_one_line_too(monkeypatch):
    monkeypatch.setattr(session, "run", lambda *a, **k: {}["gone"])
    assert "unexpected KeyError" in error_line(run("generate", "x"))


def test_interrupt_exits_130_and_leaves_nothing(monkeypatch, tmp_path):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "generate_pair", interrupt)
    result = run("generate", "x", *SMALL, "--output", str(tmp_path / "out"))
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert not (tmp_path / "out").exists()


def test_help_shows_every_default():
    """Rich takes what stands in square brackets for markup, and drops it, unless it is escaped."""
    commands = typer.main.get_command(app).commands
    for name, command in commands.items():
        shown = " ".join(run(name, "--help").stdout.replace("│", " ").split())
        for param in command.params:
            for default in re.findall(r"\[default: .*?\]", getattr(param, "help", None) or ""):
                assert default in shown, (name, param.name)


@pytest.mark.parametrize("command", ["generate", "eval", "inspect-attention"])
def test_help_names_the_default_method(command):
    assert f"[default: {DEFAULT_METHOD}]" in run(command, "--help").stdout


def test_list_names_what_there_is():
    result = run("list")
    assert result.exit_code == 0, result.output
    for word in ("svg2", "draft", "tiny-wan", "WanTransformer3DModel", "reference", "Profiles"):
        assert word in result.stdout


def test_doctor_passes_where_generate_can_run():
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert "libx264" in result.stdout
    assert "generate can run here" in result.stdout


def test_doctor_fails_and_says_what_helps(monkeypatch):
    monkeypatch.setattr(
        probes, "examine", lambda: iter([Finding("av", "missing", "gone", "pip install 'x[report]'", True)])
    )
    result = run("doctor")
    assert result.exit_code == 1
    assert "pip install 'x[report]'" in result.stdout
    assert "cannot run here: av" in result.stdout


def test_generate_makes_the_whole_folder(tmp_path):
    output = tmp_path / "out"
    prompt = "a red circle bouncing"
    result = run(
        "generate", prompt, *SMALL, "--density", "0.5", "--compare", "--seed", "3", "--output", str(output)
    )
    assert result.exit_code == 0, result.output
    words = "speed-up self-attention density PSNR floor SSIM LPIPS backend fallbacks report.html"
    for word in words.split():
        assert word in result.stdout
    report = Report.model_validate_json((output / "report.json").read_text())
    assert (report.video.frames, report.video.height, report.video.width) == (5, 32, 32)
    assert report.seed == 3
    assert report.command == f"dit-sparse generate '{prompt}' {' '.join(SMALL)} " + (
        f"--density 0.5 --compare --seed 3 --output {output}"
    )
    assert report.config["method"] == DEFAULT_METHOD
    assert report.config["density"] == 0.5
    assert report.metrics.floor is not None  # unasked: the embedded model is cheap
    assert report.metrics.floor.kernel == "reference"
    assert report.density.recall is not None  # likewise
    assert report.time.speedup_attention is not None
    assert report.density.heat_maps
    assert report.density.heat_maps[0].steps == [0, 1]
    assert report.time.dense is not None
    assert len(report.time.dense.step_s) == 2
    assert len(report.time.sparse.step_s) == 2
    assert (
        0 < report.time.sparse.attention_s < report.time.sparse.transformer_s <= report.time.sparse.denoise_s
    )
    with av.open(str(output / "side_by_side.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5


def test_full_density_from_one_seed_equals_dense(tmp_path):
    arguments = ["--density", "1.0", "--compare", "--no-floor", "--output", str(tmp_path)]
    assert run("generate", "a red circle", *SMALL, *arguments).exit_code == 0
    metrics = json.loads((tmp_path / "report.json").read_text())["metrics"]
    assert metrics["floor"] is None
    assert "--floor" in metrics["floor_unmeasured"]
    assert metrics["identical"] or metrics["psnr"] > 60


def test_generate_without_comparison(tmp_path):
    result = run(
        "generate", "a red circle", *SMALL, "--method", "draft", "--no-compare", "--output", str(tmp_path)
    )
    assert result.exit_code == 0, result.output
    names = {"sparse.mp4", "player.webp", "report.json", "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_every_option_is_documented():
    document = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    names = set(session.GenerateOptions.model_fields) - {"prompt"} | {"config"}
    missing = [name for name in names if f"--{name.replace('_', '-')}" not in document]
    assert missing == []
    assert generate_module.generate.__doc__
