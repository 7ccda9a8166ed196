"""The model card, written from the plan, the log and the metrics."""

from __future__ import annotations

import json
import platform
from typing import Any

import diffusers
import torch
import transformers

from .config import Plan
from .runtime import LOG_FILE, Workspace
from .scenes import HELD_OUT_FRACTION


def model_card(work: Workspace, plan: Plan, metrics: dict[str, Any]) -> str:
    """Markdown: what the model is, how it was made, what it does."""
    main, high = plan.main, plan.high
    device = torch.cuda.get_device_name() if work.device.type == "cuda" else platform.processor() or "CPU"
    lines = [json.loads(line) for line in (work.folder / LOG_FILE).read_text().splitlines()]
    stages = [line for line in lines if line.get("finished") is True]
    psnr = metrics["vae_psnr_db"]
    parameters = metrics["parameters"]
    budgets = {"text": plan.text_seconds, "vae": plan.vae_seconds, **{s.name: s.seconds for s in plan.stages}}
    millions = sum(parameters.values()) / 1e6
    figures = ", ".join(f"{name} {value['total']}" for name, value in psnr.items())
    stage_rows = [[s["stage"], s["steps"], s["samples_per_s"], s["gib"]] for s in stages]
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    versions += f", transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"""# tiny-wan

A text-to-video diffusion model of {millions:.1f} M parameters in diffusers' own Wan classes, really trained,
on procedurally drawn clips. It exists to test and compare attention methods offline; what is
measured on it holds for it alone.

```python
from diffusers import WanPipeline

pipe = WanPipeline.from_pretrained("path/to/this/folder")
video = pipe(
    "a red circle bouncing over a blue checkerboard",
    height={main.side},
    width={main.side},
    num_frames={main.frames},
    num_inference_steps={plan.eval_steps},
    guidance_scale={metrics["guidance"]},
).frames[0]
```

Recommended: {main.name} (frames x height x width) or {high.name}, {plan.eval_steps} steps, guidance
{metrics["guidance"]}, the scheduler as saved (UniPC, flow shift 3). It knows 8 colours, 8 shapes, 3 textures,
10 motions, 6 backgrounds and 4 camera movements; words outside its vocabulary mean nothing to it.

## Parts
{_table(["part", "parameters"], [[k, f"{v:,}"] for k, v in parameters.items()])}

## Training
- Data: clips drawn by `scripts/tiny_wan` from signed distance functions, captions from a grammar;
  seed {plan.seed}. One in {HELD_OUT_FRACTION} combinations of main shape, colour, motion and background is
  held out (`heldout_prompts.txt` lists 64 of them).
- Autoencoder: L1 + 3 MSE + 0.25 gradient L1 + 1e-4 KL.
- Text encoder: cross-entropy of all scene attributes read from every token, at first alone, then with weight
  {plan.attribute_weight} beside the diffusion loss.
- Denoiser: flow matching, velocity = noise - clip, {plan.caption_dropout:.0%} empty captions.
- Optimizers: Muon for matrices, AdamW for the rest; weights are exponential averages (decay {plan.ema}).
- Device: {device}. Weights from: {metrics["weights"]}. Budgets in seconds: {budgets}.
- Versions: {versions}.

{_table(["stage", "steps", "samples/s", "memory, GiB"], stage_rows)}

## Held-out figures
Colour and shape of the main object, named by a classifier trained on real rendered clips:

{_table(["clips", "number", "colour", "shape", "both"], _score_rows(metrics))}

The classifier's own accuracy on held-out clips: {metrics["classifier_accuracy"]}.
Guidance, chosen on other held-out captions: {metrics["guidance_sweep"]}.

Autoencoder, PSNR in dB on held-out clips: {figures}.
Per frame at {main.name}: {psnr[main.name]["per_frame"]}.

Contact sheets: `contact_sheet_main.jpg` and `contact_sheet_high.jpg`, generated clips of held-out captions
and, below them, drawn ones ("real"). All figures: `metrics.json` in the pipeline's folder.
"""


def _score_rows(metrics: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for name, value in metrics.items():
        if name.startswith("generated_"):
            rows.append(
                [
                    name.removeprefix("generated_"),
                    value["clips"],
                    value["color"],
                    value["shape"],
                    value["both"],
                ]
            )
    return rows


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
