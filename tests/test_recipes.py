"""The recipes in pipelines/ run end to end on tiny random pipelines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = sorted(p for p in (Path(__file__).parents[1] / "pipelines").glob("*.py") if p.stem != "tiny")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipe(recipe, tmp_path):
    command = [sys.executable, str(recipe), "--tiny", "--density", "0.5", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "side_by_side.mp4").stat().st_size > 0
    assert "<html" in (tmp_path / "report.html").read_text()
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0.4 < report["density"]["sparse_sites"] < 0.7
    assert report["fallbacks"] == []
    assert report["metrics"]["psnr"] > 0


def test_every_family_has_a_recipe():
    assert [recipe.stem for recipe in RECIPES] == ["cogvideox", "hunyuan_video", "wan"]
