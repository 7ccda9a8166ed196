"""Turn the site records of a sparse run into the density section of the report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from dit_sparse.layout import SiteRecord
from dit_sparse.report.schema import DenseCalls, Density, HeatMap


def density_section(stats: Any) -> Density:
    """The report's density section from ``Handle.stats()``."""
    return Density(
        total=stats.density_total if stats.records else None,
        sparse_sites=stats.density_sparse_sites,
        sites=len(stats.records),
        dense_sites=dict(stats.dense_sites),
        dense_calls=dense_calls(stats.records),
        kernels=dict(Counter(record.backend for record in stats.records)),
        heat_maps=heat_maps(stats.records),
    )


def dense_calls(records: Iterable[SiteRecord]) -> list[DenseCalls]:
    """Every call that ran dense; steps whose calls ran dense in the same layers share an entry."""
    found: dict[tuple[str, str, int], list[SiteRecord]] = defaultdict(list)
    for record in records:
        if record.dense_reason is not None:
            found[record.site.transformer, record.dense_reason, record.site.step].append(record)
    entries: dict[tuple[Any, ...], DenseCalls] = {}
    for (transformer, reason, step), group in sorted(found.items()):
        layers = sorted({record.site.layer for record in group})
        branches = sorted({str(record.site.branch) for record in group})
        same = (transformer, reason, *layers, *branches)
        entry = entries.setdefault(
            same,
            DenseCalls(
                transformer=transformer, reason=reason, branches=branches, steps=[], layers=layers, calls=0
            ),
        )
        entry.steps.append(step)
        entry.calls += len(group)
    return list(entries.values())


def heat_maps(records: Iterable[SiteRecord]) -> list[HeatMap]:
    """One layer x step map per denoiser, mean over its guidance branches.

    A cell carries a dense reason only if all its branches ran dense.
    """
    cells: dict[str, dict[tuple[int, int], list[SiteRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        cells[record.site.transformer][record.site.layer, record.site.step].append(record)
    return [_heat_map(name, cells[name]) for name in sorted(cells)]


def _heat_map(transformer: str, cells: dict[tuple[int, int], list[SiteRecord]]) -> HeatMap:
    layers = sorted({layer for layer, _ in cells})
    steps = sorted({step for _, step in cells})
    return HeatMap(
        transformer=transformer,
        layers=layers,
        steps=steps,
        density=[[_mean_density(cells.get((layer, step), [])) for step in steps] for layer in layers],
        dense_reason=[[_shared_reason(cells.get((layer, step), [])) for step in steps] for layer in layers],
    )


def _mean_density(records: list[SiteRecord]) -> float | None:
    return sum(float(record.density) for record in records) / len(records) if records else None


def _shared_reason(records: list[SiteRecord]) -> str | None:
    reasons = [record.dense_reason for record in records]
    return ", ".join(sorted({r for r in reasons if r})) if reasons and all(reasons) else None
