"""Result files to pages: tables between markers, the plot, the command line."""

import json
import re
import sys

import gpu_check
import pytest
import torch
from gpu_bench import discover, harness, tables
from gpu_bench_cpu import ROOT

REPORT = {
    "command": ["scripts/gpu_check.py", "--json", "/somewhere/else/results.json"],
    "environment": {"gpu": "NVIDIA Test", "torch": "2.11.0"},
    "tests": "passed",
    "results": {
        "attention": [
            {"shape": "A", "N": 32760, "kernel": "dense FA4", "density": 1.0, "ms": 8.0, tables.SPEEDUP: 1.0},
            {"shape": "A", "N": 32760, "kernel": "sparse x", "density": 0.25, "ms": 2.5, tables.SPEEDUP: 3.2},
            {"shape": "A", "N": 32760, "kernel": "sparse x", "density": 0.1, "ms": 1.0, tables.SPEEDUP: 8.0},
            {"shape": "A", "N": 32760, "kernel": "sage", "density": 1.0, "note": "not installed"},
        ],
        "planning": [
            {"shape": "A", "method": "dense FA4", "density": 1.0, "unit": "ms", "attend": 8.0},
            {"shape": "A", "method": "svg2", "density": 0.25, "unit": "ms", "attend": 2.4, "score": 0.2},
            {
                "shape": "A",
                "method": "svg2",
                "density": 0.25,
                "unit": "% of dense",
                "attend": 30,
                "score": 2.5,
            },
        ],
        "layers": [
            {"shape": "A", "what": "layer", "mode": "eager", "method": "dense", "ms": 9.0},
            {"shape": "A", "what": "50 steps", "mode": "eager", "method": "dense", "seconds": 700.5},
        ],
    },
}


@pytest.fixture
def page(tmp_path):
    report, page = tmp_path / "results.json", tmp_path / "docs" / "page.md"
    report.write_text(json.dumps(REPORT))
    page.parent.mkdir()
    return report, page, page.parent / "images" / "speedup.svg"


def marked(*names):
    return (
        "prose\n\n"
        + "\n".join(f"<!-- measured: {name} -->\nold\n<!-- end -->\n" for name in names)
        + "tail\n"
    )


def test_tables_are_written_between_the_markers(page):
    report, document, image = page
    document.write_text(marked("attention", "planning", "layers", "runs", "memory"))
    assert tables.render(report, document, image) == ["attention", "planning", "layers", "runs"]
    text = document.read_text()
    assert text.startswith("prose\n") and text.endswith("tail\n") and text.count("old\n") == 1
    assert "| A | 32,760 | dense FA4 | 1.0 | 8.0 | 1.0 |\n|  |  | sparse x | 0.25 | 2.5 | 3.2 |" in text
    assert "- A, sage: not installed" in text
    assert "| shape | method | density | attend | score | dense ms |" in text
    assert "| A | svg2 | 0.25 | 30 | 2.5 | 8.0 |" in text
    assert (
        "| A | layer | eager | dense | 9.0 |" in text and "| A | 50 steps | eager | dense | 700.5 |" in text
    )
    assert "NVIDIA Test, torch 2.11.0" in text and "GPU tests: passed" in text
    assert "`python scripts/gpu_check.py --json results.json`" in text and "somewhere" not in text
    tables.render(report, document, image)
    assert document.read_text() == text, "rendering again changes nothing"
    assert not image.exists()


def test_rows_without_a_figure_are_listed_below_the_table():
    failed = {"shape": "B", "mode": "eager", "note": "OutOfMemoryError: no room"}
    noted = {"shape": "A", "mode": "eager", "ms": 2.0, "note": "warm"}
    reason = "Not measured:\n\n- B, eager: OutOfMemoryError: no room"
    assert tables.markdown([failed]) == reason
    assert tables.markdown([noted, failed]).endswith(f"| A | eager | 2.0 | warm |\n\n{reason}")
    for name, source in (("layers", "layers"), ("planning", "planning")):
        rows = [*REPORT["results"][source], failed]
        assert tables.markdown(tables.view(name, {source: rows})).endswith(reason)


def test_what_a_page_does_not_name_is_among_the_others(page):
    report, document, image = page
    document.write_text(marked("attention", "runs", "others"))
    assert tables.render(report, document, image) == ["attention", "runs", "others"]
    text = document.read_text()
    assert "### planning\n\n| shape | method |" in text
    assert "### layers" not in text and "### attention" not in text


def test_the_plot_is_drawn_and_linked(page):
    pytest.importorskip("matplotlib")
    report, document, image = page
    document.write_text(marked("plot"))
    assert tables.render(report, document, image) == ["plot"]
    assert "](images/speedup.svg)" in document.read_text()
    drawn = image.read_text()
    assert "limit 1/density" in drawn and "<svg" in drawn
    tables.render(report, document, image)
    assert image.read_text() == drawn
    assert tables.speedup_series(REPORT["results"]["attention"]) == {
        "A": {"sparse x": [(0.1, 8.0), (0.25, 3.2)]}
    }


def test_rendering_refuses_what_it_cannot_do(page):
    report, document, image = page
    document.write_text(marked("memory"))
    with pytest.raises(ValueError, match=r"asks for memory.*holds attention"):
        tables.render(report, document, image)
    report.write_text("[]")
    with pytest.raises(ValueError, match="not what gpu_check"):
        tables.render(report, document, image)
    with pytest.raises(ValueError, match="nothing to plot"):
        tables.draw([], image)


def test_the_performance_page_asks_for_what_is_measured():
    discover()
    asked = re.findall(r"<!-- measured: (\S+) -->", (ROOT / "docs" / "performance.md").read_text())
    assert len(set(asked)) == len(asked)
    known = set(harness.BENCHMARKS) | set(tables.VIEWS) | {"plot", "others"}
    assert set(asked) <= known
    assert {"attention", "planning", "memory", "layers", "runs", "plot", "others"} <= set(asked)


def test_the_command_line_renders_and_says_when_there_is_no_gpu(monkeypatch, page, capsys):
    report, document, _ = page
    monkeypatch.setattr(gpu_check, "ROOT", document.parents[1])
    (document.parent / "performance.md").write_text(marked("attention"))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--render", str(report)])
    assert gpu_check.main() == 0
    assert "sparse x" in (document.parent / "performance.md").read_text()
    if not torch.cuda.is_available():
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--quick", "--bench", "kernels", "planning"])
        assert gpu_check.main() == 2
        assert "needs a CUDA GPU" in capsys.readouterr().err
