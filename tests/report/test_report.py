"""The written folder: JSON round trip, page without requests, escaping, and nothing stale."""

from __future__ import annotations

import html
import json
import re

import pytest
from report_samples import SCRIPT_PROMPT, make_context, make_pair, make_stats

from dit_sparse.report import compare
from dit_sparse.report import html as page
from dit_sparse.report.charts import line_chart, nice_ticks
from dit_sparse.report.compare import write_comparison
from dit_sparse.report.density import heat_maps
from dit_sparse.report.schema import Report


def test_folder_holds_what_the_report_names(written):
    folder, report = written
    videos = {"sparse.mp4", "dense.mp4", "side_by_side.mp4", "difference.mp4", "player.webp"}
    assert {path.name for path in folder.iterdir()} == videos | {"report.json", "report.html"}
    assert {report.files.sparse, report.files.dense, report.files.player} < videos
    assert report.files.side_by_side == "side_by_side.mp4"


def test_json_round_trip(written):
    folder, report = written
    text = (folder / "report.json").read_text()
    assert Report.model_validate_json(text) == report
    plain = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert plain["schema_version"] == "1.2"
    assert plain["metrics"]["floor"]["psnr"] == pytest.approx(60, abs=0.1)
    assert plain["time"]["speedup"] == pytest.approx(2.5)
    assert plain["density"]["sparse_sites"] == pytest.approx(0.3)
    assert plain["prompt"] == SCRIPT_PROMPT


def test_page_makes_no_requests_and_escapes_the_prompt(written):
    folder, _ = written
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//cdn|@import|url\(", text)
    assert text.count("<script") == 1 + text.count('<script type="application/json"')
    assert "alert('x')" not in text
    assert "&lt;script&gt;" in text
    assert "&lt;b&gt;bold" in text
    assert "<b>bold" not in text
    assert text.count("data:image/webp;base64,") == 1


def test_a_large_player_file_is_named_without_its_folder(written, tmp_path, monkeypatch):
    folder, report = written
    monkeypatch.setattr(page, "EMBED_LIMIT_BYTES", 10)
    (tmp_path / "player.webp").write_bytes((folder / "player.webp").read_bytes())
    page.write_html(tmp_path / "report.html", report)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '"source": "player.webp"' in text
    assert "base64" not in text
    assert str(tmp_path) not in text


def test_without_a_dense_run(tmp_path):
    report = write_comparison(tmp_path, make_pair(compare=False), make_context("plain"), fps=8)
    assert report.metrics.psnr is None
    assert report.time.dense_s is None
    assert report.files.dense is None
    names = {"sparse.mp4", "player.webp", "report.json", "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_identical_videos(tmp_path):
    report = write_comparison(tmp_path, make_pair(identical=True), make_context("plain"), fps=8)
    assert report.metrics.identical
    assert report.metrics.psnr is None
    assert "all frames identical" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_interrupted_rewrite_leaves_no_report(tmp_path, monkeypatch):
    write_comparison(tmp_path, make_pair(), make_context("first"), fps=8)

    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "write_side_by_side", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_comparison(tmp_path, make_pair(), make_context("second"), fps=8)
    assert not (tmp_path / "report.json").exists()
    assert not (tmp_path / "side_by_side.mp4").exists()
    assert not list(tmp_path.glob(".*"))


def test_videos_of_different_length_leave_the_folder_alone(tmp_path):
    pair = make_pair()
    object.__setattr__(pair.sparse, "frames", pair.sparse.frames[:-1])
    with pytest.raises(ValueError, match="different shapes"):
        write_comparison(tmp_path / "out", pair, make_context(), fps=8)
    assert not (tmp_path / "out").exists()


def test_the_page_says_what_was_not_measured(tmp_path):
    write_comparison(tmp_path, make_pair(floor=False), make_context("plain"), fps=8)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not measured: it was not asked for: --floor (in Python" in text
    assert "Not measured: no AlexNet weights found" in text


def test_the_command_of_the_page_is_the_command_of_the_json(written):
    folder, report = written
    text = (folder / "report.html").read_text(encoding="utf-8")
    shown = re.search(r'<code id="command">(.*?)</code>', text, re.DOTALL)
    assert shown is not None
    assert html.unescape(shown[1]) == report.command
    for fact in (report.model.config_sha256, report.device.name, *filter(None, report.versions.values())):
        assert html.escape(fact) in text


def test_heat_map_means_branches_and_marks_dense_cells():
    (heat,) = heat_maps(make_stats(layers=3, steps=4).records)
    assert heat.layers == [0, 1, 2]
    assert heat.steps == [0, 1, 2, 3]
    assert heat.density[1] == pytest.approx([1.0, 0.3, 0.3, 0.3])
    assert heat.dense_reason[0] == ["dense_step", None, None, "attention_mask"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 8.0], ["0", "2", "4", "6", "8"]),
        ([30.5, 39.0], ["30.0", "32.5", "35.0", "37.5", "40.0"]),
    ],
)
def test_tick_labels_tell_the_ticks_apart(values, labels):
    chart = line_chart("x", [("x", "one", values)])
    assert chart is not None
    assert [label for _, label in chart.ticks] == labels


@pytest.mark.parametrize(("low", "high"), [(0, 1), (38.2, 50.1), (0.995, 0.9996), (5, 5), (0, 0), (-3, 1e6)])
def test_ticks_enclose_the_data(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 8


def test_chart_breaks_its_line_at_missing_values():
    chart = line_chart("PSNR", [("PSNR", "one", [30.0, None, 31.0, 32.0])])
    assert chart is not None
    assert len(chart.series[0].lines) == 2
    assert line_chart("PSNR", [("PSNR", "one", [None, None])]) is None
