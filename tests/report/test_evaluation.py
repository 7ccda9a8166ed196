"""The parts of an evaluation without a model: folders, workers, statistics, charts, scores."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_samples import LABELS, make_configurations, make_evaluation, make_setup
from report_samples import make_pair, make_video

from dit_sparse.report.atomic import atomic_folder
from dit_sparse.report.evaluation_chart import COSTS, axis_of, difference_strips, scatter, verdict
from dit_sparse.report.evaluation_folder import (
    Configuration,
    EvaluationFolder,
    Unit,
    load_run,
    save_run,
)
from dit_sparse.report.evaluation_statistics import differences, ranked, summarise, values_of
from dit_sparse.report.evaluation_workers import Workers, launched
from dit_sparse.report.intervals import Interval, mean_interval
from dit_sparse.report.measure import compare_frames
from dit_sparse.report.metrics import capped_mean_psnr
from dit_sparse.report.scores import REGISTRY, ScoredClip, score_clip, select_scores
from dit_sparse.report.thumbnail import LONG_SIDE, write_thumbnail


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    work, place = tmp_path / "work", tmp_path / "clips" / "000"

    def break_off():
        with atomic_folder(place, work) as folder:
            (folder / "a").write_text("half")
            assert not place.exists()
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        break_off()
    assert not place.exists()
    assert list(work.iterdir()) == []
    with atomic_folder(place, work) as folder:
        (folder / "a").write_text("whole")
    assert (place / "a").read_text() == "whole"
    assert list(work.iterdir()) == []
    mask = os.umask(0)
    os.umask(mask)
    assert place.stat().st_mode & 0o777 == 0o777 & ~mask


def test_configurations_lie_apart_if_they_are_run_differently(tmp_path):
    profile = tmp_path / "p.yaml"
    profile.write_text("method: draft\n")
    made = [
        Configuration("svg2", {"method": "svg2"}),
        Configuration("svg2", {"method": "svg2", "dense_steps": 3}),
        Configuration("svg2!", {"method": "svg2"}),
        Configuration("../../etc", {"method": "svg2"}),
        Configuration("p", {"profile": str(profile)}),
    ]
    folders = [configuration.folder for configuration in made]
    assert len(set(folders)) == len(folders)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for name in folders)
    assert all("/" not in name and not name.startswith(".") for name in folders)
    profile.write_text("method: svg2\n")
    assert made[-1].folder != folders[-1]
    assert made[0].folder == folders[0]


def test_begin_clears_what_was_half_done_and_keeps_the_rest(tmp_path):
    folder = EvaluationFolder(tmp_path, make_setup(2), make_configurations())
    folder.begin()
    unit = Unit("clip", 1, folder.configurations[0])
    with folder.making(unit) as place:
        (place / "report.json").write_text("{}")
    (folder.work / "001-half").mkdir()
    (tmp_path / ".index-x.partial.html").write_text("<")
    folder.fail(Unit("dense", 0), "lost")
    assert [failure.error for failure in folder.failures()] == ["lost"]
    folder.begin()
    assert folder.finished(unit)
    assert not folder.finished(Unit("clip", 0, folder.configurations[0]))
    assert list(folder.work.iterdir()) == []
    assert not list(tmp_path.glob(".*.partial*"))
    with pytest.raises(ValueError, match="holds clips of another setup, fps = 8.0 instead of 24.0"):
        EvaluationFolder(tmp_path, make_setup(2, fps=24.0), make_configurations()).begin()
    assert folder.finished(unit)
    (tmp_path / "setup.json").write_text('{"old": 1}')
    with pytest.raises(ValueError, match="no setup of this version"):
        folder.begin()


def test_a_dense_run_comes_back_bit_by_bit(tmp_path):
    run = make_pair().dense
    save_run(tmp_path, run)
    back = load_run(tmp_path)
    assert back.frames.dtype == run.frames.dtype
    assert np.array_equal(back.frames, run.frames)
    facts = {name: value for name, value in vars(run).items() if name != "frames"}
    assert {name: value for name, value in vars(back).items() if name != "frames"} == facts


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_prompt_has_one_process(count):
    prompts = [0, 2, 3, 5, 8]
    shares = [Workers(rank, count).share(prompts) for rank in range(count)]
    assert sorted(prompt for share in shares for prompt in share) == prompts
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_devices_of_processes(monkeypatch):
    assert Workers().device("cuda:1") == "cuda:1"
    assert Workers(1, 2, 1).device("cpu") == "cpu"
    with pytest.raises(ValueError, match="--device cuda:1 is one device for 2 processes"):
        Workers(1, 2, 1).device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Workers(3, 4, 1).device("auto") == "cuda:1"
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() == Workers()


def test_the_main_process_waits_for_the_others(tmp_path):
    told = []

    def tell():
        told.append(len(list(tmp_path.glob("done-*"))))
        if len(told) == 2:
            (tmp_path / "done-1").touch()

    Workers(0, 2).done(tmp_path, tell)
    assert told == [1, 1, 2]
    Workers(1, 2).done(tmp_path, lambda: None)  # the others do not wait


def test_summaries_against_numpy():
    evaluation, times = make_evaluation(make_setup(10))
    summaries = summarise(evaluation, times, LABELS[0])
    assert [s.clips for s in summaries] == [9, 8, 9, 9, 9]
    assert [s.failed for s in summaries] == [1, 2, 1, 1, 1]
    base, other = evaluation.configurations[:2]
    assert summaries[0].differences == {}
    ours, theirs = values_of(other, "psnr"), values_of(base, "psnr")
    both = sorted(ours.keys() & theirs.keys())
    assert len(both) == summaries[1].differences["psnr"].prompts == 8
    gaps = np.array([ours[i] - theirs[i] for i in both])
    found = summaries[1].differences["psnr"].interval
    assert found.mean == pytest.approx(gaps.mean())
    assert found.half == pytest.approx(2.3646 * gaps.std(ddof=1) / math.sqrt(8), rel=1e-4)
    assert found.half < summaries[1].scores["psnr"].half / 5  # what prompts have in common cancels
    assert summaries[1].speedup == pytest.approx(
        np.median([10 / c.sparse_s for c in times.configurations[1].clips])
    )
    with pytest.raises(ValueError, match="baseline 'x' is none of the configurations: use one of svg2"):
        summarise(evaluation, times, "x")


def test_one_prompt_tells_nothing_apart():
    evaluation, times = make_evaluation(make_setup(1), failing=False)
    difference = summarise(evaluation, times, LABELS[0])[1].differences["psnr"]
    assert difference.interval.half is None
    assert not difference.told_apart


def test_verdicts_know_which_end_is_better():
    evaluation, _ = make_evaluation(make_setup(10))
    base, other = evaluation.configurations[0], evaluation.configurations[4]
    found = differences(other, base, evaluation.scores)
    words = {score.name: verdict(found[score.name], score) for score in evaluation.scores}
    assert words == {"psnr": "better", "ssim": "better", "lpips": "better", "flicker": "level"}
    found = differences(base, other, evaluation.scores)
    assert verdict(found["lpips"], evaluation.scores[2]) == "worse"


def test_ranking_follows_the_better_end_and_puts_what_is_missing_last():
    evaluation, times = make_evaluation(make_setup(4), failing=False)
    evaluation.configurations[4].clips.clear()
    times.configurations[4].clips.clear()
    summaries = summarise(evaluation, times, LABELS[0])
    by = {score.name: [s.number for s in ranked(summaries, score)] for score in evaluation.scores}
    assert by["psnr"] == by["lpips"] == [4, 3, 2, 1, 5]


def test_scatter_positions():
    evaluation, times = make_evaluation(make_setup(6), failing=False)
    summaries = summarise(evaluation, times, LABELS[0])
    drawn = scatter(summaries, evaluation.scores[0], COSTS[0], floor=84.0)
    xs, ys = [p.x for p in drawn.points], [p.y.at for p in drawn.points]
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)  # denser is better here: higher up
    assert all(0 <= p.y.low <= p.y.at <= p.y.high <= 100 for p in drawn.points)
    assert all(p.front for p in drawn.points)
    assert drawn.floor is None
    assert drawn.floor_beyond
    lowest = summaries[0]
    assert drawn.points[0].x == pytest.approx(100 * lowest.density.mean * 100 / 80, abs=0.02)  # 0 to 80 %
    lpips = scatter(summaries, evaluation.scores[2], COSTS[0])
    assert all(p.front for p in lpips.points)
    assert [p.y.at for p in lpips.points] == sorted(p.y.at for p in lpips.points)
    within = summaries[2].scores["psnr"].mean
    assert 0 < scatter(summaries, evaluation.scores[0], COSTS[1], floor=within).floor < 100
    assert scatter([], evaluation.scores[0], COSTS[0]) is None


def test_long_intervals_do_not_press_the_means_together():
    axis = axis_of([Interval(20.0, 90.0), Interval(22.0, 70.0)])
    assert axis.ticks[0] >= 17 and axis.ticks[-1] <= 25
    bar = axis.bar(Interval(20.0, 90.0))
    assert (bar.low, bar.high) == (0.0, 100.0)
    assert axis_of([Interval(5.0, None)]).at(5.0) == pytest.approx(50, abs=1)


def test_difference_strips_show_zero():
    evaluation, times = make_evaluation(make_setup(10))
    bars, ticks, zero = difference_strips(summarise(evaluation, times, LABELS[0]), evaluation.scores[0])
    assert LABELS[0] not in bars
    assert 0 <= zero < min(bar.at for bar in bars.values())
    assert len(ticks) >= 2
    one, seconds = make_evaluation(make_setup(3), LABELS[:1])
    assert difference_strips(summarise(one, seconds, LABELS[0]), one.scores[0]) == ({}, (), None)


def scored(frames: int = 5, apart: float = 0.1) -> ScoredClip:
    dense = make_video(frames)
    sparse = np.clip(dense + apart, 0, 1)
    return ScoredClip("a circle", sparse, compare_frames(dense, sparse), Path("x.mp4"), torch.device("cpu"))


def test_the_registry_gives_the_report_s_own_metrics(monkeypatch):
    clip = scored()
    values, reasons = score_clip(clip, select_scores(()))
    assert values["psnr"] == pytest.approx(clip.metrics.psnr)
    assert values["ssim"] == clip.metrics.ssim
    assert values["flicker"] == pytest.approx(clip.metrics.flicker_sparse - clip.metrics.flicker_dense)
    assert (values["lpips"] is None) == ("lpips" in reasons)
    assert score_clip(scored(apart=0.0), select_scores(()))[0]["psnr"] == 100.0
    short, reasons = score_clip(scored(frames=2), select_scores(()))
    assert short["flicker"] is None
    assert "three frames" in reasons["flicker"]


def test_scores_are_chosen_by_name_or_family():
    assert [s.name for s in select_scores(())] == ["psnr", "ssim", "lpips", "flicker"]
    assert [s.name for s in select_scores(["clip", "clip"])][4:] == ["clip"]
    assert [s.name for s in select_scores(["vbench"])][4:] == [n for n in REGISTRY if n.startswith("vbench_")]
    with pytest.raises(ValueError, match="no score 'ps': use one of psnr, ssim"):
        select_scores(["ps"])


def test_missing_packages_and_weights_are_said(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    values, reasons = score_clip(scored(), select_scores(["clip", "vbench"]))
    missing = [name for name in REGISTRY if name == "clip" or name.startswith("vbench")]
    assert [values[name] for name in missing] == [None] * len(missing)
    assert "no CLIP weights" in reasons["clip"]
    assert "pip install vbench" in reasons["vbench_imaging_quality"]
    assert values["psnr"] is not None


def test_capped_mean():
    assert capped_mean_psnr([None, 20.0]) == 60.0
    assert capped_mean_psnr([140.0]) == 100.0
    assert mean_interval([capped_mean_psnr([None])]).text(1) == "100.0"


def test_thumbnails_are_small_and_keep_the_shape(tmp_path):
    from PIL import Image

    write_thumbnail(tmp_path / "a.webp", make_video(3, 720, 1280))
    write_thumbnail(tmp_path / "b.webp", make_video(3, 33, 47))
    with Image.open(tmp_path / "a.webp") as large, Image.open(tmp_path / "b.webp") as small:
        assert large.size == (LONG_SIDE, LONG_SIDE * 720 // 1280)
        assert small.size == (47, 33)
        middle = np.asarray(small.convert("RGB"), np.float64) / 255
    assert np.abs(middle - make_video(3, 33, 47)[1]).mean() < 0.1
