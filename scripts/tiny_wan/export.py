"""From checkpoints to a pipeline folder, and to files small enough to carry."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from .captions import held_out_captions
from .config import Plan
from .models import Models
from .resume import PART_BYTES, newest, save_bundle
from .runtime import LOG_FILE, Workspace
from .vae import Autoencoder, channels_last

PIPELINE = "tiny_wan_pipeline"
MAX_BYTES = 24_000_000


def frozen_vae(vae: Autoencoder, device: torch.device) -> Autoencoder:
    """A copy for inference: bf16 on a GPU, as shipped; float32 on a CPU."""
    copy: Autoencoder = AutoencoderKLWan.from_config(vae.config)
    copy.load_state_dict(vae.state_dict())
    copy = copy.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return channels_last(copy).eval().requires_grad_(False)


def save_pipeline(models: Models, folder: Path) -> int:
    """Write the pipeline in bf16 with the held-out prompts; returns its bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline: Any = WanPipeline(
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
    target.mkdir(parents=True, exist_ok=True)
    whole = target / f"{PIPELINE}.tar"
    for old in target.glob(f"{whole.name}.*"):
        old.unlink()
    with tarfile.open(whole, "w") as archive:
        archive.add(folder, arcname=PIPELINE)
    content = whole.read_bytes()
    whole.unlink()
    parts = []
    for number, start in enumerate(range(0, len(content), PART_BYTES)):
        parts.append(target / f"{whole.name}.{number:02d}")
        parts[-1].write_bytes(content[start : start + PART_BYTES])
    return parts


def export(work: Workspace, plan: Plan, target: Path, bundle: bool = True) -> Path | None:
    """Write the newest weights into `target`, ready to carry.

    Returns the pipeline's folder, which also lies whole in the work folder; None if the autoencoder or the
    denoiser has no weights yet, so that there is only a bundle to go on with.
    """
    models, progress = newest(work, plan)
    folder: Path | None = None
    paths = save_bundle(models, progress, target) if bundle else []
    size = 0
    if progress.latents and progress.origin != "untrained":
        folder = work.folder / PIPELINE
        size = save_pipeline(models, folder)
        paths += pack(folder, target)
    work.log(
        exported=progress.origin, stages_done=progress.finished, bytes=size, files=[p.name for p in paths]
    )
    copy_log(work, target)
    return folder


def copy_log(work: Workspace, target: Path) -> None:
    shutil.copy(work.folder / LOG_FILE, target / LOG_FILE)
