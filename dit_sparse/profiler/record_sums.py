"""Sums over the observed calls, and how they outlive the process: what a recording is made of.

One safetensors file holds the sums of all finished prompts and, as JSON in its metadata, what they are sums
of. It is replaced whole after every prompt, so a run that is stopped, however, loses one prompt at most.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from dit_sparse.kernels import PRECISIONS
from dit_sparse.layout import TokenLayout
from dit_sparse.orderings import AXIS_ORDERS
from dit_sparse.patterns import Calibration, GridFacts, ModelFacts, ScheduleFacts
from dit_sparse.profiler.recording import Recording, Template
from dit_sparse.profiler.tensor_file import read_tensors, write_tensors

FILE = "recording-in-progress.safetensors"
Key = tuple[int, int]


@dataclass
class Sums:
    """What was recorded so far. Tensors lie on the CPU; sums are float64 but for the mass.

    Args:
        sizes: (G, L, H, C).
        layout: of the first observed call; those of other prompts may differ in text tokens.
        block_size: (query, key) block in tokens.
        head_dim: D.
        prompts: finished.
        seconds: spent on them.
        peak_bytes: largest extra memory so far.
        tensors: sums and first observations by name, see :meth:`new`.
        mass: (group, layer) -> float32 ``[H, nQ, nK]``, sum over observed samples of finished prompts.
        heaviest: (group, layer) -> bits of the first prompt's heaviest blocks.
    """

    sizes: tuple[int, int, int, int]
    layout: TokenLayout
    block_size: tuple[int, int]
    head_dim: int
    prompts: int = 0
    seconds: float = 0.0
    peak_bytes: int | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    mass: dict[Key, Tensor] = field(default_factory=dict)
    heaviest: dict[Key, Tensor] = field(default_factory=dict)

    @classmethod
    def new(
        cls, sizes: tuple[int, int, int, int], layout: TokenLayout, block_size: tuple[int, int], head_dim: int
    ) -> Sums:
        """Nothing recorded yet."""
        groups, layers, heads, templates = sizes
        by_layer, by_head = (groups, layers), (groups, layers, heads)
        orders = len(AXIS_ORDERS)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "samples": (by_layer, torch.int64),  # that the mass and the log-sum-exp are sums over
            "trials": (by_layer, torch.int64),  # that error, density and recall are sums over
            "later": (by_layer, torch.int64),  # the same of templates of kind observed
            "error": ((*by_head, templates), torch.float64),
            "density": ((*by_head, templates), torch.float64),
            "recall": ((*by_head, templates), torch.float64),
            "lse": ((*by_head, 2), torch.float64),
            "overlap": ((*by_head, 2), torch.float64),  # between prompts, between steps
            "overlaps": ((*by_layer, 2), torch.int64),
            "axes": (by_head, torch.uint8),
            "axes_error": ((*by_head, orders), torch.float32),
            "axes_sparse": ((*by_head, orders), torch.float32),
            "axes_incoherence": ((*by_head, orders), torch.float32),
            "pattern": (by_head, torch.uint8),
            "low_bit_error": ((*by_layer, len(PRECISIONS)), torch.float32),
            "sensitivity": (by_layer, torch.float32),
        }
        tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
        return cls(sizes, layout, block_size, head_dim, tensors=tensors)

    def save(self, path: Path, arguments: dict[str, Any]) -> None:
        """Write everything, atomically, with the arguments that it was recorded with."""
        facts = {
            "arguments": arguments,
            "sizes": self.sizes,
            "layout": [*self.layout.grid, self.layout.text_tokens, self.layout.text_position],
            "block_size": self.block_size,
            "head_dim": self.head_dim,
            "prompts": self.prompts,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
        }
        keyed = {"mass": self.mass, "heaviest": self.heaviest}
        tensors = self.tensors | {
            f"{name}.{group}.{layer}": tensor
            for name, by_key in keyed.items()
            for (group, layer), tensor in by_key.items()
        }
        write_tensors(path, tensors, json.dumps(facts))

    @classmethod
    def load(cls, path: Path, arguments: dict[str, Any]) -> Sums | None:
        """What an earlier run with the same arguments left; None where there is nothing.

        Raises:
            ValueError: where it was recorded with other arguments, or cannot be read.
        """
        if not path.is_file():
            return None
        try:
            tensors, text = read_tensors(path)
            facts = json.loads(text)
            found = facts["arguments"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read as an unfinished recording ({error}): delete it or give another "
                "work_dir"
            ) from error
        wanted = json.loads(json.dumps(arguments))
        if found != wanted:
            names = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
            raise ValueError(
                f"{path} was recorded with other {', '.join(names)}: give another work_dir, or delete the "
                "file to begin anew"
            )
        sums = cls(
            tuple(facts["sizes"]),
            TokenLayout(*facts["layout"]),
            tuple(facts["block_size"]),
            *(facts[name] for name in ("head_dim", "prompts", "seconds", "peak_bytes")),
        )
        for name, tensor in tensors.items():
            kind, _, place = name.partition(".")
            if not place:
                sums.tensors[name] = tensor
                continue
            group, layer = map(int, place.split("."))
            getattr(sums, kind)[group, layer] = tensor
        return sums


def recording_of(
    sums: Sums,
    model: ModelFacts,
    schedule: ScheduleFacts,
    calibration: Calibration,
    templates: tuple[Template, ...],
) -> Recording:
    """The means that the sums give."""
    tensors, layout = sums.tensors, sums.layout
    samples = tensors["samples"][..., None, None]
    counts = ["later" if template.kind == "observed" else "trials" for template in templates]
    trials = torch.stack([tensors[name] for name in counts], dim=-1)[:, :, None]
    stability = tensors["overlap"] / tensors["overlaps"][:, :, None]
    firsts = (
        "axes",
        "axes_error",
        "axes_sparse",
        "axes_incoherence",
        "pattern",
        "low_bit_error",
        "sensitivity",
    )
    return Recording(
        model=model,
        grid=GridFacts(
            frames=layout.frames,
            height=layout.height,
            width=layout.width,
            text_tokens=layout.text_tokens,
            text_position=layout.text_position,
            block_size=sums.block_size,
        ),
        schedule=schedule,
        calibration=calibration,
        templates=templates,
        **{name: tensors[name] for name in firsts},
        **{name: (tensors[name] / trials).float() for name in ("error", "density", "recall")},
        stability=stability.float(),
        lse=(tensors["lse"] / samples).float(),
        mass={key: (mass / int(tensors["samples"][key])).half() for key, mass in sums.mass.items()},
        seconds=sums.seconds,
        peak_bytes=sums.peak_bytes,
    )
