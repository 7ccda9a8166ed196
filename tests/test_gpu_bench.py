"""The benchmarks run on a CPU at toy shapes, with a timer of our own: nothing is first run on the GPU."""

import json
import math

import gpu_check
import pytest
import torch
from gpu_bench import baselines, discover, harness, memory, planning, recording
from gpu_bench.attention import attention_rows
from gpu_bench.clustering import kmeans_rows
from gpu_bench.models import MODELS, Model, smooth_qkv
from gpu_bench.rows import row_moves
from gpu_bench_cpu import CPU, ROOT

from dit_sparse import kernels

TEXT_FIRST = Model("cogvideox", (3, 9, 11), 2, 32, 42, 2, 0.2, 13, "first")
TEXT_LAST = Model("hunyuan_video", (3, 9, 11), 2, 32, 60, 1, 0.1, 21, "last")
NO_TEXT = Model("wan", (3, 9, 11), 2, 32, 40, 2, 0.2)


pytestmark = pytest.mark.usefixtures("single_thread")


def test_every_file_is_found_and_every_default_benchmark_runs_by_some_name():
    files = {path.stem for path in (ROOT / "scripts" / "gpu_bench").glob("*.py")} - {"__init__"}
    assert set(discover()) == files
    asked_for = {"attention", "tune", "rows", "kmeans", "planning", "memory", "layers"}
    assert asked_for <= harness.BENCHMARKS.keys()
    assert {"attention", "rows", "kmeans"} <= set(harness.GROUPS["kernels"])
    assert not any("tune" in members for members in harness.GROUPS.values())
    for name, (function, _) in harness.BENCHMARKS.items():
        assert function.__doc__, f"{name} prints the first line of its docstring"


@pytest.mark.parametrize(("name", "group"), [("attention", "kernels"), ("kernels", None), ("new", "rows")])
def test_a_name_is_given_once(name, group):
    discover()
    before = dict(harness.BENCHMARKS)
    with pytest.raises(ValueError, match=name):
        harness.benchmark(name, group=group)(lambda settings: [])
    assert before == harness.BENCHMARKS


def test_attention_flops_count_the_tokens_of_ragged_blocks():
    block_map = harness.random_map(300, 2, 1.0, "cpu")
    assert harness.attention_flops(block_map, 32) == 4 * 32 * 300 * 300 * 2


@pytest.mark.parametrize("spread", [0.0, 0.75])
def test_random_maps_have_the_density_and_spread_asked_for(spread):
    counts = harness.random_map(128 * 200, 2, 0.25, "cpu", spread=spread).to_mask()[0].sum(-1)
    assert counts.float().mean().item() == pytest.approx(50, rel=0.05)
    assert 50 * (1 - spread) <= counts.min() <= 50 * (1 - 0.8 * spread)
    assert 50 * (1 + 0.8 * spread) <= counts.max() <= 50 * (1 + spread) + 1


def test_kernel_benchmarks():
    rows = attention_rows("toy", (130, 1, 16), CPU)  # Triton's interpreter is slow
    by_kernel = {row["kernel"]: row for row in rows if row["density"] == 1.0}
    assert by_kernel["dense CPU (SDPA)"]["speedup_vs_best_dense"] == 1.0
    assert by_kernel["sparse FlexAttention"]["ms"] > 0
    for refused in ("sparse flash4", "dense sageattention (int8)"):
        assert by_kernel[refused]["note"]
    assert by_kernel["sparse triton"].get("note") or by_kernel["sparse triton"]["ms"] > 0
    moves = row_moves("toy", (300, 2, 32), CPU)
    assert [row["kernel"] for row in moves if "of_copy" not in row] == ["copy q, k, v", "copy q"]
    assert all(row["ms"] > 0 and row["host us"] > 0 for row in moves)
    assert all(row["ms"] > 0 for row in kmeans_rows("toy", (300, 2, 32), (5,), CPU))


def test_a_failing_kernel_is_a_note():
    def broken():
        raise RuntimeError("no\nkernel image")

    row = harness.measure({"kernel": "x"}, broken, CPU, 1.0)
    assert row == {"kernel": "x", "ms": None, "tflops": None, "note": "RuntimeError: no kernel image"}
    assert harness.fastest([row, {"ms": 2.0}, {"ms": 1.0}]) == {"ms": 1.0}
    assert harness.fastest([row]) is None


@pytest.mark.parametrize("tokens", [256, 300])
def test_flex_attention_computes_the_same_blocks(tokens):
    block_map = harness.random_map(tokens, 2, 0.5, "cpu")
    q, k, v = (torch.randn(1, tokens, 2, 32) for _ in range(3))
    expected = kernels.block_sparse_attention(q, k, v, block_map, impl="reference")
    found = baselines.flex_sparse(q, k, v, block_map)().transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def mass_of_heaviest_quarter(q, k):
    logits = torch.einsum("bnhd,bmhd->bhnm", q.float(), k.float()) / q.shape[-1] ** 0.5
    mass = kernels.block_mass(q, k, logits.logsumexp(-1), (32, 32), q.shape[-1] ** -0.5)
    return mass.sort(dim=-1, descending=True).values[..., : mass.shape[-1] // 4].sum(-1).mean().item()


def test_smooth_data_has_structure_to_find():
    torch.manual_seed(0)
    layout = Model("wan", (5, 16, 16), 2, 64, 1, 1, 0.0).layout
    q, k, _ = smooth_qkv(layout, 2, 64, "cpu")
    assert mass_of_heaviest_quarter(q, k) > 0.7
    noise = mass_of_heaviest_quarter(torch.randn(q.shape), torch.randn(q.shape))
    assert noise < 0.4


@pytest.mark.parametrize("model", [NO_TEXT, TEXT_FIRST, TEXT_LAST], ids=lambda m: m.family)
def test_planning(model):
    rows = planning.planning_rows("toy", model, CPU)
    assert json.loads(json.dumps(rows)) == rows
    assert not [row["note"] for row in rows if row.get("note")]
    in_ms = {row["method"]: row for row in rows if row["unit"] == "ms"}
    percent = {row["method"]: row for row in rows if row["unit"] == "% of dense"}
    assert set(percent) == {
        f"{name}{suffix}" for name in recording.compositions(model) for suffix in ("", " + compensation")
    }
    (dense,) = (row for row in rows if row["density"] == 1.0)
    for name, row in percent.items():
        always = {"order", "score", "select", "map", "pack", "unpack", "attend"}
        moved = set() if name.startswith("raster") else {"permute", "restore"}
        clustered = {"cluster"} if name.startswith(("svg2", "clusters")) else set()
        corrected = {"compensate"} if name.endswith("compensation") else set()
        present = {stage for stage in planning.STAGES if row[stage] is not None}
        assert present == always | moved | clustered | corrected, name
        assert (row["first cluster"] is not None) == bool(clustered)
        ratio = in_ms[name]["call"] / dense["attend"]
        assert row["call"] == pytest.approx(100 * ratio, rel=1e-2)
        # text, whose rows and columns are forced, raises the density
        assert 0.2 < row["density"] < 0.5


def test_planning_stages_are_those_of_the_engine():
    """The stages, run one by one on the records, give what the engine gave."""
    model = TEXT_LAST
    torch.manual_seed(0)
    x = smooth_qkv(model.layout, 2, 32, "cpu", torch.float32)
    method = recording.compositions(model)["clusters, mean_key"]
    seen = recording.record(method, x, model.layout)
    stages = planning.planning_stages(method, x, seen) | planning.attention_stages(
        method, x, model.layout, seen
    )
    assert torch.equal(stages["choose"](), seen.mask)
    q, _, v = stages["permute"]()
    assert torch.equal(q, seen.correction.q) and torch.equal(v, seen.correction.v)
    assert torch.equal(stages["unpack"]().block_map.to_mask(), seen.mask)
    out = kernels.restore_rows(stages["attend"](), seen.plan.q_order)
    carried, _ = stages["call, plan carried"]()
    assert (out - carried).norm() < 0.2 * out.norm()  # its plan is one step of Lloyd older


def test_planning_per_step_counts_plans():
    ms = {"cluster": 4.0, "order": 1.0, "score": 1.0, "select": 1.0, "map": 1.0, "pack": 3.0, "unpack": 2.0}
    ms |= {"permute": 0.5, "restore": 0.25, "attend": 100.0, "compensate": 100.0}
    assert planning.per_step(ms, 1, 40) == pytest.approx(8 + 0.75)
    # 4 plans in 10 steps: each is made and packed, 6 steps unpack
    assert planning.per_step(ms, 3, 10) == pytest.approx((4 * (8 + 3) + 6 * 2) / 10 + 0.75)
    assert planning.per_step(ms | {"first cluster": 44.0}, 1, 40) == pytest.approx(8 + 40 / 40 + 0.75)


def test_memory_of_the_state():
    rows = {
        (row["method"], row["refresh_interval"]): row for row in memory.memory_rows("toy", TEXT_LAST, CPU)
    }
    assert not [row["note"] for row in rows.values() if "note" in row]
    made = recording.compositions(TEXT_LAST)["svg2"].ordering
    video = TEXT_LAST.layout.video_tokens
    clusters = min(made.q_clusters, video // 32) + min(made.kv_clusters, video // 16)
    held = rows["svg2", 1]["state_per_layer_MB"] * 1e6 / (2 * 32 * clusters)
    assert held == pytest.approx(2, rel=0.2) or held == pytest.approx(4, rel=0.2), "bytes per centroid entry"
    assert rows["svg2", 5]["state_per_layer_MB"] > rows["svg2", 1]["state_per_layer_MB"]
    assert rows["draft", 1]["state_per_layer_MB"] == 0
    # int8 rows and float32 directions of the residual, beside bits and shapes that branches share
    tokens, heads, dim = TEXT_LAST.layout.num_tokens, TEXT_LAST.heads, TEXT_LAST.dim
    residual = 8 * heads * (tokens + 4 * dim)
    assert rows["mosaic", 1]["state_per_layer_MB"] * 1e6 == pytest.approx(residual, rel=0.15)
    assert rows["mosaic", 1]["state_GB"] == pytest.approx(
        rows["mosaic", 1]["state_per_layer_MB"] * TEXT_LAST.layers * TEXT_LAST.forwards / 1e3, abs=1e-3
    )


def test_a_broken_benchmark_does_not_cost_the_others(monkeypatch, capsys, tmp_path):
    def broken(settings):
        """It breaks."""
        raise RuntimeError("out of luck")

    def sound(settings):
        """It runs."""
        return [{"ms": settings.time(lambda: None)}]

    monkeypatch.setitem(harness.BENCHMARKS, "broken", (broken, True))
    monkeypatch.setitem(harness.BENCHMARKS, "sound", (sound, True))
    path = tmp_path / "results.json"
    report = {"command": ["gpu_check.py"], "environment": harness.environment(), "tests": "not run"}
    assert not gpu_check.measure(["broken", "sound"], CPU, report, path)
    written = json.loads(path.read_text())
    assert written["results"].keys() == {"sound"} and written["results"]["sound"][0]["ms"] >= 0
    assert written["environment"]["torch"] == torch.__version__
    printed = capsys.readouterr()
    assert "out of luck" in printed.err and "sound: It runs." in printed.out
    assert gpu_check.measure(["sound"], CPU, report, None)


def test_names_stand_for_benchmarks_and_groups():
    discover()
    assert gpu_check.chosen(["planning", "kernels", "rows"])[0] == "planning"
    assert gpu_check.chosen(["kernels", "rows"]) == harness.GROUPS["kernels"]
    assert "tune" not in gpu_check.chosen(None) and "layers" in gpu_check.chosen([])


def test_shapes_of_the_issue():
    tokens = {name: (m.layout.num_tokens, m.heads, m.dim) for name, m in MODELS.items()}
    assert tokens == {
        "Wan-14B 720p": (75_600, 40, 128),
        "HunyuanVideo 720p": (118_800 + 256, 24, 128),
        "Wan-1.3B 480p": (32_760, 12, 128),
        "CogVideoX-5B 480p": (17_550 + 226, 48, 64),
    }
    assert [m.dense_steps for m in MODELS.values()] == [10, 5, 10, 10]
    assert math.isclose(MODELS["HunyuanVideo 720p"].guard, 0.1)
