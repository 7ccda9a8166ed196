"""What a profile says of itself: for which model, grid and steps, from what, and how good it is."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 2

CorrectionName = Literal["none", "pooled", "residual", "reshape", "reshape_residual"]
"""Those of :data:`dit_sparse.corrections.CORRECTIONS`, which lies beside this room."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelFacts(_Part):
    """The transformer that was profiled."""

    name: str  # what the user called it, e.g. "tiny-wan" or a hub id
    transformer: str  # class name
    component: str = "transformer"  # of the pipeline; the second expert of Wan 2.2 is "transformer_2"
    family: str
    config_sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of the transformer's public config
    layers: int = Field(ge=1, le=1024)
    heads: int = Field(ge=1, le=1024)
    head_dim: int = Field(ge=1, le=1024)


class GridFacts(_Part):
    """Tokens of one sample, after patchify, and the blocks they are cut into."""

    frames: int = Field(ge=1, le=65536)
    height: int = Field(ge=1, le=65536)
    width: int = Field(ge=1, le=65536)
    text_tokens: int = Field(ge=0, le=65536)
    text_position: Literal["first", "last", "none"]
    block_size: tuple[int, int]


class ScheduleFacts(_Part):
    """Denoising steps: which are dense and which share a row of the table."""

    scheduler: str  # class name
    num_steps: int = Field(ge=1, le=10000)
    groups: tuple[
        tuple[int, int], ...
    ]  # [first, last) of every step group, ascending, without gaps up to num_steps
    # steps before the first group stay dense


class Calibration(_Part):
    """The dense runs that it was made from."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    guidance: float | None = None
    pixels: tuple[int, int, int] | None = None  # frames, height, width of the video


class Figures(_Part):
    """What it is predicted to do, and what was measured; None where it was not."""

    density: float  # over the sparse steps
    error: float | None = None  # predicted relative output error of the layers, root mean square
    output_error: float | None = (
        None  # predicted relative error of the transformer's output, root mean square
    )
    attention_speedup: float | None = None  # predicted, of the sparse steps, by the cost table named
    cost_table: str | None = None  # device and date of the table


class ProfileHeader(_Part):
    """Everything but the tensors."""

    format_version: int = FORMAT_VERSION
    dit_sparse_version: str
    recipe: str  # e.g. "balanced", "paro"
    correction: CorrectionName = "none"  # that the choices were made for; used where the user names none
    model: ModelFacts
    grid: GridFacts
    schedule: ScheduleFacts
    calibration: Calibration
    figures: Figures
    command: str
    torch_version: str
    diffusers_version: str
    device: str
