"""What a transformer is, in one hash and a few numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dit_sparse.patterns.header import ModelFacts


def config_sha256(config: Mapping[str, Any]) -> str:
    """SHA-256 of a component's public configuration, hexadecimal.

    Entries that begin with "_" name a place or a library version instead of the model, and are left out. The
    order of the entries does not matter, and tuples count as lists: a configuration that was saved and loaded
    has the same hash.
    """
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(public, sort_keys=True, default=str).encode()).hexdigest()


def model_facts(
    transformer: Any,
    layers: Sequence[tuple[str, Any]],
    *,
    name: str,
    family: str,
    component: str = "transformer",
) -> ModelFacts:
    """What a profile keeps of a diffusers transformer, and what it is compared with when it is loaded.

    Args:
        transformer: the model.
        layers: (path, module) of its self-attention layers, at least one.
        name: what the user calls the model.
        family: of the adapter.
        component: name of the transformer in its pipeline.
    """
    config, attention = transformer.config, layers[0][1]
    heads = getattr(config, "num_attention_heads", None) or attention.heads
    return ModelFacts(
        name=name,
        transformer=type(transformer).__name__,
        component=component,
        family=family,
        config_sha256=config_sha256(config),
        layers=len(layers),
        heads=heads,
        head_dim=getattr(config, "attention_head_dim", None) or attention.inner_dim // heads,
    )
