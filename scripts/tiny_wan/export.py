"""From checkpoints to a pipeline folder, and to files small enough to carry."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from .captions import held_out_captions
from .config import Plan
from .models import Models, build_models
from .runtime import Average, Workspace
from .train_vae import LATENTS_FILE
from .vae import channels_last

PIPELINE = "tiny_wan_pipeline"
MAX_BYTES = 24_000_000
PART_BYTES = 15 * 2**20


def load_models(work: Workspace, plan: Plan) -> tuple[Models, str]:
    """Averaged weights of the newest checkpoints, and the name of the stage that they come from."""
    models = build_models(plan, work.device)
    saved = work.load("vae")
    if saved is None or not (work.folder / LATENTS_FILE).exists():
        raise ValueError(f"no finished autoencoder in {work.folder}")
    _load_average(Average(models.vae.parameters(), 0.0), saved["parts"]["average"])
    models.vae.register_to_config(**json.loads((work.folder / LATENTS_FILE).read_text()))
    for stage in reversed(plan.stages):
        saved = work.load(stage.name)
        if saved is not None:
            _load_average(Average(models.trained().parameters(), 0.0), saved["parts"]["average"])
            return models, f"{stage.name}, step {saved['steps']}"
    raise ValueError(f"no checkpoint of the denoiser in {work.folder}")


def _load_average(average: Average, state: dict) -> None:
    average.load_state_dict(state)
    average.copy_to_params()


def frozen_vae(vae: AutoencoderKLWan, device: torch.device) -> AutoencoderKLWan:
    """A copy for inference: bf16 on a GPU, as shipped; float32 on a CPU."""
    copy = AutoencoderKLWan.from_config(vae.config)
    copy.load_state_dict(vae.state_dict())
    copy = copy.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return channels_last(copy).eval().requires_grad_(False)


def save_pipeline(models: Models, folder: Path) -> int:
    """Write the pipeline in bf16 with the held-out prompts; returns its bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = WanPipeline(
        tokenizer=models.tokenizer,
        text_encoder=models.text_encoder.to(torch.bfloat16),
        vae=models.vae.to(torch.bfloat16),
        scheduler=scheduler,
        transformer=models.transformer.to(torch.bfloat16),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    _name_tokenizer_class(folder)
    prompts = [text for _, text in held_out_captions()]
    (folder / "heldout_prompts.txt").write_text("\n".join(prompts) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise ValueError(f"the pipeline has {size} bytes, more than {MAX_BYTES}")
    return size


def _name_tokenizer_class(folder: Path) -> None:
    """transformers 5 writes a class name that 4.x does not know; both know PreTrainedTokenizerFast."""
    index_path, config_path = folder / "model_index.json", folder / "tokenizer" / "tokenizer_config.json"
    index, config = json.loads(index_path.read_text()), json.loads(config_path.read_text())
    index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("backend", None)
    index_path.write_text(json.dumps(index, indent=2) + "\n")
    config_path.write_text(json.dumps(config, indent=2) + "\n")


def pack(folder: Path, target: Path) -> list[Path]:
    """A tar file of `folder`, cut into parts of at most 15 MiB: join them with cat."""
    whole = target / f"{PIPELINE}.tar"
    with tarfile.open(whole, "w") as archive:
        archive.add(folder, arcname=PIPELINE)
    content = whole.read_bytes()
    whole.unlink()
    parts = []
    for number, start in enumerate(range(0, len(content), PART_BYTES)):
        parts.append(target / f"{whole.name}.{number:02d}")
        parts[-1].write_bytes(content[start : start + PART_BYTES])
    return parts


def export(work: Workspace, plan: Plan, target: Path) -> Path:
    """Write the newest weights as a pipeline, whole in the work folder and in parts in `target`."""
    models, origin = load_models(work, plan)
    folder = work.folder / PIPELINE
    size = save_pipeline(models, folder)
    target.mkdir(parents=True, exist_ok=True)
    parts = pack(folder, target)
    log = work.folder / "train_log.jsonl"
    work.log(exported=origin, bytes=size, parts=[part.name for part in parts])
    shutil.copy(log, target / log.name)
    return folder
