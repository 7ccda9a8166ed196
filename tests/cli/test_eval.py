"""``dit-sparse eval`` as a user meets it: a small real one, failures, resumption, kills, two processes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from test_commands import error_line, run

from dit_sparse.api import DEFAULT_METHOD
from dit_sparse.cli.eval import parse_configurations
from dit_sparse.cli.options import GenerateOptions
from dit_sparse.cli.progress import ClipsProgress
from dit_sparse.report import evaluation as module
from dit_sparse.report.evaluation_schema import Evaluation, Times
from dit_sparse.report.schema import Report

METHODS = ["--method", "svg2:block_size=16", "--method", "draft:block_size=16", "--density", "0.5"]
SIZE = ["--height", "32", "--width", "32", "--num-frames", "5", "--steps", "2", "--min-tokens", "0"]
PROMPTS = 'a red circle bouncing over a blue checkerboard\n\na <b>bold</b> square & "quotes"\n'
LABELS = ["svg2:block_size=16 at 0.5", "draft:block_size=16 at 0.5"]
# One thread everywhere: sums of floats depend on how they are divided.
ALONE = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text(PROMPTS)
    return path


@pytest.fixture(scope="module")
def finished(prompt_file, tmp_path_factory):
    """Arguments, folder and result of an uninterrupted evaluation."""
    folder = tmp_path_factory.mktemp("eval") / "out"
    arguments = ["eval", "--prompt-file", str(prompt_file), *METHODS, *SIZE]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = run(*arguments, "--output", str(folder))
    torch.set_num_threads(threads)
    return arguments, folder, result


def read(folder: Path) -> Evaluation:
    return Evaluation.model_validate_json((folder / "evaluation.json").read_text())


def test_an_evaluation_makes_the_whole_folder(finished):
    _, folder, result = finished
    assert result.exit_code == 0, result.output
    shown = result.stdout.replace("\n", "")
    assert all(str(folder / name) in shown for name in ("index.html", "evaluation.json", "times.json"))
    evaluation = read(folder)
    assert [configuration.label for configuration in evaluation.configurations] == LABELS
    assert evaluation.setup.prompts == [line for line in PROMPTS.splitlines() if line]
    assert evaluation.failures == []
    assert [floor.prompt for floor in evaluation.floor] == [0, 1]
    assert all(floor.psnr > 60 and floor.kernel == "reference" for floor in evaluation.floor)
    for configuration in evaluation.configurations:
        for clip in configuration.clips:
            place = folder / clip.folder
            report = Report.model_validate_json((place / "report.json").read_text())
            assert report.prompt == evaluation.setup.prompts[clip.prompt]
            assert report.seed == clip.prompt
            assert report.config["method"] == configuration.label.partition(":")[0]
            assert clip.scores["ssim"] == report.metrics.ssim
            assert clip.scores["psnr"] == pytest.approx(report.metrics.psnr)
            assert clip.density_total == report.density.total < 1
            assert report.metrics.floor.psnr > clip.scores["psnr"] + 10
            names = {path.name for path in place.iterdir()}
            assert {"report.html", "sparse.mp4", "dense.mp4", "player.webp", "thumbnail.webp"} <= names
    times = Times.model_validate_json((folder / "times.json").read_text())
    assert times.command.startswith("dit-sparse eval --prompt-file")
    assert all(clip.dense_s > 0 < clip.sparse_s for c in times.configurations for clip in c.clips)
    # The dense clip is one run, whatever it is compared with.
    seconds = [[clip.dense_s for clip in c.clips] for c in times.configurations]
    assert seconds[0] == seconds[1]


def test_the_metrics_hold_no_time_and_no_path(finished):
    text = (finished[1] / "evaluation.json").read_text()
    assert '_s"' not in text
    assert str(finished[1]) not in text
    assert "command" not in json.loads(text)


def test_nothing_finished_is_made_again_and_a_configuration_can_be_added(finished, monkeypatch):
    arguments, folder, _ = finished
    before = (folder / "evaluation.json").read_bytes()
    calls = []
    for name in ("dense_run", "sparse_run", "floor_run"):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, _of=original, _name=name, **k: calls.append(_name) or _of(*a, **k)
        )
    assert run(*arguments, "--output", str(folder)).exit_code == 0
    assert calls == []
    assert (folder / "evaluation.json").read_bytes() == before
    more = run(*arguments, "--method", "draft:block_size=8", "--baseline", LABELS[1], "--output", str(folder))
    assert more.exit_code == 0, more.output
    assert calls == ["sparse_run"] * 2  # the dense frames were kept
    assert [len(c.clips) for c in read(folder).configurations] == [2, 2, 2]
    assert run(*arguments, "--output", str(folder)).exit_code == 0
    assert (folder / "evaluation.json").read_bytes() == before
    assert "another setup, seed = 0 instead of 5" in error_line(
        run(*arguments, "--seed", "5", "--output", str(folder))
    )


def test_a_clip_that_fails_does_not_end_the_run(finished, prompt_file, monkeypatch, tmp_path):
    arguments = ["eval", "--prompt-file", str(prompt_file), *METHODS, *SIZE, "--no-floor"]
    arguments += ["--output", str(tmp_path)]
    original = {name: getattr(module, name) for name in ("dense_run", "sparse_run")}

    def dense(pipe, call, **options):
        if call["prompt"].endswith('"quotes"'):
            raise RuntimeError("CUDA error:\n  out of <luck>")
        return original["dense_run"](pipe, call, **options)

    def sparse(pipe, call, asked, **options):
        if asked["method"] == "draft":
            raise ValueError("no draft today")
        return original["sparse_run"](pipe, call, asked, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "dense_run", dense)
        patch.setattr(module, "sparse_run", sparse)
        result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert "4 of the clips failed" in result.stderr
    assert [(f.prompt, f.kind, f.configuration, f.error) for f in read(tmp_path).failures] == [
        (0, "clip", LABELS[1], "ValueError: no draft today"),
        (1, "dense", None, "RuntimeError: CUDA error: out of <luck>"),
        (1, "clip", LABELS[0], "RuntimeError: its dense clip failed"),
        (1, "clip", LABELS[1], "RuntimeError: its dense clip failed"),
    ]
    page = (tmp_path / "index.html").read_text()
    assert "out of &lt;luck&gt;" in page
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    again = read(tmp_path)
    assert again.failures == []
    assert [c.scores["psnr"] for r in again.configurations for c in r.clips] == pytest.approx(
        [c.scores["psnr"] for r in read(finished[1]).configurations for c in r.clips]
    )


def test_the_progress_bar_counts_shares_of_clips():
    with ClipsProgress(Console(file=io.StringIO(), force_terminal=True)) as progress:
        progress("load", 0, None)
        progress.clips(0, 4)
        progress("0 svg2 sparse", 5, 10)
        (every,) = [task for task in progress._progress.tasks if task.description == "all clips"]
        assert every.total == 4
        assert every.completed == pytest.approx(0.5, abs=0.01)
        progress.clips(1, 4)
        assert every.completed == 1
        assert [task.description for task in progress._progress.tasks if task is not every] == [
            "0 svg2 sparse"
        ]


def test_two_writers_in_one_folder_are_refused(finished):
    from dit_sparse.report.evaluation_folder import writing_in

    with writing_in(finished[1]):
        assert "another command writes in" in error_line(run(*finished[0], "--output", str(finished[1])))


def test_two_processes_give_the_same_bytes(finished, tmp_path):
    arguments, folder, _ = finished
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "dit_sparse.cli.main", *arguments, "--output", str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **ALONE}, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    times = Times.model_validate_json((tmp_path / "out" / "times.json").read_text())
    assert times.processes == 2
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == (folder / "evaluation.json").read_bytes()


@pytest.mark.slow
def test_kills_leave_no_trace(prompt_file, tmp_path):
    """20 kills take minutes: DIT_SPARSE_KILLS=20."""
    kills = int(os.environ.get("DIT_SPARSE_KILLS", "8"))
    script = Path(__file__).with_name("kill_eval.py")
    arguments = ["eval", "--prompt-file", str(prompt_file), *METHODS, *SIZE, "--no-floor"]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(kills), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **ALONE},
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen["finished"]) == kills
    assert seen["redone"] == []
    assert all(seen["same"]) and len(seen["same"]) >= 2
    assert seen["left"] == []
    assert seen["units"] == 6
    assert len(set(seen["finished"])) >= 3  # kills came early and late
    assert any(seen["partial"])  # some came while a folder was being filled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "nope"], "nope"),
        (["--method", "draft:oops"], "key=value"),
        (["--method", "draft", "--method", "draft"], "draft twice"),
        (["--density", "7"], "density"),
        (["--density", "0.5", "--density", "0.5"], "0.5 twice"),
        (["--profile", "no/such"], "no/such"),
        (["--baseline", "svg9"], "none of the compared methods"),
        (["--score", "beauty"], "no score 'beauty'"),
        (["--prompts", "0"], "--prompts"),
        (["--prompt-file", "none.txt"], "none.txt"),
        (["--device", "abacus"], "abacus"),
        (["--model", "no/such/folder"], "no/such/folder"),
    ],
)
def test_errors_are_one_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(run("eval", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_configurations_are_methods_and_profiles_by_densities():
    options = GenerateOptions(prompt="p", dense_steps=0.2, backend="reference")
    made = parse_configurations(options, ["draft:dense_steps=3"], ["tiny-wan/balanced"], [0.5, 0.25])
    assert [c.label for c in made] == [
        f"{name} at {density}"
        for name in ("draft:dense_steps=3", "tiny-wan/balanced")
        for density in (0.5, 0.25)
    ]
    shared = {"backend": "reference", "strict": False}
    assert made[0].asked == {**shared, "method": "draft", "density": 0.5, "dense_steps": 3}
    assert made[3].asked == {**shared, "profile": "tiny-wan/balanced", "density": 0.25, "dense_steps": 0.2}
    assert len({c.folder for c in made}) == 4
    assert [c.asked["method"] for c in parse_configurations(options, None, None, None)] == [DEFAULT_METHOD]
    assert "density" not in parse_configurations(options, ["draft"], None, None)[0].asked
    assert [c.label for c in parse_configurations(options, None, ["a"], None)] == ["a"]


def test_every_option_and_every_field_is_documented():
    document = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    section = document.partition("## eval")[2].partition("\n## ")[0]
    result = run("eval", "--help")
    options = {word.rstrip(",") for word in result.stdout.split() if word.startswith("--")} - {"--help"}
    assert {"--method", "--profile", "--score", "--floor"} <= options
    assert [name for name in options if name.partition("/")[0] not in section] == []
    models = (Evaluation, Times, *_parts(Evaluation), *_parts(Times))
    fields = {name for model in models for name in model.model_fields}
    assert [name for name in fields if f"`{name}`" not in section] == []


def _parts(model):
    """The models that a model's lists are made of."""
    from dit_sparse.report import evaluation_schema as schema

    if model is Times:
        return schema.ConfigurationTimes, schema.ClipTime
    return (
        schema.EvaluationSetup,
        schema.ScoreInfo,
        schema.ConfigurationResult,
        schema.ClipResult,
        schema.FloorResult,
        schema.Failure,
    )


def test_a_density_given_twice_is_refused():
    options = GenerateOptions(prompt="x")
    with pytest.raises(ValueError, match="density is given twice"):
        parse_configurations(options, ["svg2:density=0.5"], None, [0.3])
    (made,) = parse_configurations(options, None, ["tiny-wan/fast:allow_resample=true"], None)
    assert (made.asked["profile"], made.asked["allow_resample"]) == ("tiny-wan/fast", True)
