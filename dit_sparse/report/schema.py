"""The models of ``report.json``: documented in ``docs/report-json.md``, versioned, numbers finite or null.

A minor version adds fields, a major one renames or removes them. Times end in ``_s``, memory in ``_bytes``.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = "1.2"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ModelInfo(_Model):
    """Which model was run, so that another machine can tell whether it has the same one."""

    name: str = Field(description="hub id, folder as given, or the name of the embedded model")
    pipeline: str = Field(description="pipeline class")
    denoisers: dict[str, str] = Field(description="component name -> class, e.g. transformer, transformer_2")
    config_sha256: str = Field(description="hash of the denoisers', autoencoder's and scheduler's configs")


class VideoInfo(_Model):
    """Shape of the compared videos."""

    frames: int
    height: int
    width: int
    fps: float


class PerFrame(_Model):
    """One value per frame; a PSNR is null where the two frames are identical."""

    psnr: list[float | None]
    ssim: list[float]
    lpips: list[float] | None
    flicker_dense: list[float | None] | None = Field(
        default=None, description="grey levels of 255; null at the first and the last frame"
    )
    flicker_sparse: list[float | None] | None = None


class Floor(_Model):
    """Dense against dense: the same noise, both exact, two attention kernels."""

    psnr: float | None = Field(description="dB; null when the two videos are identical")
    ssim: float | None
    lpips: float | None
    identical: bool
    kernel: str = Field(description="of the second dense run; the first is the pipeline's own")
    denoise_s: float = Field(description="of the second dense run, without warm-up")


class Metrics(_Model):
    """Sparse against dense on raw frames, per frame and then averaged; null without a dense run."""

    psnr: float | None = Field(
        default=None, description="dB, mean over the frames that differ; null when all are identical"
    )
    ssim: float | None = None
    lpips: float | None = None
    identical: bool | None = Field(default=None, description="every pixel of every frame is equal")
    identical_frames: int | None = None
    ssim_settings: dict[str, Any] | None = None
    lpips_network: str | None = None
    lpips_unavailable: str | None = Field(default=None, description="why LPIPS is null")
    per_frame: PerFrame | None = None
    flicker_dense: float | None = Field(
        default=None,
        description="mean |f[t-1] - 2 f[t] + f[t+1]| in grey levels of 255; null below three frames",
    )
    flicker_sparse: float | None = None
    floor: Floor | None = None
    floor_unmeasured: str | None = Field(default=None, description="why floor is null")


class HeatMap(_Model):
    """Density by layer (rows) and step (columns) of one denoiser, mean over branches; null: not run."""

    transformer: str
    layers: list[int]
    steps: list[int]
    density: list[list[float | None]]
    dense_reason: list[list[str | None]]


class HeadMap(_Model):
    """Density by layer (rows) and head (columns) of one denoiser, mean over its calls."""

    transformer: str
    layers: list[int]
    sparse: list[list[float] | None] = Field(
        description="over the calls that ran sparse; null where none did"
    )
    total: list[list[float]] = Field(description="over all calls, dense ones counted as 1")


class HeadChoices(_Model):
    """How every head of one denoiser attends, as a profile chose."""

    transformer: str
    names: list[str] = Field(description="what the numbers mean")
    steps: list[tuple[int, int]] = Field(description="[first, last) of every step group")
    num_steps: int = Field(description="of the profile; a run of another number is mapped to it")
    kinds: list[list[list[int]]] = Field(description="by step group, layer and head: index into names")


class WorstRecall(_Model):
    """A layer with low recall."""

    transformer: str
    layer: int
    mean: float
    head: int = Field(description="its worst head")
    head_recall: float
    step: int = Field(description="its worst step")
    step_recall: float


class RecallMap(_Model):
    """Recall of one denoiser over the calls that ran sparse."""

    transformer: str
    layers: list[int]
    steps: list[int] = Field(description="those with a sparse call")
    by_step: list[list[float | None]] = Field(
        description="by layer and step, mean over heads and branches; null where no call ran sparse"
    )
    by_head: list[list[float]] = Field(description="by layer and head, mean over steps and branches")


class Recall(_Model):
    """Share of the softmax over all keys that lies in the kept blocks, estimated from sampled query rows."""

    rows: int = Field(description="sampled video queries per call and head")
    mean: float = Field(description="over all sparse calls")
    worst_layers: list[WorstRecall] = Field(description="lowest mean first")
    maps: list[RecallMap]


class DenseCalls(_Model):
    """Calls that ran dense for one reason, in the same layers of all these steps."""

    transformer: str
    reason: str
    branches: list[str]
    steps: list[int]
    layers: list[int]
    calls: int


class Density(_Model):
    """Fraction of attention blocks computed, in (0, 1]."""

    total: float | None = Field(
        default=None, description="over all attention calls, dense steps and layers counted as 1"
    )
    sparse_sites: float | None = Field(
        default=None, description="over the calls that ran sparse; null if none did"
    )
    sites: int = Field(default=0, description="attention calls recorded")
    dense_sites: dict[str, int] = Field(default_factory=dict, description="reason -> calls that ran dense")
    dense_calls: list[DenseCalls] = Field(default_factory=list, description="where they ran")
    kernels: dict[str, int] = Field(default_factory=dict, description="kernel -> calls, dense ones included")
    heat_maps: list[HeatMap] = Field(default_factory=list)
    head_maps: list[HeadMap] = Field(default_factory=list)
    choices: list[HeadChoices] = Field(default_factory=list, description="empty without a profile")
    recall: Recall | None = None
    recall_unmeasured: str | None = Field(default=None, description="why recall is null")


class Stage(_Model):
    """One stage of a sparse run's self-attention."""

    name: str = Field(description="order, permute, select, attend, correct, restore, other or dense")
    seconds_s: float
    step_s: list[float]


class Forecast(_Model):
    """Speed-ups that the dense run's times and the density lead one to expect (Amdahl)."""

    density: float = Field(description="over all calls, dense guard included")
    attention_share: float = Field(description="of the dense transformer's time in self-attention")
    speedup_attention: float
    speedup_transformer: float
    speedup: float
    speedup_end_to_end: float
    limit_transformer: float = Field(description="if self-attention cost nothing")


class RunTime(_Model):
    """Seconds of one generation."""

    denoise_s: float
    end_to_end_s: float
    transformer_s: float
    step_s: list[float]
    attention_s: float | None = Field(
        default=None, description="self-attention inside transformer_s; sparse: with planning and dense guard"
    )
    linear_s: float | None = Field(default=None, description="linear layers inside transformer_s")
    step_transformer_s: list[float] = Field(default_factory=list)
    step_attention_s: list[float] = Field(default_factory=list)
    step_linear_s: list[float] = Field(default_factory=list)
    stages: list[Stage] = Field(
        default_factory=list, description="of attention_s in a sparse run; empty where not measured"
    )


class Time(_Model):
    """Dense against sparse; the headline figures are denoising time, without text encoding and decoding."""

    dense_s: float | None = None
    sparse_s: float
    speedup: float | None = None
    speedup_end_to_end: float | None = None
    speedup_transformer: float | None = None
    speedup_attention: float | None = None
    parts_unmeasured: str | None = Field(default=None, description="why speedup_attention is null")
    forecast: Forecast | None = Field(default=None, description="null where attention was not measured")
    dense: RunTime | None = None
    sparse: RunTime
    warmup: bool = Field(description="whether an untimed run came before each timed one")


class Memory(_Model):
    """Bytes; null where the system does not tell."""

    measure: str | None = Field(
        default=None, description='what the peaks are of: "GPU allocator" or "resident set of the process"'
    )

    dense_peak_bytes: int | None = None
    sparse_peak_bytes: int | None = None
    state_bytes: int | None = Field(default=None, description="what the sparse method carried between steps")


class Device(_Model):
    """Where it ran."""

    type: str
    name: str
    memory_bytes: int | None = None
    threads: int | None = Field(default=None, description="CPU threads of torch")


class Files(_Model):
    """Names of the files beside the report."""

    sparse: str
    dense: str | None = None
    side_by_side: str | None = None
    difference: str | None = None
    difference_gain: float | None = None
    player: str | None = Field(
        default=None, description="all panels in one file, for the page's player: .webp frames or .mp4"
    )


class Report(_Model):
    """The whole of ``report.json``."""

    schema_version: str = SCHEMA_VERSION
    created: str = Field(description="UTC, ISO 8601")
    command: str | None = Field(
        default=None, description="command line that made it; null when called from Python"
    )
    prompt: str
    negative_prompt: str | None = None
    seed: int
    model: ModelInfo
    video: VideoInfo
    files: Files
    metrics: Metrics
    density: Density
    time: Time
    memory: Memory
    backend: str = Field(
        description="attention kernels of the sparse sites, joined by +; 'dense' if none was sparse"
    )
    fallbacks: list[str] = Field(default_factory=list, description="unplanned dense attention, with reasons")
    config: dict[str, Any] = Field(description="method and its fields, schedule, generation options")
    device: Device
    versions: dict[str, str | None]
