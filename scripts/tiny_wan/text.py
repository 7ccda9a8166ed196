"""Tokenizer and text encoder, and the auxiliary task that makes every token know the whole scene.

Words of a caption must stay bound to their object ("red" to the circle, "blue" to the checkerboard). Linear
heads therefore read all scene attributes from every token's output: first alone, then beside the diffusion
loss. A first try, with AdamW at a lower learning rate and no start on neighbouring words, stayed for long at
naming the words without knowing whose they are; which of the three changes cured it was not tested.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from .captions import MAX_TOKENS, describe, split_words, vocabulary
from .muon import Optimizers
from .replay import FIRST_CALLS, Replay
from .runtime import Stateful, Workspace, learning_rate, run_stage
from .scenes import ATTRIBUTES, CLASSES, Scenes, sample_scenes

PAD, END, UNKNOWN = 0, 1, 2
SPECIAL = ("<pad>", "</s>", "<unk>")
PARAPHRASES = 3
# AdamW takes these; Muon the rest.
NOT_HIDDEN = ("shared", "embed_tokens", "relative_attention_bias", "heads")


@lru_cache(maxsize=1)
def word_ids() -> dict[str, int]:
    """Token id of every word."""
    return {word: i for i, word in enumerate((*SPECIAL, *vocabulary()))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer: lower case, words and punctuation marks, `</s>` at the end."""
    tokenizer = Tokenizer(models.WordLevel(word_ids(), unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {SPECIAL[END]}", special_tokens=[(SPECIAL[END], END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD],
        eos_token=SPECIAL[END],
        unk_token=SPECIAL[UNKNOWN],
        model_max_length=512,
    )


def build_text_encoder(width: int, layers: int, ffn: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=len(word_ids()),
        d_model=width,
        d_kv=width // 4,
        num_heads=4,
        d_ff=ffn,
        num_layers=layers,
        num_decoder_layers=layers,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        relative_attention_max_distance=64,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
    )
    encoder = UMT5EncoderModel(config)
    _look_at_neighbours(encoder)
    return encoder


@torch.no_grad()
def _look_at_neighbours(encoder: UMT5EncoderModel) -> None:
    """Start the first layer's four heads on the words one and two places before and after.

    A colour is bound to a noun by standing next to it; from a flat start, attention takes long to find that.
    """
    buckets = (
        encoder.config.relative_attention_num_buckets // 2
    )  # first half: behind or here, second half: ahead
    first: Any = encoder.encoder.block[0]
    bias = first.layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads]
    for head, bucket in enumerate((1, 2, buckets + 1, buckets + 2)):
        bias[bucket, head] = 4.0


def tokenize(texts: list[str]) -> Tensor:
    """[N, 32] int64, the same ids as the tokenizer gives, without its overhead."""
    ids = word_ids()
    rows = []
    for text in texts:
        row = [*[ids.get(word, UNKNOWN) for word in split_words(text)[: MAX_TOKENS - 2]], END]
        rows.append(row + [PAD] * (MAX_TOKENS - len(row)))
    return torch.tensor(rows)


def caption_scenes(scenes: Scenes, paraphrases: int, seed: int) -> tuple[Tensor, Tensor]:
    """Token ids [B, P, 32] int16 and which attributes they state [B, P, 19] bool, on the CPU."""
    rng = random.Random(seed)
    captions = [describe(row, rng) for row in scenes.attributes.tolist() for _ in range(paraphrases)]
    ids = tokenize([caption.text for caption in captions]).view(len(scenes), paraphrases, -1)
    stated = torch.tensor([caption.stated for caption in captions]).view(len(scenes), paraphrases, -1)
    return ids.to(torch.int16), stated


def encode_text(encoder: Any, ids: Tensor) -> Tensor:
    """Prompt embeddings [B, 32, D] of ids [B, 32]; zero at padding, as WanPipeline makes them.

    Walks the encoder's modules itself: the same function with fewer kernels, and nothing that waits for the
    device, so that it can be recorded as a CUDA graph. Hence also the embedding by a product: the gradient of
    a look-up of more than 3072 tokens cannot be recorded (pytorch issue 82886).
    """
    mask = ids != PAD
    blocked = ((~mask).float() * -1e9)[:, None, None]
    table = encoder.get_input_embeddings().weight
    with torch.autocast(ids.device.type, enabled=False):
        hidden = (ids[..., None] == torch.arange(len(table), device=ids.device)).to(table.dtype) @ table
    for block in encoder.encoder.block:
        attention, normed = block.layer[0].SelfAttention, block.layer[0].layer_norm(hidden)
        query, key, value = (
            linear(normed).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
            for linear in (attention.q, attention.k, attention.v)
        )
        bias = attention.compute_bias(ids.shape[1], ids.shape[1], device=ids.device)
        weights = ((query @ key.mT).float() + bias + blocked).softmax(dim=-1)
        hidden = hidden + attention.o((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2))
        hidden = block.layer[-1](hidden)
    return encoder.encoder.final_layer_norm(hidden) * mask[..., None]


class AttributeHeads(nn.Module):
    """Reads all attributes from each token: one linear map to 19 heads of up to 11 classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(ATTRIBUTES) * max(CLASSES))
        valid = torch.arange(max(CLASSES)) < torch.tensor(CLASSES)[:, None]
        self.register_buffer("invalid", torch.where(valid, 0.0, -1e4), persistent=False)

    def logits(self, embeddings: Tensor) -> Tensor:
        """[B, L, 19, 11] from embeddings [B, L, D]."""
        return self.linear(embeddings).unflatten(-1, (len(ATTRIBUTES), -1)).float() + self.invalid

    def loss(
        self, embeddings: Tensor, ids: Tensor, attributes: Tensor, stated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy over tokens of `ids` [B, L] and `stated` attributes [B, 19]."""
        logits = self.logits(embeddings)
        target = attributes[:, None].expand(logits.shape[:-1])
        weight = ((ids != PAD)[:, :, None] & stated[:, None]).float()
        entropy = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view_as(weight)
        correct = (logits.detach().argmax(dim=-1) == target).float()
        total = weight.sum().clamp(min=1)
        return (entropy * weight).sum() / total, (correct * weight).sum() / total


def train_text(
    work: Workspace, encoder: UMT5EncoderModel, heads: AttributeHeads, budget_s: float, pool: int, batch: int
) -> None:
    """Pre-train encoder and heads on `pool` captioned scenes."""
    if work.is_done("text", {"encoder": encoder, "heads": heads}):
        return
    scenes = sample_scenes(pool, seed=11)
    ids, stated = (x.to(work.device) for x in caption_scenes(scenes, PARAPHRASES, seed=11))
    attributes = scenes.attributes.to(work.device)
    modules = nn.ModuleDict({"encoder": encoder, "heads": heads})
    optimizer = Optimizers(modules, 3e-3, 3e-3, exclude=NOT_HIDDEN, fused=work.device.type == "cuda")

    def body() -> dict[str, Tensor]:
        pick = torch.randint(len(ids), (batch,), device=work.device)
        variant = torch.randint(PARAPHRASES, (batch,), device=work.device)
        chosen = ids[pick, variant].long()
        with work.autocast():
            embeddings = encode_text(encoder, chosen)
            loss, accuracy = heads.loss(embeddings, chosen, attributes[pick], stated[pick, variant])
        optimizer.minimize(loss)
        return {"loss": loss.detach(), "accuracy": accuracy}

    replay = Replay(work, "text", body)

    def step(progress: float, index: int) -> tuple[dict[str, Tensor], int]:
        optimizer.scale.fill_(learning_rate(progress, index, hold=0.5, end=0.02))
        return replay(), batch

    parts: dict[str, Stateful] = {"encoder": encoder, "heads": heads, "optimizer": optimizer}
    run_stage(work, "text", budget_s, step, parts, warm_steps=FIRST_CALLS)
