"""The benchmark of pooled attention, at a toy shape on the CPU."""

import pytest
from gpu_bench.pooled import bench_pooled, pooled_flops, pooled_rows
from gpu_bench_cpu import CPU


def test_every_operation_stands_beside_dense_attention():
    rows = pooled_rows("toy", (300, 2, 32), CPU)
    assert not [row for row in rows if row.get("note")]
    dense, *rest = rows
    assert dense["percent_of_dense"] == 100
    assert [row["kernel"] for row in rest] == [
        "compensate reference",
        "mean_key_mass reference",
        "pool_blocks reference",
    ]
    assert all(row["percent_of_dense"] > 0 for row in rest)
    assert rest[0]["density"] == pytest.approx(1 / 3, abs=1e-3)
    assert bench_pooled.__doc__


def test_flops_are_those_of_two_products():
    # 300 queries, 3 mean keys, head size 32, 2 heads; a multiply and an add each
    assert pooled_flops(300, 2, 32) == 2 * (2 * 300 * 3 * 32 * 2)
