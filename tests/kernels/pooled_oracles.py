"""Float64 definitions of compensation and mean-key mass, by loops and by one softmax over the union; for CPU
and GPU."""

from __future__ import annotations

import torch
from kernel_oracles import tokens_of
from torch import Tensor


def means64(x: Tensor, block: int) -> Tensor:
    """Float64 block means ``[B, blocks, H, D]``."""
    return torch.stack([part.double().mean(dim=1) for part in x.split(block, dim=1)], dim=1)


def log_lengths(tokens: int, block: int, device: torch.device) -> Tensor:
    """ln(tokens) of every block, float64."""
    lengths = [min(block, tokens - start) for start in range(0, tokens, block)]
    return torch.tensor(lengths, device=device, dtype=torch.float64).log()


def mean_logits64(q: Tensor, k: Tensor, block: int, scale: float) -> Tensor:
    """``[B, H, Nq, nK]``: scaled logits of mean keys plus ln(length)."""
    logits = torch.einsum("bnhd,bmhd->bhnm", q.double(), means64(k, block)) * scale
    return logits + log_lengths(k.shape[1], block, k.device)


def skipped_of(mask: Tensor, block_q: int, num_queries: int) -> Tensor:
    """Block mask ``[B, H, nQ, nK]`` to the skipped blocks of every query, ``[B, H, Nq, nK]``."""
    return ~mask[:, :, torch.arange(num_queries, device=mask.device) // block_q]


def pooled64(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, block: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor]:
    """Attention to the means of skipped blocks and its log-sum-exp; zeros and -inf where none is skipped."""
    logits = mean_logits64(q, k, block[1], scale)
    logits = logits.masked_fill(~skipped_of(mask, block[0], q.shape[1]), -torch.inf)
    lse = logits.logsumexp(dim=-1)
    weights = (logits - lse.nan_to_num(neginf=0.0)[..., None]).exp()
    return torch.einsum("bhnm,bmhd->bnhd", weights, means64(v, block[1])), lse


def compensated64(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, block: tuple[int, int], scale: float
) -> Tensor:
    """One softmax over the kept tokens and the means of the skipped blocks together."""
    seen = tokens_of(mask, block, q.shape[1], k.shape[1])
    tokens = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * scale
    means = mean_logits64(q, k, block[1], scale).masked_fill(
        ~skipped_of(mask, block[0], q.shape[1]), -torch.inf
    )
    weights = torch.cat([tokens.masked_fill(~seen, -torch.inf), means], dim=-1).softmax(dim=-1)
    values = torch.cat([v.double(), means64(v, block[1])], dim=1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, values)


def merged64(out: Tensor, lse: Tensor, pooled: tuple[Tensor, Tensor]) -> Tensor:
    """The union of two attentions by their log-sum-exp, ``[B, N, H, D]``; zeros where both are empty."""
    whole = torch.logaddexp(lse.double(), pooled[1])
    shares = [(part - whole).exp().nan_to_num(nan=0.0).transpose(1, 2) for part in (lse.double(), pooled[1])]
    return out.double() * shares[0][..., None] + pooled[0] * shares[1][..., None]


def mass64(q: Tensor, k: Tensor, block: tuple[int, int], scale: float) -> Tensor:
    """Softmax over mean keys, averaged over the rows that each query block has."""
    shares = mean_logits64(q, k, block[1], scale).softmax(dim=-1)
    return torch.stack([part.mean(dim=2) for part in shares.split(block[0], dim=2)], dim=2)


def rounding_bound(q: Tensor, k: Tensor, block: int, scale: float) -> float:
    """How far rounding the mean keys to the dtype of k may move a logit: the unit roundoff times sum_d
    |q_d mean_d|, and the same for float32 arithmetic."""
    roundoff = torch.finfo(k.dtype).eps / 2 + 1e-6
    products = torch.einsum("bnhd,bmhd->bhnm", q.double().abs(), means64(k, block).abs())
    return scale * roundoff * products.max().item() + 1e-6


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square difference over root mean square."""
    return ((actual.double() - expected).square().mean() / expected.square().mean()).sqrt().item()


def block_mass64(q: Tensor, k: Tensor, lse: Tensor, block: tuple[int, int], scale: float) -> Tensor:
    """Mean over the query block's rows of the sum over the key block of exp(logit - lse), ``[B, H, nQ, nK]``;
    rows with lse = -inf have none. Head by head, a query block at a time."""
    keys = k.double().transpose(1, 2)
    rows = []
    for start in range(0, q.shape[1], block[0]):
        some = slice(start, start + block[0])
        logits = q[:, some].double().transpose(1, 2) @ keys.transpose(-1, -2) * scale
        known = lse[:, :, some].double()
        shares = (logits - known[..., None]).exp().masked_fill(torch.isneginf(known)[..., None], 0.0)
        rows.append(
            torch.stack([part.sum(dim=-1).mean(dim=-1) for part in shares.split(block[1], dim=-1)], -1)
        )
    return torch.stack(rows, dim=2)


def skip_error64(q, k, v, out, lse, block, scale, compensated):
    """``(errors, adds)``, ``[B, H, nQ, nK]``: mean over rows of the squared distance that skipping one block
    makes, and of the square of what the block adds to the output, which roundings are relative to."""
    heads = [x.double().transpose(1, 2) for x in (q, k, v, out)]
    rows_of, keys, values, outs = heads
    means = means64(k, block[1]).transpose(1, 2), means64(v, block[1]).transpose(1, 2)
    lengths = log_lengths(k.shape[1], block[1], k.device).exp()
    errors, adds = [], []
    for start in range(0, q.shape[1], block[0]):
        some = slice(start, start + block[0])
        row, o, known = rows_of[:, :, some], outs[:, :, some], lse[:, :, some, None].double()
        shares = (row @ keys.transpose(-1, -2) * scale - known).exp()
        pooled = (row @ means[0].transpose(-1, -2) * scale - known).exp() * lengths
        error, add = [], []
        for j, (weights, part) in enumerate(zip(shares.split(block[1], -1), values.split(block[1], 2))):
            added = weights @ part
            missing = added - weights.sum(-1, keepdim=True) * o
            if compensated:
                missing = missing - pooled[..., j, None] * (means[1][:, :, None, j] - o)
            error.append(missing.square().sum(-1).mean(-1))
            add.append(
                added.square().sum(-1).mean(-1)
                + (weights.sum(-1, keepdim=True) * o).square().sum(-1).mean(-1)
            )
        errors.append(torch.stack(error, -1))
        adds.append(torch.stack(add, -1))
    return torch.stack(errors, 2), torch.stack(adds, 2)
