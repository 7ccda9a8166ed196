"""The rooms of the house: imports go only downwards, heavy packages stay in their room and are imported
late."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dit_sparse"

# room -> rooms it may import from
BELOW = {
    "layout": set(),
    "kernels": {"layout"},
    "state": {"layout"},
    "context": {"layout", "state"},
    "orderings": {"layout", "context", "kernels"},
    "schedule": {"layout"},
    "corrections": {"layout", "context", "kernels"},
    "selectors": {"layout", "context", "kernels", "orderings"},
    "engine": {"layout", "state", "context", "kernels", "orderings", "selectors", "corrections", "schedule"},
    "runtime": {"layout", "state", "context", "kernels", "engine"},
    "patterns": {"layout", "kernels", "orderings"},
    "methods": {"engine", "orderings", "selectors", "corrections", "schedule", "layout", "patterns"},
    "adapters": {"layout", "kernels", "runtime"},
    "stats": {"layout", "runtime"},
    "work": {"layout", "adapters"},
    "forecasting": {"layout", "schedule", "work"},
    "embedded": set(),
    "presets": set(),
    "_install": {"api"},
    "handle": {"adapters", "kernels", "methods", "runtime", "stats"},
    "api": {"adapters", "engine", "handle", "kernels", "methods", "patterns", "presets", "runtime", "state"},
    "profiler": {
        "corrections",
        "layout",
        "state",
        "context",
        "schedule",
        "orderings",
        "selectors",
        "engine",
        "runtime",
        "adapters",
        "methods",
        "patterns",
        "presets",
        "stats",
        "embedded",
        "api",
        "kernels",
    },
    "report": {
        "layout",
        "state",
        "context",
        "schedule",
        "selectors",
        "engine",
        "runtime",
        "adapters",
        "methods",
        "stats",
        "embedded",
        "api",
        "kernels",
        "orderings",
        "patterns",
        "forecasting",
        "work",
    },
    "cli": {
        "report",
        "profiler",
        "adapters",
        "api",
        "methods",
        "embedded",
        "kernels",
        "orderings",
        "patterns",
        "presets",
        "stats",
        "layout",
    },
    "": {"_install", "adapters", "api", "methods", "stats"},
}
HOME_OF = {"triton": "kernels", "flash_attn": "kernels", "flash_kmeans": "kernels", "diffusers": "adapters"}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports_of(path: Path):
    """(module, is it at module level) of every import in a file; TYPE_CHECKING blocks do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def visit(node, top):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                yield child.module, top
                if child.module == "dit_sparse":
                    yield from ((f"dit_sparse.{alias.name}", top) for alias in child.names)
            yield from visit(child, top and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    return list(visit(tree, True))


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    room = room_of(path)
    for module, _ in imports_of(path):
        parts = module.split(".")
        if parts[0] != "dit_sparse" or len(parts) == 1:
            continue
        target = parts[1]
        if target in ("__version__", room):
            continue
        assert target in BELOW[room], f"{path.name} ({room}) imports {module}: the arrow points upwards"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_room(path):
    for module, at_top in imports_of(path):
        package = module.split(".")[0]
        if package in HOME_OF:
            assert room_of(path) == HOME_OF[package], (
                f"{path} imports {package} outside of {HOME_OF[package]}"
            )
            # A Triton kernel file needs triton at its top; it is itself imported late.
            assert not at_top or path.name.startswith("triton_"), f"{path} imports {package} at module level"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short(path):
    limit = 600 if path.name.startswith("triton_") else 300
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


def test_package_imports_without_optional_packages():
    """Everything but the CLI's report imports and lists its methods where triton, FA4 and diffusers do not
    exist."""
    program = """
import sys
for name in ("triton", "flash_attn", "flash_kmeans", "diffusers", "av", "skimage", "jinja2", "matplotlib"):
    sys.modules[name] = None
import torch, dit_sparse
assert "svg2" in dit_sparse.list_methods()
assert dit_sparse.supported_models()["wan"] == ["WanTransformer3DModel"]
assert dit_sparse.kernels.available_backends()["reference"] == "available"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_is_light():
    program = "import sys, dit_sparse; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("first", ["diffusers", "dit_sparse"])
def test_methods_are_added_whichever_is_imported_first(first):
    second = {"diffusers": "dit_sparse", "dit_sparse": "diffusers"}[first]
    program = (
        f"import {first}, {second}; from diffusers import DiffusionPipeline as P; "
        "assert callable(P.enable_sparse_attention) and callable(P.disable_sparse_attention)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
