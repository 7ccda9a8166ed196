"""All numbers of a run: seconds, sizes, batches. `Plan()` is the real run, `toy_plan()` the test."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A clip's length and side in pixels, the batch it is trained with, and how many clips its bank holds."""

    frames: int
    side: int
    batch: int
    bank: int = 0

    @property
    def name(self) -> str:
        return f"{self.frames}x{self.side}x{self.side}"


@dataclass(frozen=True)
class VaeShape:
    """Clips for the autoencoder: windows of `window` pixels, of frames whose sides are drawn from `sides`."""

    frames: int
    window: int
    batch: int
    sides: tuple[int, ...]


@dataclass(frozen=True)
class DiffusionStage:
    """One training stage of the denoiser.

    Args:
        seconds: wall-clock budget, compilation included.
        cycle: shapes in turn, one a step.
        shift: flow shift of the noise levels drawn for each shape of the cycle.
        hold, start, end: learning-rate schedule, see `runtime.learning_rate`.
        refresh_every: steps between two renewals of `refresh` clips of the current shape's bank; 0 for none.
    """

    name: str
    seconds: float
    cycle: tuple[Shape, ...]
    shift: tuple[float, ...]
    start: float = 1.0
    hold: float = 1.0
    end: float = 1.0
    refresh_every: int = 0
    refresh: int = 0


EVALUATION_SECONDS = 60.0
_LOW = Shape(17, 64, 256, bank=24576)
_MAIN = Shape(17, 128, 64, bank=24576)
_MIDDLE = Shape(25, 192, 20, bank=5120)
_HIGH = Shape(33, 256, 8, bank=3072)


@dataclass(frozen=True)
class Plan:
    """One run. Seconds are wall-clock budgets on an H100; the defaults add up to about 22 minutes."""

    seed: int = 0
    text_seconds: float = 25.0
    vae_seconds: float = 300.0
    classifier_seconds: float = 15.0
    bank_seconds: float = 20.0  # upper limit for filling one bank

    text_width: int = 192
    text_layers: int = 3
    text_ffn: int = 256
    text_batch: int = 512
    text_pool: int = 60_000

    vae_dim: int = 32
    vae_shapes: tuple[VaeShape, ...] = (
        VaeShape(17, 128, 16, (128, 128, 192, 256)),
        VaeShape(17, 128, 16, (128, 128, 192, 256)),
        VaeShape(33, 64, 24, (64, 128, 128, 256)),
    )

    heads: int = 4
    layers: int = 8
    ffn: int = 768
    stages: tuple[DiffusionStage, ...] = (
        DiffusionStage("low", 80.0, (_LOW,), (3.0,), refresh_every=50, refresh=256),
        DiffusionStage("main", 520.0, (_MAIN,), (3.0,), hold=0.6, end=0.35, refresh_every=25, refresh=128),
        DiffusionStage(
            "mixed",
            240.0,
            (_HIGH, _MAIN, _HIGH, _MIDDLE),
            (4.5, 3.0, 4.5, 4.0),
            start=0.5,
            hold=0.15,
            end=0.01,
        ),
    )
    caption_dropout: float = 0.10
    attribute_weight: float = 0.05
    ema: float = 0.998

    main: Shape = _MAIN
    high: Shape = _HIGH
    eval_captions: int = 64
    eval_captions_high: int = 16
    eval_steps: int = 30
    guidances: tuple[float, ...] = (3.0, 5.0, 7.0)
    classifier_clips: int = 6144
    classifier_batch: int = 128

    def stage_names(self) -> list[str]:
        """All stages that a run can go on with, in order."""
        return ["text", "vae", *(stage.name for stage in self.stages)]

    def expected_seconds(self) -> dict[str, float]:
        """Wall-clock seconds of everything, in order, and their sum."""
        seconds = {"start and captions": 15.0, "text": self.text_seconds, "vae": self.vae_seconds}
        banks = {shape for stage in self.stages for shape in stage.cycle}
        seconds["banks"] = min(70.0, self.bank_seconds * len(banks))
        seconds |= {stage.name: stage.seconds for stage in self.stages}
        seconds |= {"classifier": self.classifier_seconds, "evaluation": EVALUATION_SECONDS}
        return {**seconds, "total": sum(seconds.values())}

    def describe(self) -> dict[str, Any]:
        return asdict(self)


_TOY = (Shape(5, 32, 2, bank=8), Shape(9, 64, 2, bank=4))


def toy_plan(seconds: float = 1.0) -> Plan:
    """Every stage at toy size, for tests on a CPU."""
    return Plan(
        text_seconds=seconds,
        vae_seconds=seconds,
        classifier_seconds=seconds,
        text_width=32,
        text_layers=1,
        text_ffn=32,
        text_batch=8,
        text_pool=64,
        vae_dim=8,
        vae_shapes=(VaeShape(5, 32, 2, (32, 64)),),
        heads=1,
        layers=1,
        ffn=64,
        stages=(
            DiffusionStage("low", seconds, _TOY[:1], (3.0,), refresh_every=2, refresh=2),
            DiffusionStage("mixed", seconds, _TOY, (3.0, 4.0), end=0.0, hold=0.5),
        ),
        main=_TOY[0],
        high=_TOY[1],
        eval_captions=2,
        eval_captions_high=1,
        eval_steps=2,
        guidances=(3.0,),
        classifier_clips=8,
        classifier_batch=4,
    )
