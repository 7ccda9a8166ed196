"""The models of ``comparison.json``: methods by densities on the same prompts, one value per prompt.

Means, intervals and paired differences are taken when a table is made, never stored.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dit_sparse.report.schema import Device, _Model

COMPARISON_VERSION = "1.1"


class RunSetup(_Model):
    """What all generations of a comparison or an evaluation share."""

    model: str = Field(description="as given")
    config_sha256: str = Field(description="of the model's parts, see report.json")
    dtype: str = Field(description="of the transformer")
    device: Device
    prompts: list[str] = Field(min_length=1, description="prompt i starts from the noise of seed i")
    call: dict[str, Any] = Field(description="keyword arguments of the pipeline, without prompt and seed")


class Setup(RunSetup):
    """What all rows of a comparison share; rows of another setup are never added to it."""

    dense_steps: int | float | list[int] = Field(description="the guard of every method that names no other")
    dense_layers: list[int] = Field(default_factory=list)
    batch: int = Field(default=1, ge=1, description="prompts in one call of the pipeline")
    timed: bool = Field(default=True, description="false where other work shared the device")


def check_same_setup(theirs: RunSetup, ours: RunSetup, where: str) -> None:
    """Raise ValueError naming the first field in which two setups differ; ``where`` begins the message."""
    for name in type(ours).model_fields:
        old, new = getattr(theirs, name), getattr(ours, name)
        if old != new:
            raise ValueError(
                f"{where} of another setup, {name} = {_short(old)} instead of {_short(new)}: "
                "give another --output, or the same setup to go on"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class LayerFigures(_Model):
    """What a method makes of captured calls of the first prompt, by layer; see ``report/capture.py``."""

    step: int = Field(description="denoising step of the calls, from 0")
    error: list[float] = Field(description="||sparse - dense|| / ||dense|| of the output")
    recall: list[float] = Field(description="softmax mass computed exactly, in [0, 1]")
    density: list[float]


class Row(_Model):
    """One method at one density; lists have one value per prompt."""

    kind: Literal["dense", "floor", "method"]
    label: str = Field(description="the method or profile as given, e.g. svg2:score=mean_key")
    density: float | None = Field(
        default=None,
        description="as asked for, or of a pattern file; null for dense rows",
    )
    density_total: list[float] = Field(description="over all attention calls, the dense guard included")
    density_sparse: list[float] | None = Field(default=None, description="over the calls that ran sparse")
    psnr: list[float] | None = Field(default=None, description="dB, mean over frames, 100 for identical ones")
    ssim: list[float] | None = None
    lpips: list[float] | None = Field(default=None, description="null where its weights cannot be had")
    denoise_s: list[float] | None = Field(description="of a batch, every prompt's share; null if not timed")
    attention_s: list[float] | None = Field(default=None, description="null where it cannot be told apart")
    kernel: str = Field(description="of the sparse calls")
    fallbacks: list[str] = Field(default_factory=list, description="unplanned dense attention, with reasons")
    layers: LayerFigures | None = None

    @property
    def series(self) -> str:
        """What its rows at all densities have in common: the label; pattern files are one series, "profile",
        with the fields given beside them."""
        file, colon, fields = self.label.partition(":")
        return f"profile{colon}{fields}" if file.endswith(".safetensors") else self.label

    @property
    def key(self) -> tuple[str, str, float | None]:
        """What tells rows apart."""
        return self.kind, self.label, self.density


class Comparison(_Model):
    """The whole of ``comparison.json``."""

    schema_version: str = COMPARISON_VERSION
    command: str | None = None
    setup: Setup
    versions: dict[str, str | None]
    rows: list[Row] = Field(default_factory=list)

    def find(self, kind: str, label: str, density: float | None) -> Row | None:
        """The row of this key, or None."""
        return next((row for row in self.rows if row.key == (kind, label, density)), None)
