"""``dit-sparse profile``: a small recording of the embedded model, killed, resumed, chosen from again."""

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_commands import error_line, run
from tiny_wan.captions import describe
from tiny_wan.scenes import is_held_out, sample_scenes

from dit_sparse.cli.profile_run import Plan, step_groups
from dit_sparse.embedded import CALIBRATION_PROMPTS, heldout_prompts
from dit_sparse.patterns import load_profile
from dit_sparse.presets import find_profile
from dit_sparse.profiler import load_recording

DOCUMENT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
SMALL = ["--height", "64", "--width", "64", "--num-frames", "5", "--steps", "3", "--groups", "1"]
SMALL += ["--dense-steps", "1", "--observe", "1"]
COMMAND = ["profile", "a red circle", "a blue star", *SMALL]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A finished recording, by a run that was killed after its first prompt and started again."""
    folder = tmp_path_factory.mktemp("profile") / "work"
    command = [sys.executable, "-m", "dit_sparse.cli.main", *COMMAND, "--work", str(folder)]
    unfinished = folder / "recording-in-progress.safetensors"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while not unfinished.is_file() and process.poll() is None:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert not (folder / "recording.safetensors").exists()
    assert not (folder / "profile.safetensors").exists()
    result = run(*COMMAND, "--density", "0.5", "--work", str(folder))
    assert result.exit_code == 0, result.output
    assert "kept in" in result.stdout.replace("\n", " ")
    return folder


def test_a_killed_run_goes_on(work):
    recording, (header, table) = load_recording(work / "recording.safetensors"), _read(work)
    assert recording.calibration.prompts == ("a red circle", "a blue star")
    assert recording.calibration.seeds == (0, 1)
    assert recording.schedule.groups == header.schedule.groups == ((1, 3),)
    assert header.model.name == "tiny-wan" and header.calibration == recording.calibration
    assert header.command.startswith("dit-sparse profile 'a red circle' 'a blue star' --height 64")
    assert header.figures.density <= 0.5 + 1e-9
    assert float(table.density.double().mean()) == pytest.approx(header.figures.density, abs=1e-6)


def test_a_finished_recording_is_chosen_from_again(work, tmp_path, monkeypatch):
    def refuse(*given, **named):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("dit_sparse.cli.session.load", refuse)
    before = hashlib.sha256((work / "recording.safetensors").read_bytes()).hexdigest()
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, more in zip(paths, (["--density", "0.3"], ["--density", "0.3"], ["--recipe", "paro"])):
        result = run("profile", "--work", str(work), "--output", str(path), *more)
        assert result.exit_code == 0, result.output
        assert str(path) in result.stdout.replace("\n", "")
        assert f"--profile {path}" in result.stdout.replace("\n", "")
    assert hashlib.sha256((work / "recording.safetensors").read_bytes()).hexdigest() == before
    profiles = [load_profile(path) for path in paths]
    assert profiles[0].header.figures == profiles[1].header.figures
    assert profiles[0].header.figures.density <= 0.3 + 1e-9
    assert profiles[2].header.recipe == "paro"
    kinds = {int(kind) for kind in profiles[2].table.kind.unique()}
    assert kinds == {2}, "the recipe of PAROAttention has masks only"


def test_the_same_options_are_taken_and_others_refused(work, tmp_path):
    path = str(tmp_path / "a.safetensors")
    assert run(*COMMAND, "--work", str(work), "--output", path, "--density", "0.5").exit_code == 0
    line = error_line(run(*COMMAND, "--work", str(work), "--guidance", "2", "--seed", "5"))
    assert "--guidance" in line and "--seed" in line and "--height" not in line
    assert "prompts" in error_line(run("profile", "something else", "--work", str(work)))


def test_a_measured_cost_table_predicts_a_speedup(work, tmp_path):
    path = tmp_path / "a.safetensors"
    result = run("profile", "--work", str(work), "--output", str(path), "--density", "0.4", "--measure-cost")
    assert result.exit_code == 0, result.output
    predicted = load_profile(path).header.figures
    assert predicted.attention_speedup > 0
    assert predicted.cost_table.startswith("cpu")
    table = str(work / "cost-table.json")
    again = tmp_path / "b.safetensors"
    result = run(
        "profile", "--work", str(work), "--output", str(again), "--density", "0.4", "--cost-table", table
    )
    assert result.exit_code == 0, result.output
    assert load_profile(again).header.figures == predicted
    both = ["--cost-table", table, "--measure-cost"]
    assert "leave --measure-cost out" in error_line(run("profile", "--work", str(work), *both))


def test_generate_follows_the_profile(work, tmp_path):
    size = ["--height", "64", "--width", "64", "--num-frames", "5", "--steps", "3"]
    profile = str(work / "profile.safetensors")
    result = run("generate", "a red circle", *size, "--profile", profile, "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    from dit_sparse.report.schema import Report

    report = Report.model_validate_json((tmp_path / "report.json").read_text())
    assert report.density.sparse_sites < 1
    line = error_line(run("generate", "a red circle", *size[:-1], "4", "--profile", profile))
    assert "num_steps" in line and "resample" in line


def _read(work):
    profile = load_profile(work / "profile.safetensors")
    return profile.header, profile.table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--density", "0.5", "--speedup", "2"], "give one budget, got --density, --speedup"),
        (["--density", "7"], "density must be in (0, 1], got 7"),
        (["--speedup", "2"], "--cost-table FILE or --measure-cost"),
        (["--recipe", "best"], "unknown recipe 'best'"),
        (["--output", "a.pt"], "must end in .safetensors"),
        (["--groups", "many"], "--groups is 'many'"),
        (["--groups", "40"], "40 groups do not fit 25 steps"),
        (["--groups", "5,3"], "must ascend"),
        (["--groups", "5,9", "--dense-steps", "2"], "leave --dense-steps out"),
        (["a", "b", "--seed", "1", "--seed", "2", "--seed", "3"], "3 times for 2 prompts"),
        (["a", "--prompt-file", "x.txt"], "not both"),
        (["--prompt-file", "x.txt"], "x.txt"),
        (["--model", "no/such/folder"], "calibration prompts are missing"),
        (["a", "--model", "no/such/folder", "--steps", "9"], "no/such/folder"),
        (["a", "--model", "no/such/folder"], "give --steps"),
        (["--device", "abacus"], "abacus"),
        (["--steps", "0"], "--steps"),
    ],
)
def test_errors_are_one_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert message in error_line(run("profile", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_groups_are_a_number_or_first_steps():
    assert step_groups("4", 25, None) == ((5, 10), (10, 15), (15, 20), (20, 25))
    assert step_groups("2", 10, "0") == ((0, 5), (5, 10))
    assert step_groups("1", 10, "0.3") == ((3, 10),)
    assert step_groups("5,9,15", 25, None) == ((5, 9), (9, 15), (15, 25))


def test_calibration_prompts_are_of_training_scenes():
    """Of the grammar, complete captions as the held-out ones, and scenes that are not held out."""
    assert not set(CALIBRATION_PROMPTS) & set(heldout_prompts())
    scenes, rng = sample_scenes(8, 0), random.Random(0)
    assert not is_held_out(scenes.attributes).any()
    captions = [describe(row, rng, complete=True).text for row in scenes.attributes.tolist()]
    assert set(CALIBRATION_PROMPTS) <= set(captions)
    assert tuple(options.prompt for options in Plan.of({}).options) == CALIBRATION_PROMPTS


def test_recipes_are_listed():
    result = run("profile", "--recipe", "list")
    assert result.exit_code == 0
    for name in ("adaspa", "balanced", "fast", "moa", "paro", "quality", "sparse-vdit", "svoo", "2506.16054"):
        assert name in result.stdout


@pytest.mark.parametrize("name", ["tiny-wan/balanced", "tiny-wan/fast"])
def test_shipped_profiles_are_small_and_of_the_embedded_model(name):
    path = find_profile(name)
    assert path.suffix == ".safetensors" and path.stat().st_size < 2**20
    header = load_profile(path).header
    assert header.calibration.prompts == CALIBRATION_PROMPTS
    assert header.figures.density <= {"balanced": 0.25, "fast": 0.125}[name.split("/")[1]] + 1e-9


@pytest.mark.parametrize("command", ["profile", "inspect"])
def test_every_option_is_documented(command):
    section = DOCUMENT.partition(f"## {command}\n")[2].partition("\n## ")[0]
    options = {word.rstrip(",]") for word in run(command, "--help").stdout.split() if word.startswith("--")}
    assert [name for name in options - {"--help"} if f"`{name}`" not in section] == []


def test_help_needs_no_heavy_library():
    code = (
        "import sys\nfrom dit_sparse.cli.main import app\n"
        "try:\n    app(['profile', '--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'diffusers', 'numpy', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
