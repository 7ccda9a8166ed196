"""Comparisons: rows are kept as they come, never measured twice, and summed up as statistics say."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dit_sparse.adapters.loading import load_pipeline
from dit_sparse.embedded import NAME, heldout_prompts, tiny_wan_path
from dit_sparse.report import comparison as module
from dit_sparse.report.comparison import FLOORS, Bench
from dit_sparse.report.comparison_rows import Candidate, merged
from dit_sparse.report.comparison_schema import Comparison, LayerFigures, Row, Setup
from dit_sparse.report.comparison_table import markdown, write_pages
from dit_sparse.report.environment import package_versions
from dit_sparse.report.intervals import mean_interval, paired_difference
from dit_sparse.report.pareto import pareto_front
from dit_sparse.report.schema import Device

CALL = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 2, "guidance_scale": 4.0}
CANDIDATES = [
    Candidate("draft", "draft", {"block_size": 16}),
    Candidate("draft:score=mean_key", "draft", {"score": "mean_key", "block_size": 16}),
]


def setup_of(prompts=1, **changes):
    return Setup(
        model=NAME,
        config_sha256="0" * 64,
        dtype="float32",
        device=Device(type="cpu", name="a processor"),
        prompts=heldout_prompts()[:prompts],
        call=CALL,
        dense_steps=0,
    ).model_copy(update=changes)


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(tiny_wan_path(), device="cpu")


@pytest.fixture(scope="module")
def measured(pipe, tmp_path_factory):
    """A whole comparison and its folder."""
    folder = tmp_path_factory.mktemp("comparison")
    bench = Bench(pipe, setup_of(2), folder / "comparison.json", command="dit-sparse compare")
    return folder, bench.run(CANDIDATES, [1.0, 0.4], layers=True)


def counted(monkeypatch, stop_at=None):
    """The prompts of all generations from here on; the one numbered ``stop_at`` is interrupted."""
    prompts, original = [], module.timed_batch

    def run(pipe, call, **options):
        if len(prompts) == stop_at:
            raise KeyboardInterrupt
        prompts.append(call["prompt"])
        return original(pipe, call, **options)

    monkeypatch.setattr(module, "timed_batch", run)
    return prompts


def test_the_rows_hold_what_was_measured(measured):
    folder, comparison = measured
    keys = [row.key for row in comparison.rows]
    assert keys[:3] == [("dense", "dense", None), *(("floor", label, None) for label in FLOORS)]
    assert keys[3:] == [("method", c.label, density) for density in (1.0, 0.4) for c in CANDIDATES]
    assert Comparison.model_validate_json((folder / "comparison.json").read_text()) == comparison
    for row in comparison.rows[1:]:
        assert len(row.psnr) == len(row.ssim) == len(row.denoise_s) == 2
        exact = row.kind == "floor" or row.density == 1.0
        assert (min(row.psnr) > 60) == exact, row.label
        assert (min(row.ssim) > 0.999) == exact
        assert row.density_total == pytest.approx([1.0 if exact else 0.4] * 2, abs=0.08)
        assert all(seconds > 0 for seconds in row.denoise_s)
    sparse = comparison.find("method", "draft", 0.4)
    assert len(sparse.layers.error) == 8
    assert 0 < min(sparse.layers.error) < max(sparse.layers.error) < 1.5
    assert 0 < min(sparse.layers.recall) < max(sparse.layers.recall) < 1
    assert max(comparison.find("method", "draft", 1.0).layers.error) < 1e-3


def test_nothing_is_measured_twice(measured, pipe, monkeypatch):
    folder, comparison = measured
    prompts = counted(monkeypatch)
    again = Bench(pipe, setup_of(2), folder / "comparison.json", command="dit-sparse compare")
    assert again.run(CANDIDATES, [1.0, 0.4], layers=True) == comparison
    assert prompts == []


def test_an_interrupted_comparison_goes_on(measured, pipe, monkeypatch, tmp_path):
    _, whole = measured
    path = tmp_path / "comparison.json"
    with monkeypatch.context() as patch:
        # Warm-up and dense are 3 runs, a row is 2: the second row of the second density breaks off.
        counted(patch, stop_at=3 + 2 * 3 + 1)
        with pytest.raises(KeyboardInterrupt):
            Bench(pipe, setup_of(2), path).run(CANDIDATES, [1.0, 0.4], floor=False)
    kept = Comparison.model_validate_json(path.read_text())
    assert [row.key for row in kept.rows][1:] == [
        ("method", "draft", 1.0),
        ("method", "draft:score=mean_key", 1.0),
        ("method", "draft", 0.4),
    ]
    assert not list(tmp_path.glob(".*"))
    pipe.enable_sparse_attention("draft")  # raises if the interrupted row left its own attached
    pipe.disable_sparse_attention()
    prompts = counted(monkeypatch)
    done = Bench(pipe, setup_of(2), path).run(CANDIDATES, [1.0, 0.4], floor=False)
    assert len(prompts) == 3 + 2, "the reference, and the one row that was lost"
    for row in done.rows:
        assert row.psnr == whole.find(*row.key).psnr


def test_layers_can_be_added_later(measured, pipe, tmp_path, monkeypatch):
    whole = measured[1]
    path = tmp_path / "comparison.json"
    stripped = [row.model_copy(update={"layers": None}) for row in whole.rows]
    path.write_text(whole.model_copy(update={"rows": stripped}).model_dump_json())
    prompts = counted(monkeypatch)
    again = Bench(pipe, setup_of(2), path, command=whole.command).run(CANDIDATES, [0.4], layers=True)
    assert prompts == []
    assert again.find("method", "draft", 0.4) == whole.find("method", "draft", 0.4)
    assert again.find("method", "draft", 1.0).layers is None


def test_another_setup_is_refused(measured, pipe, tmp_path):
    folder, _ = measured
    with pytest.raises(ValueError, match=r"another setup, dense_steps = 0 instead of 0\.5"):
        Bench(pipe, setup_of(2, dense_steps=0.5), folder / "comparison.json")
    with pytest.raises(ValueError, match="another setup, prompts"):
        Bench(pipe, setup_of(1), folder / "comparison.json")
    (tmp_path / "other.json").write_text(json.dumps({"rows": 3}))
    with pytest.raises(ValueError, match="no comparison of this version"):
        Bench(pipe, setup_of(), tmp_path / "other.json")


@pytest.mark.parametrize(
    ("candidate", "densities", "hint"),
    [
        (Candidate("x", "svg9"), [0.5], "unknown method 'svg9'"),
        (Candidate("x", "draft", {"topp": 1}), [0.5], "no field 'topp'"),
        (Candidate("x", "oracle", {"by": "luck"}), [0.5], "by must be one of"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(candidate, densities, hint, pipe, tmp_path, monkeypatch):
    prompts = counted(monkeypatch)
    with pytest.raises(ValueError, match=hint):
        Bench(pipe, setup_of(), tmp_path / "c.json").run([CANDIDATES[0], candidate], densities)
    assert prompts == []
    assert list(tmp_path.iterdir()) == []


def row_of(label, density, psnr, seconds=(2.0, 4.0, 9.0), **fields):
    total = [density] * len(psnr)
    return Row(
        kind="method", label=label, density=density, density_total=total, psnr=list(psnr), kernel="gathered",
        ssim=[0.9, 0.92, 0.94], denoise_s=list(seconds), **fields,
    )  # fmt: skip


def example():
    rows = [
        Row(kind="floor", label=FLOORS[0], density_total=[1.0] * 3, psnr=[40.0, 41.0, 42.0],
            ssim=[1.0] * 3, denoise_s=[1.0] * 3, kernel="gathered"),
        row_of("svg2", 0.5, [30.0, 20.0, 10.0]),
        row_of("draft", 0.5, [32.0, 21.0, 13.0], lpips=[0.1, 0.2, 0.3]),
        row_of("draft", 0.25, [12.0, 11.0, 13.0], fallbacks=["2 calls ran dense"]),
        row_of("svg2", 0.25, [12.5, 13.5, 14.5],
               layers=LayerFigures(step=1, error=[0.1, 0.3], recall=[0.5, 0.7], density=[0.2, 0.3])),
    ]  # fmt: skip
    return Comparison(command="dit-sparse compare", setup=setup_of(3), versions=package_versions(), rows=rows)


def cells(page, label, density):
    """The row of a method in the table of a density, by column head."""
    table = page.partition(f"## Density {density:g}\n")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line]
    (row,) = [line for line in lines if line[0] == f"`{label}`"]
    return dict(zip(lines[0], row))


def test_the_table_gives_intervals_and_paired_differences():
    page = markdown(example(), "svg2", ("quality_density.png",))
    row = cells(page, "draft", 0.5)
    assert row["PSNR, dB"] == "22.00 ± 23.70"
    # 2, 1, 3 apart: prompts differ by 20 dB, the difference by one.
    assert row["difference to baseline, dB"] == "+2.00 ± 2.48"
    assert row["SSIM"] == "0.9200 ± 0.0497"
    assert row["LPIPS"] == "0.2000 ± 0.2484"
    assert row["denoising, s"] == "4.00"
    assert cells(page, "svg2", 0.5)["difference to baseline, dB"] == "-"
    assert cells(page, "draft", 0.25)["difference to baseline, dB"] == "-1.50 ± 2.48"
    assert cells(page, "svg2", 0.25)["output error"] == "0.200"
    assert cells(page, "svg2", 0.25)["mass recall"] == "0.600"
    assert "LPIPS" not in cells(page, "draft", 0.25)
    assert page.index("`svg2` | 0.250") < page.index("`draft` | 0.250"), "the best comes first"
    assert "| `svg2` | 0.25 | 0.100 | 0.300 |" in page
    assert "- draft: 2 calls ran dense" in page
    assert "![quality density](quality_density.png)" in page
    assert f"| {FLOORS[0]} | 1.000 | 41.00 ± 2.48 |" in page


def test_without_a_baseline_there_is_no_difference():
    assert "difference" not in markdown(example()).partition("Mean over prompts")[0]
    with pytest.raises(ValueError, match="'paro' is none of the compared methods: use one of svg2, draft"):
        markdown(example(), "paro")


def test_intervals():
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.half) == (2.0, pytest.approx(4.30265 / math.sqrt(3), rel=1e-4))
    assert mean_interval([5.0]).text(1) == "5.0"
    assert paired_difference([3.0, 5.0], [1.0, 3.0]).text(1, "+") == "+2.0 ± 0.0"
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
    with pytest.raises(ValueError, match="2 prompts with 1"):
        paired_difference([1.0, 2.0], [1.0])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points):
    front = [points[i] for i in pareto_front(points)]
    beaten = {(x, y) for x, y in points if any((a <= x and b >= y) and (a, b) != (x, y) for a, b in points)}
    assert sorted(set(points) - beaten) == front


def test_plots_and_page_are_written_and_repeat(tmp_path):
    comparison = example()
    paths = write_pages(tmp_path, comparison, "svg2")
    names = ["quality_density", "quality_time"]
    assert [path.name for path in paths] == ["comparison.json", "comparison.md", *(f"{n}.png" for n in names)]
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(first) == {"comparison.md", *(f"{n}.{s}" for n in names for s in ("png", "svg"))}
    write_pages(tmp_path, comparison, "svg2")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    for name in names:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 500
            assert len(image.convert("RGB").getcolors(2**24)) > 20
        drawing = (tmp_path / f"{name}.svg").read_text()
        assert drawing.count("<!-- draft -->") + drawing.count("<!-- svg2 -->") >= 2
    assert "dense, own kernel: 41.0 dB" in (tmp_path / "quality_time.svg").read_text()


def test_batches_give_what_single_prompts_give(measured, pipe, tmp_path):
    whole = measured[1]
    bench = Bench(pipe, setup_of(2, batch=2), tmp_path / "comparison.json")
    together = bench.run(CANDIDATES[:1], [0.4], floor=False)
    row = together.find("method", "draft", 0.4)
    assert row.psnr == pytest.approx(whole.find("method", "draft", 0.4).psnr, abs=0.05)
    assert row.denoise_s[0] == row.denoise_s[1], "every prompt has its share"
    assert "batches of 2" in markdown(together)


def test_times_are_left_out_where_asked(pipe, tmp_path):
    comparison = Bench(pipe, setup_of(1, timed=False), tmp_path / "comparison.json").run(
        CANDIDATES[:1], [0.4], floor=False
    )
    assert all(row.denoise_s is None and row.attention_s is None for row in comparison.rows)
    names = {path.name for path in write_pages(tmp_path, comparison)}
    assert names == {"comparison.json", "comparison.md", "quality_density.png"}
    assert "denoising" not in (tmp_path / "comparison.md").read_text()


def test_a_row_that_breaks_is_told_and_the_others_run(pipe, tmp_path, monkeypatch):
    original = module.timed_batch

    def breaks(pipe, call, **options):
        if options["handle"] is not None and options["handle"].config.score == "pooled":
            raise RuntimeError("out of memory")
        return original(pipe, call, **options)

    monkeypatch.setattr(module, "timed_batch", breaks)
    bench = Bench(pipe, setup_of(1), tmp_path / "comparison.json")
    comparison = bench.run(CANDIDATES, [0.4], floor=False)
    assert bench.failures == {"draft 0.4": "RuntimeError: out of memory"}
    assert [row.label for row in comparison.rows if row.kind == "method"] == ["draft:score=mean_key"]
    assert bench.run(CANDIDATES[1:], [0.4], floor=False) == comparison


@pytest.mark.parametrize(
    ("own", "densities", "placed"),
    [(0.196, (0.5, 0.2), 0.2), (0.23, (0.5, 0.2), 0.23), (0.1, (), 0.1)],
)
def test_a_pattern_file_stands_beside_the_density_near_its_own(own, densities, placed):
    candidate = Candidate("p", profile="p.safetensors", fields={"correction": "none"}, density=own)
    assert candidate.rows(densities) == {placed: {"profile": "p.safetensors", "correction": "none"}}


def test_parts_make_one_comparison(measured):
    whole = measured[1]
    parts = [
        whole.model_copy(update={"rows": [row for row in whole.rows if row.label == label]})
        for label in ("draft:score=mean_key", "draft", "dense")
    ]
    joined = merged([*parts, parts[0]], [c.label for c in CANDIDATES], "the command")
    assert joined.command == "the command"
    assert [row.key for row in joined.rows] == [r.key for r in whole.rows if r.kind != "floor"]
    other = whole.model_copy(update={"setup": setup_of(1)})
    with pytest.raises(ValueError, match="another setup, prompts"):
        merged([whole, other], [], None)
