"""The models of ``attention.json``: documented in ``docs/cli.md``, versioned, numbers finite or null.

Steps, layers, heads and tokens count from 0. Shares of the softmax lie in [0, 1].
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dit_sparse.report.schema import Device, ModelInfo

ATTENTION_VERSION = "1.0"
Point = tuple[int, int, int]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Curve(_Model):
    """Recall over density: the share of the softmax that computed blocks hold, mean over queries."""

    density: list[float] = Field(description="fraction of block pairs computed, as it came out")
    recall: list[float]


class Curves(_Model):
    """What is kept at several densities, and how much of the softmax that holds."""

    oracle: Curve = Field(description="heaviest blocks by exact mass, in the method's order")
    oracle_raster: Curve = Field(description="the same in the model's own order")
    method: Curve
    window: Curve = Field(description="one space-time window for all heads, in space-time cubes")


class Pattern(_Model):
    """Where a head looks, from sampled queries."""

    entropy: float = Field(description="of a query's softmax over all keys, nats")
    effective_keys: float = Field(description="exp(entropy)")
    same_frame: float = Field(description="share on keys of the query's own frame")
    same_place: float = Field(description="share on keys at the query's (h, w), all frames")
    neighbours: float = Field(description="share on keys at most one token away along T, H and W")
    first_frame: float = Field(description="share on keys of the first frame")
    text: float = Field(description="share on text keys")
    frame_distance: float = Field(description="mean |dt| over video keys, tokens")
    space_distance: float = Field(description="mean distance in (h, w) over video keys, tokens")


class PointFigures(_Model):
    """The softmax row of one query."""

    query: Point
    peak: Point = Field(description="video key with the largest share")
    peak_share: float
    frames: list[float] = Field(description="share of every frame of tokens")
    text: float = Field(description="share of all text keys")


class HeadFigures(_Model):
    """One head at one step and layer."""

    step: int
    layer: int
    head: int
    transformer: str
    dense_reason: str | None = Field(description="why the method would leave this call dense; null: sparse")
    density: float = Field(description="fraction of this head's pairs that the method keeps")
    recall: float = Field(description="share of the softmax in them")
    error: float = Field(description="||sparse - dense|| / ||dense|| of the head's output, no correction")
    pattern: Pattern
    curves: Curves
    points: list[PointFigures]


class Attention(_Model):
    """The whole of ``attention.json``."""

    schema_version: str = ATTENTION_VERSION
    created: str = Field(description="UTC, ISO 8601")
    command: str | None
    prompt: str
    negative_prompt: str | None
    seed: int
    model: ModelInfo
    method: dict[str, Any] = Field(description="name and all fields")
    generation: dict[str, Any] = Field(description="arguments of the pipeline as used")
    grid: Point = Field(description="(T, H, W) in tokens")
    text_tokens: int
    text_position: str
    block_size: tuple[int, int] = Field(description="(query, key) block in tokens")
    reordered: bool = Field(description="whether the method reorders tokens at any of the calls")
    num_steps: int
    steps: list[int]
    layers: list[int]
    heads: list[int]
    points: list[Point]
    uniform: Pattern = Field(description="the figures of a head that looks everywhere alike")
    figures: list[HeadFigures] = Field(description="by step, layer, head")
    files: list[str] = Field(description="pictures beside this file")
    device: Device
    versions: dict[str, str | None]
