"""The observer of a recording: what it draws from every dense attention call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dit_sparse.context import Observation, PlanContext
from dit_sparse.layout import Site, ceil_div, pack_bits, unpack_bits
from dit_sparse.profiler.record_first import learn_first
from dit_sparse.profiler.record_heads import Trial, energy, fit_blocks, ordered_heads, try_templates
from dit_sparse.profiler.record_observed import HeadTrials
from dit_sparse.profiler.record_settings import RecordSettings
from dit_sparse.profiler.record_sums import Key, Sums
from dit_sparse.selectors import SelectionInput
from dit_sparse.selectors.base import keep_smallest

HEAVIEST = "record.heaviest"
"""Key in the layer's state: the step group, and bits ``[B, H, nQ, ceil(nK / 8)]`` of its first step."""
LEARNT = "record.learnt"
"""The step group, and what heads learnt at its first step, by chunk: see :mod:`~.record_observed`."""
PAIR_BYTES = 64
"""Working memory of a pair of blocks: sorted as int64, ranked, masked."""
VALUE_BYTES = 20
"""Of a value of q beside its copies in the head's order: float32 outputs and their squares."""


class Recorder:
    """Observes one dense run of a recording; selects everything.

    Args:
        settings: what to look at.
        component: name of the recorded transformer in the pipeline.
        several: whether there are several prompts. Masks are then tried on prompts that they were not drawn
            from; else on later steps of the group than the first observed.
        sums: of earlier prompts; None before the first.
        on_layer: called when a layer of an observed step is done in the first guidance branch.
    """

    def __init__(
        self,
        settings: RecordSettings,
        component: str,
        several: bool,
        sums: Sums | None,
        on_layer: Callable[[Site], None],
    ) -> None:
        self.settings, self.component, self.several, self._sums = settings, component, several, sums
        self._on_layer = on_layer
        steps = settings.observed_steps
        kinds = [template.kind for template in settings.templates]
        self._masks = "mask" in kinds
        self._learning = [i for i, kind in enumerate(kinds) if kind == "observed"]
        self._others = [i for i, kind in enumerate(kinds) if kind != "observed"]
        self._group_of = {step: group for group, observed in enumerate(steps) for step in observed}
        self._mass: dict[Key, Tensor] = {}  # of this prompt
        self._first_step: dict[Key, Tensor] = {}
        self._learnt: set[Key] = set()
        self._device = torch.device("cpu")
        self.seen: set[tuple[int, int]] = set()  # (step, layer)

    @property
    def sums(self) -> Sums:
        """What was recorded.

        Raises:
            ValueError: before anything was observed.
        """
        if self._sums is None:
            raise ValueError(f"no attention call of {self.component!r} was observed")
        return self._sums

    def wants(self, context: PlanContext) -> bool:
        """At the observed steps of the recorded transformer."""
        return context.site.transformer == self.component and context.site.step in self._group_of

    def select(self, given: SelectionInput) -> Tensor:
        """Everything."""
        return torch.ones(given.shape, dtype=torch.bool, device=given.q.device)

    def observe(self, seen: Observation) -> None:
        """Add a call to the sums."""
        site = seen.context.site
        self._check_geometry(seen)
        self._device = seen.q.device
        key = (self._group_of[site.step], site.layer)
        total = torch.cat([energy(seen.out[:, :, heads]) for heads in self._chunks(seen)], dim=1)
        if self.sums.prompts == 0 and key not in self._learnt:
            self._learnt.add(key)
            learn_first(seen, list(self._chunks(seen)), total, self.settings, self.sums.tensors, key)
        layer = total.sum(dim=1).clamp(min=1e-30)
        self._add(seen, key, layer)
        self._learn_or_try(seen, key, layer)
        if (site.step, site.layer) not in self.seen:
            self.seen.add((site.step, site.layer))
            self._on_layer(site)

    def end_prompt(self) -> None:
        """Take the mass of a finished generation over, and compare it with the first prompt's."""
        sums = self.sums
        for key, mass in self._mass.items():
            bits = pack_bits(self._heaviest(mass.to(self._device))).cpu()
            if sums.prompts == 0:
                sums.mass[key], sums.heaviest[key] = mass, bits
                continue
            sums.mass[key] += mass
            sums.tensors["overlap"][key][:, 0] += _overlap(bits, sums.heaviest[key])
            sums.tensors["overlaps"][key][0] += 1
        sums.prompts += 1
        self._mass, self._first_step = {}, {}

    def _check_geometry(self, seen: Observation) -> None:
        layout, block = seen.context.layout, seen.context.block_size
        if self._sums is None:
            sizes = (
                *(len(self.settings.groups), seen.context.num_layers, seen.q.shape[2]),
                len(self.settings.templates),
            )
            self._sums = Sums.new(sizes, layout, block, seen.q.shape[-1])
        first = self._sums.layout
        if layout.grid != first.grid or block != self._sums.block_size:
            raise ValueError(
                f"all prompts must have one size: this one has {layout.grid} tokens along T, H and W in "
                f"blocks of {block}, those before had {first.grid} in blocks of {self._sums.block_size}"
            )

    def _chunks(self, seen: Observation) -> Iterator[slice]:
        batch, tokens, heads, dim = seen.q.shape
        pairs = ceil_div(tokens, seen.context.block_size[0]) * ceil_div(tokens, seen.context.block_size[1])
        head_bytes = batch * (tokens * dim * (4 * seen.q.element_size() + VALUE_BYTES) + pairs * PAIR_BYTES)
        step = self.settings.head_chunk or max(1, self.settings.memory_bytes // head_bytes)
        for start in range(0, heads, step):
            yield slice(start, min(start + step, heads))

    def _add(self, seen: Observation, key: Key, layer: Tensor) -> None:
        sums, values, step = self.sums, seen.context.state.values, seen.context.site.step
        tensors, batch = sums.tensors, seen.q.shape[0]
        axes, bits = tensors["axes"][key], []
        if key not in self._mass:
            n_q, n_k = (ceil_div(sums.layout.num_tokens, size) for size in sums.block_size)
            self._mass[key] = torch.zeros(len(axes), n_q, n_k)
        total, earlier = self._mass[key], self._earlier(key, step)
        for heads in self._chunks(seen):
            part = ordered_heads(seen, heads, axes[heads])
            mass = part.mass()
            total[heads] += fit_blocks(mass.sum(dim=0), *total.shape[1:]).cpu()
            lse = torch.stack([part.lse.mean(dim=-1), part.lse.std(dim=-1, correction=0)], dim=-1)
            tensors["lse"][key][heads] += lse.double().sum(dim=0).cpu()
            bits.append(pack_bits(self._heaviest(mass)))
            if earlier is None or not self._others:
                continue
            source = fit_blocks(earlier[heads].to(mass.device), *mass.shape[-2:])
            templates = tuple(self.settings.templates[i] for i in self._others)
            self._sum_up(key, heads, self._others, try_templates(part, templates, mass, source), layer)
        tensors["samples"][key] += batch
        if earlier is not None:
            tensors["trials"][key] += batch
        found = torch.cat(bits, dim=1)
        held = values.get(HEAVIEST)
        if held is None or held[0] != key[0]:
            values[HEAVIEST] = (key[0], found)
        else:
            tensors["overlap"][key][:, 1] += _overlap(found, held[1]).sum(dim=0).cpu()
            tensors["overlaps"][key][1] += batch

    def _learn_or_try(self, seen: Observation, key: Key, layer: Tensor) -> None:
        """At the first observed step of a group observed heads learn, at the later ones they are tried."""
        densities = [self.settings.templates[i].density for i in self._learning]
        if not densities:
            return
        trials = HeadTrials(densities, self.settings.density, self.settings.residual_rank)
        values, chunks = seen.context.state.values, list(self._chunks(seen))
        held = values.get(LEARNT)
        if held is None or held[0] != key[0]:
            values[LEARNT] = (key[0], tuple(trials.learn(seen, heads) for heads in chunks))
            return
        for heads, learnt in zip(chunks, held[1], strict=True):
            self._sum_up(key, heads, self._learning, trials.apply(seen, heads, learnt), layer)
        self.sums.tensors["later"][key] += len(layer)

    def _sum_up(self, key: Key, heads: slice, templates: list[int], trial: Trial, layer: Tensor) -> None:
        """Add what some templates made of some heads; ``layer`` ``[B]`` is what errors count against."""
        for name, figures in (
            ("error", trial.error / layer[:, None, None]),
            ("density", trial.density),
            ("recall", trial.recall),
        ):
            self.sums.tensors[name][key][heads, templates] += figures.double().sum(dim=0).cpu()

    def _earlier(self, key: Key, step: int) -> Tensor | None:
        """Mass of other calls ``[H, nQ, nK]``, for masks to be tried on this one; None where there is none.
        Any call will do where no mask is tried."""
        if not self._masks:
            return self._mass[key]
        if self.several:
            return self.sums.mass.get(key)
        if step == self.settings.observed_steps[key[0]][0]:
            return None
        if key not in self._first_step:
            self._first_step[key] = self._mass[key].clone()
        return self._first_step[key]

    def _heaviest(self, mass: Tensor) -> Tensor:
        """Bool like ``mass``: the heaviest pairs of every head."""
        return keep_smallest(-mass, self.settings.density, 2)


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of masks as bits ``[..., nQ, bytes]``, float64 ``[...]``."""
    both, either = (
        unpack_bits(bits, bits.shape[-1] * 8).sum(dim=(-1, -2)).double()
        for bits in (one & other, one | other)
    )
    return both / either
