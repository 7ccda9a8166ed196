"""The models of ``evaluation.json`` and ``times.json``: documented in ``docs/cli.md``, versioned.

``evaluation.json`` holds no time and no date: runs of the same setup give the same bytes, however often they
were interrupted and on however many processes they ran. Means, intervals and paired differences are taken
when a page is made, never stored.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dit_sparse.report.comparison_schema import RunSetup
from dit_sparse.report.schema import Device, _Model

EVALUATION_VERSION = "1.0"


class EvaluationSetup(RunSetup):
    """What all clips of an evaluation share; prompt i starts from the noise of ``seed`` + i."""

    seed: int
    fps: float = Field(description="of the video files")
    floor: bool = Field(description="whether dense was also compared with dense")
    scores: list[str] = Field(description="names, in the order shown")


class ScoreInfo(_Model):
    """How to read a score."""

    name: str
    title: str
    unit: str
    decimals: int
    better: Literal["higher", "lower", "neither"]
    about: str
    unavailable: str | None = Field(default=None, description="why values are null, where some are")


class ClipScores(_Model):
    """``scores.json`` of a clip."""

    values: dict[str, float | None]
    unavailable: dict[str, str]


class ClipResult(_Model):
    """One prompt with one configuration."""

    prompt: int = Field(description="number of the prompt, from 0")
    folder: str = Field(description="of the clip's report.html and report.json")
    scores: dict[str, float | None]
    identical: bool = Field(description="every pixel equals the dense video's")
    density_total: float | None = Field(description="the dense guard included")
    density_sparse: float | None = Field(description="over the calls that ran sparse; null if none did")
    kernel: str
    fallbacks: list[str] = Field(description="unplanned dense attention, with reasons")


class ConfigurationResult(_Model):
    """All finished clips of one way to run sparsely."""

    label: str
    folder: str
    asked: dict[str, Any] = Field(description="keyword arguments of enable_sparse_attention")
    clips: list[ClipResult]


class FloorResult(_Model):
    """Dense against dense on one prompt, by another attention kernel."""

    prompt: int
    psnr: float = Field(description="dB, at most 100: what identical videos count as")
    ssim: float | None
    lpips: float | None
    identical: bool
    kernel: str


class Failure(_Model):
    """A clip that could not be made; the next run tries it again."""

    prompt: int
    kind: Literal["dense", "floor", "clip"]
    configuration: str | None
    error: str


class Evaluation(_Model):
    """The whole of ``evaluation.json``."""

    schema_version: str = EVALUATION_VERSION
    setup: EvaluationSetup
    scores: list[ScoreInfo]
    configurations: list[ConfigurationResult]
    floor: list[FloorResult]
    failures: list[Failure]

    @property
    def finished(self) -> int:
        """Sparse clips that are there."""
        return sum(len(configuration.clips) for configuration in self.configurations)


class ClipTime(_Model):
    """Seconds of one clip; see ``time`` in report.json."""

    prompt: int
    dense_s: float
    sparse_s: float
    speedup: float
    speedup_attention: float | None
    speedup_end_to_end: float | None


class ConfigurationTimes(_Model):
    """Times of the clips of one configuration."""

    label: str
    clips: list[ClipTime]


class Times(_Model):
    """The whole of ``times.json``: what differs from run to run."""

    schema_version: str = EVALUATION_VERSION
    created: str = Field(description="UTC, ISO 8601, of this file")
    command: str | None
    device: Device
    versions: dict[str, str | None]
    processes: int = Field(description="of the last run")
    configurations: list[ConfigurationTimes]
