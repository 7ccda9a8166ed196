"""Recordings of heads whose needs are known: what they attend to is planted, errors follow from it."""

import dataclasses

import numpy as np
import torch

from dit_sparse.kernels.pooling import block_lengths
from dit_sparse.layout import TokenLayout, ceil_div
from dit_sparse.patterns import Calibration, GridFacts, ModelFacts, ScheduleFacts
from dit_sparse.profiler.recording import Recording, Template
from dit_sparse.selectors import forced_pairs
from dit_sparse.selectors.spend import spend

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
WINDOWS = ((1.0, 1.0, 1.0), (1.0, 0.25, 0.25))
BLOCK = 16


def templates(densities=DENSITIES, windows=WINDOWS, observed=False):
    found = [Template("dense", 1.0), Template("skip", 0.0)]
    found += [Template(kind, d) for kind in ("mask", "radial", "dynamic") for d in densities]
    found += [Template("window", d, shape) for shape in windows for d in densities]
    return (*found, *(Template("observed", d) for d in densities if observed))


def planted(
    groups=((2, 6), (6, 10)),
    layers=2,
    heads=3,
    grid=(4, 8, 10),
    text=0,
    position="none",
    seed=0,
    drift=0.0,
    better=None,
    densities=DENSITIES,
    windows=WINDOWS,
    block=BLOCK,
    axes=None,
    sharp=None,
    masses=True,
    observed=False,
):
    """A recording.

    Args:
        drift: how much the mass of a later step group differs from that of the first, 0 to 1.
        better: (kind, heads): templates of a kind that cost those heads a hundredth of their error.
        axes: orders ``[G, L, H]``; raster when None.
        sharp: how concentrated every head is, ``[L, H]``, >= 0; random when None.
        observed: whether observed heads were tried, which serve better than masks.
    """
    rng = np.random.default_rng(seed)
    layout = TokenLayout(*grid, text, position)
    n = ceil_div(layout.num_tokens, block)
    size = (len(groups), layers, heads)
    tried = templates(densities, windows, observed)
    sharp = rng.uniform(0.5, 5.0, (layers, heads)) if sharp is None else np.asarray(sharp, dtype=float)
    base = rng.standard_normal((layers, heads, n, n))
    forced = forced_pairs(layout.num_tokens, layout.video_tokens, text, (block, block), torch.device("cpu"))
    text_rows = forced_pairs(
        layout.num_tokens, layout.video_tokens, text, (block, block), torch.device("cpu"), diagonal=False
    ).all(-1)
    mass = {}
    error, density, recall = np.zeros((3, *size, len(tried)))
    rows = (block_lengths(layout.num_tokens, block, torch.device("cpu")) / layout.num_tokens)[:, None]
    for g in range(size[0]):
        noise = rng.standard_normal(base.shape)
        for layer in range(layers):
            logits = (1 - drift * g) * base[layer] + drift * g * noise[layer]
            share = torch.softmax(torch.from_numpy(sharp[layer][:, None, None] * logits), dim=-1).float()
            if masses:
                mass[g, layer] = share.half()
            for c, template in enumerate(tried):
                if template.kind == "dense":
                    kept = torch.ones_like(share, dtype=torch.bool)
                elif template.kind == "skip":
                    kept = text_rows[None, :, None].expand(share.shape)
                else:
                    kept = spend(-share[None], forced, template.density, "head")[0]
                lost = ((share * ~kept).sum(-1, keepdim=True) * rows).sum((1, 2)).numpy()
                # Windows, bands and estimates serve less well than the heaviest pairs.
                factors = {"dynamic": 1.5, "window": 4.0, "radial": 5.0, "observed": 0.5}
                factor = factors.get(template.kind, 1.0)
                if better is not None and template.kind == better[0]:
                    factor = np.where(np.isin(np.arange(heads), better[1]), 0.01, factor)
                error[g, layer, :, c] = factor * lost**2 / heads
                density[g, layer, :, c] = kept.float().mean((1, 2)).numpy()
                recall[g, layer, :, c] = np.clip(1 - lost, 0, 1)
    axes = np.zeros(size, dtype=np.uint8) if axes is None else np.asarray(axes, dtype=np.uint8)
    axes_error = rng.uniform(0.5, 1.0, (*size, 6)).astype(np.float32)
    np.put_along_axis(axes_error, axes[..., None].astype(int), 0.1, axis=-1)
    video = (grid[0], grid[1], grid[2])
    low_bit = np.zeros((*size[:2], 5), dtype=np.float32)
    low_bit[..., 1:] = rng.uniform(1e-5, 1e-4, low_bit[..., 1:].shape)
    rest = torch.zeros(*size, 6)
    return Recording(
        model=ModelFacts(
            name="planted",
            transformer="Planted",
            family="wan",
            config_sha256="0" * 64,
            layers=layers,
            heads=heads,
            head_dim=64,
        ),
        grid=GridFacts(
            frames=video[0],
            height=video[1],
            width=video[2],
            text_tokens=text,
            text_position=position,
            block_size=(block, block),
        ),
        schedule=ScheduleFacts(scheduler="S", num_steps=groups[-1][1], groups=tuple(groups)),
        calibration=Calibration(prompts=("a", "b"), seeds=(0, 1)),
        templates=tried,
        axes=torch.from_numpy(axes),
        axes_error=torch.from_numpy(axes_error),
        axes_sparse=rest,
        axes_incoherence=rest + 1,
        error=torch.from_numpy(error).float(),
        density=torch.from_numpy(density).float(),
        recall=torch.from_numpy(recall).float(),
        low_bit_error=torch.from_numpy(low_bit),
        sensitivity=torch.from_numpy(rng.uniform(0.1, 1.0, size[:2])).float(),
        pattern=torch.zeros(size, dtype=torch.uint8),
        stability=torch.ones(*size, 2),
        lse=torch.zeros(*size, 2),
        mass=mass,
        seconds=1.0,
        peak_bytes=None,
    )


def full_size(groups=4, layers=40, heads=40, seed=0):
    """As many heads as a large model has, with errors that fall exponentially at random rates; no masses."""
    rng = np.random.default_rng(seed)
    steps = tuple((10 * i, 10 * (i + 1)) for i in range(groups))
    small = planted(steps, layers=1, heads=1, grid=(21, 45, 80), block=1024, masses=False)
    size, tried = (groups, layers, heads), small.templates
    asked = np.array([t.density for t in tried])
    kinds = {"mask": 1.0, "dynamic": 1.3, "window": 3.0, "radial": 4.0, "dense": 0.0, "skip": 1.0}
    factor = np.array([kinds[t.kind] for t in tried]) * rng.uniform(0.3, 3.0, (*size, len(tried)))
    energy = 10 ** rng.uniform(-4, 0, (*size, 1)) / heads
    error = energy * np.exp(-rng.uniform(1, 30, (*size, 1)) * asked) * factor
    density = torch.from_numpy(np.broadcast_to(asked, error.shape).copy()).float()
    return dataclasses.replace(
        small,
        model=small.model.model_copy(update={"layers": layers, "heads": heads}),
        axes=torch.zeros(size, dtype=torch.uint8),
        error=torch.from_numpy(error).float(),
        density=density,
        recall=density,
        sensitivity=torch.from_numpy(rng.uniform(0.1, 1.0, size[:2])).float(),
        low_bit_error=torch.full((*size[:2], 5), 1e-4),
    )
