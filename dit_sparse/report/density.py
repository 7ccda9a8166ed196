"""Turn the site records of a sparse run into the density section of the report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from dit_sparse.layout import SiteRecord
from dit_sparse.methods.profiled import Profiled
from dit_sparse.patterns import KINDS
from dit_sparse.report.schema import DenseCalls, Density, HeadChoices, HeadMap, HeatMap, Recall


def density_section(
    stats: Any,
    recall: Recall | None = None,
    unmeasured: str | None = None,
    choices: Iterable[HeadChoices] = (),
) -> Density:
    """The report's density section.

    Args:
        stats: from ``Handle.stats()``.
        recall: from :func:`dit_sparse.report.recall.recall_section`, where it was estimated.
        unmeasured: why it was not.
        choices: from :func:`head_choices`.
    """
    return Density(
        total=stats.density_total if stats.records else None,
        sparse_sites=stats.density_sparse_sites,
        sites=len(stats.records),
        dense_sites=dict(stats.dense_sites),
        dense_calls=dense_calls(stats.records),
        kernels=dict(Counter(record.backend for record in stats.records)),
        heat_maps=heat_maps(stats.records),
        head_maps=head_maps(stats.records),
        choices=list(choices),
        recall=recall,
        recall_unmeasured=unmeasured,
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


def head_maps(records: Iterable[SiteRecord]) -> list[HeadMap]:
    """One layer x head map per denoiser that ran sparse anywhere, mean over its calls."""
    found: dict[str, dict[int, list[SiteRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        found[record.site.transformer][record.site.layer].append(record)
    maps = []
    for transformer, layers in sorted(found.items()):
        heads = next((len(r.heads) for calls in layers.values() for r in calls if r.heads is not None), None)
        if heads is not None:
            rows = [_head_row(layers[layer], heads) for layer in sorted(layers)]
            maps.append(
                HeadMap(
                    transformer=transformer,
                    layers=sorted(layers),
                    sparse=[sparse for sparse, _ in rows],
                    total=[total for _, total in rows],
                )
            )
    return maps


def _head_row(calls: list[SiteRecord], heads: int) -> tuple[list[float] | None, list[float]]:
    """Density of every head of a layer over its sparse calls, and over all."""
    sparse = [call.heads.double() for call in calls if call.heads is not None]
    if not sparse:
        return None, [1.0] * heads
    kept = torch.stack(sparse).sum(dim=0)
    return (kept / len(sparse)).tolist(), ((kept + len(calls) - len(sparse)) / len(calls)).tolist()


def head_choices(config: Any) -> tuple[HeadChoices, ...]:
    """What a profile chose for the heads of every denoiser; empty for methods without one."""
    if not isinstance(config, Profiled):
        return ()
    return tuple(
        HeadChoices(
            transformer=component,
            names=list(KINDS),
            steps=list(profile.header.schedule.groups),
            num_steps=profile.header.schedule.num_steps,
            kinds=profile.table.kind.tolist(),
        )
        for component, profile in sorted(config.profiles.items())
    )


def _mean_density(records: list[SiteRecord]) -> float | None:
    return sum(float(record.density) for record in records) / len(records) if records else None


def _shared_reason(records: list[SiteRecord]) -> str | None:
    reasons = [record.dense_reason for record in records]
    return ", ".join(sorted({r for r in reasons if r})) if reasons and all(reasons) else None
