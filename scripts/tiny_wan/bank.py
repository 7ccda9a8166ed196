"""A bank of encoded clips with several captions each, filled on the device and refreshed while training."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import Shape
from .render import render
from .runtime import Workspace
from .scenes import Scenes, sample_scenes
from .text import PARAPHRASES, caption_scenes, tokenize
from .vae import Autoencoder, encode_clip, latent_scale

_PIXELS = 24_000_000  # drawn and encoded at once


_Chunk = tuple[Scenes, Tensor, Tensor]  # scenes, ids [B, P, 32], stated [B, P, 19]


def _write(size: int, seed: int) -> _Chunk:
    scenes = sample_scenes(size, seed)
    return scenes, *caption_scenes(scenes, PARAPHRASES, seed)


@dataclass(frozen=True)
class Batch:
    """`latents` [B, 16, t, h, w] normalised, `ids` [B, 32], `attributes` and `stated` [B, 19]."""

    latents: Tensor
    ids: Tensor
    attributes: Tensor
    stated: Tensor


class LatentBank:
    """Up to `shape.bank` training clips of one shape, drawn from `seed`."""

    def __init__(self, work: Workspace, vae: Autoencoder, shape: Shape, seed: int) -> None:
        self.work, self.vae, self.shape, self.seed = work, vae, shape, seed
        self.mean, self.std = latent_scale(vae, work.device)
        t, s = (shape.frames - 1) // 4 + 1, shape.side // 8
        dtype = torch.bfloat16 if work.device.type == "cuda" else torch.float32
        self.latents = torch.empty(shape.bank, 16, t, s, s, dtype=dtype, device=work.device)
        self.ids = torch.empty(
            shape.bank, PARAPHRASES, tokenize([""]).shape[1], dtype=torch.int16, device=work.device
        )
        first = sample_scenes(1, seed=0)
        columns = first.attributes.shape[1]
        self.stated = torch.empty(shape.bank, PARAPHRASES, columns, dtype=torch.bool, device=work.device)
        self.attributes = torch.empty(shape.bank, columns, dtype=torch.int64, device=work.device)
        self.empty_ids = tokenize([""]).to(work.device)
        self.filled = self.drawn = 0
        self.writer = ThreadPoolExecutor(1)  # writes captions while the device draws and encodes
        self.waiting: tuple[int, int, Future[_Chunk]] | None = None

    def fill(self, seconds: float) -> None:
        """Add clips until the bank is full or the time is over (at least one chunk)."""
        begin = time.monotonic()
        while self.filled < self.shape.bank and (self.filled == 0 or time.monotonic() - begin < seconds):
            self.refresh(self.chunk)
            self.work.synchronize()
        elapsed = round(time.monotonic() - begin, 1)
        self.work.log(bank=self.shape.name, clips=self.filled, seconds=elapsed)

    @property
    def chunk(self) -> int:
        return max(1, _PIXELS // (self.shape.frames * self.shape.side**2))

    @torch.no_grad()
    def refresh(self, count: int) -> None:
        """Draw and encode `count` new clips into the next places, the oldest ones once the bank is full."""
        for begin in range(0, count, self.chunk):
            room = self.shape.bank - self.drawn % self.shape.bank
            size = min(self.chunk, count - begin, room)
            scenes, ids, stated = self._next_chunk(size)
            video = render(scenes, self.shape.frames, self.shape.side, self.work.device)
            latents, _ = encode_clip(self.vae, video.to(self.vae.dtype))
            place = slice(self.drawn % self.shape.bank, self.drawn % self.shape.bank + size)
            self.latents[place] = ((latents.float() - self.mean) / self.std).to(self.latents.dtype)
            self.ids[place].copy_(ids, non_blocking=True)
            self.stated[place].copy_(stated, non_blocking=True)
            self.attributes[place].copy_(scenes.attributes, non_blocking=True)
            self.drawn += size
            self.filled = max(self.filled, min(self.drawn, self.shape.bank))

    def _next_chunk(self, size: int) -> _Chunk:
        """The next `size` scenes and captions; those after them are begun at once, in the background."""
        if self.waiting is not None and self.waiting[:2] == (size, self.drawn):
            chunk = self.waiting[2].result()
        else:
            chunk = _write(size, self.seed + 1000 + self.drawn)
        after = self.drawn + size
        self.waiting = (size, after, self.writer.submit(_write, size, self.seed + 1000 + after))
        return chunk

    def sample(self, caption_dropout: float) -> Batch:
        """A random batch; a caption is one of its clip's paraphrases or, at rate `caption_dropout`, empty."""
        batch, device = self.shape.batch, self.work.device
        pick = torch.randint(self.filled, (batch,), device=device)
        variant = torch.randint(PARAPHRASES, (batch,), device=device)
        dropped = torch.rand(batch, 1, device=device) < caption_dropout
        ids = torch.where(dropped, self.empty_ids, self.ids[pick, variant].long())
        stated = self.stated[pick, variant] & ~dropped
        return Batch(self.latents[pick].float(), ids, self.attributes[pick], stated)
