"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

GENERATION = "Generation"
SPARSE = "Sparse attention"
MACHINE = "Machine"

Model = Annotated[
    str | None, Option(help="Local folder or hub id.  \\[default: tiny-wan]", rich_help_panel=GENERATION)
]
NegativePrompt = Annotated[str | None, Option(rich_help_panel=GENERATION)]
Image = Annotated[Path | None, Option(help="First frame, for image-to-video.", rich_help_panel=GENERATION)]
Pixels = Annotated[int | None, Option(help="Pixels.", rich_help_panel=GENERATION)]
NumFrames = Annotated[int | None, Option(rich_help_panel=GENERATION)]
Steps = Annotated[int | None, Option(help="Denoising steps.", rich_help_panel=GENERATION)]
Guidance = Annotated[float | None, Option(help="Guidance scale.", rich_help_panel=GENERATION)]
Seed = Annotated[int | None, Option(help="Of the start noise.  \\[default: 0]", rich_help_panel=GENERATION)]
Fps = Annotated[float | None, Option(help="Of the video files.", rich_help_panel=GENERATION)]
Prompts = Annotated[
    int, Option(min=1, help="Held-out prompts of the embedded model.", rich_help_panel=GENERATION)
]
PromptFile = Annotated[Path | None, Option(help="Prompts, one a line, instead.", rich_help_panel=GENERATION)]
DenseSteps = Annotated[
    str | None, Option(help="First steps left dense: count, fraction or list.", rich_help_panel=SPARSE)
]
DenseLayers = Annotated[str | None, Option(help='Layers left dense, e.g. "0-1,47".', rich_help_panel=SPARSE)]
MinTokens = Annotated[int | None, Option(help="Shorter sequences stay dense.", rich_help_panel=SPARSE)]
Backend = Annotated[str | None, Option(help="Attention kernel.  \\[default: auto]", rich_help_panel=SPARSE)]
Strict = Annotated[
    bool | None, Option("--strict", help="Fail instead of falling back to dense.", rich_help_panel=SPARSE)
]
LpipsWeights = Annotated[Path | None, Option(help="AlexNet weights for LPIPS.")]
Dtype = Annotated[
    str | None, Option(help="float32, bfloat16, float16.  \\[default: by device]", rich_help_panel=MACHINE)
]
Device = Annotated[str | None, Option(help="cpu, cuda, cuda:1.  \\[default: auto]", rich_help_panel=MACHINE)]
Offload = Annotated[
    str | None, Option(help="none, model, sequential.  \\[default: none]", rich_help_panel=MACHINE)
]
Compile = Annotated[
    bool | None, Option("--compile", help="torch.compile the transformer blocks.", rich_help_panel=MACHINE)
]
Warmup = Annotated[
    bool | None,
    Option(
        "--warmup/--no-warmup", help="Untimed steps first.  \\[default: on GPUs]", rich_help_panel=MACHINE
    ),
]
