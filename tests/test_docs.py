"""What the README and the docstrings show runs as printed; what they list is there."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import dit_sparse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(example.strip().splitlines()) <= 9
    scope = {}
    exec(example.replace("num_inference_steps=25", "num_inference_steps=2"), scope)
    assert len(scope["video"]) == 17
    assert "mosaic" in capsys.readouterr().out


def test_readme_lists_every_method_and_kernel():
    for name in [*dit_sparse.list_methods(), *dit_sparse.kernels.available_backends()]:
        assert f"| `{name}` |" in README, f"{name} is missing from the README's tables"


def test_readme_tree_matches_the_disk():
    (tree,) = re.findall(r"## Files\n\n```\n(.*?)```", README, flags=re.S)
    listed = {line.split()[0] for line in tree.splitlines() if not line.startswith(" ")}
    folders = {f"{p.name}/" for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    assert listed == folders - {"outputs/", "build/", "dist/", "dit_sparse.egg-info/"}


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("module", ["dit_sparse", "api", "layout", "methods.base", "schedule", "state"])
def test_docstring_examples(module):
    found = importlib.import_module(module if module == "dit_sparse" else f"dit_sparse.{module}")
    result = doctest.testmod(found, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0


def test_method_of_the_architecture_page_runs(monkeypatch):
    """The page's example of a new method is what a contributor will paste."""
    from tiny import FAMILIES, run

    from dit_sparse.methods import base

    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(@register_method.*?)```", page, flags=re.S)
    monkeypatch.setattr(base, "_METHODS", dict(base._METHODS))
    header = (
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from dit_sparse.engine import SparseMethod\n"
        "from dit_sparse.methods import ComposedConfig, ModelInfo, register_method\n"
        "from dit_sparse.selectors import TopK\n"
    )
    exec(header + example, {"__name__": "dit_sparse.methods.example"})
    make, inputs = FAMILIES["wan"]
    pipe = make()
    fields = {"density": 0.5, "dense_steps": 0, "min_tokens": 0, "block_size": 16}
    with dit_sparse.sparse_attention(pipe, "raster_topk", **fields) as handle:
        run(pipe, inputs())
        assert handle.stats().density_sparse_sites == pytest.approx(0.5, rel=0.2)
