"""Cost tables made by hand."""

from dit_sparse.profiler.cost_table import AttentionTime, CostTable, DenseTime, PlanningTime


def linear_table(
    lengths=(1000,),
    exponent=2.0,
    heads=4,
    head_dim=64,
    block_size=(16, 16),
    precisions=("native",),
    planning=None,
    fixed=0.5,
    slope=8.0,
    dense=8.0,
    factor=0.5,
):
    """Attention takes fixed + slope * density ms at the first length; every precision ``factor`` of the one
    before it."""
    scale = {n: (n / lengths[0]) ** exponent for n in lengths}
    return CostTable(
        device="Planted GPU",
        date="2026-11-23",
        torch_version="2",
        triton_version=None,
        command="none",
        dtype="bfloat16",
        heads=heads,
        head_dim=head_dim,
        block_size=block_size,
        attention=tuple(
            AttentionTime(tokens=n, density=d, precision=p, ms=(fixed + slope * d) * scale[n] * factor**i)
            for n in lengths
            for i, p in enumerate(precisions)
            for d in (0.05, 0.25, 1.0)
        ),
        dense=tuple(DenseTime(tokens=n, kernel="k", ms=dense * scale[n]) for n in lengths),
        planning=tuple(
            PlanningTime(what=what, tokens=n, ms=ms) for n in lengths for what, ms in (planning or {}).items()
        ),
    )
