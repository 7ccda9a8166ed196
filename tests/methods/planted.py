"""Hand-made attention whose right blocks, orders and modes are known, and runs over it."""

import torch

from dit_sparse.layout import Site
from dit_sparse.runtime import Call, Runtime

SHARP = 14.0


def dense(q, k, v):
    """Softmax attention in float64, and its log-sum-exp ``[B, H, N]``."""
    q, k, v = (x.transpose(1, 2).double() for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (logits.softmax(dim=-1) @ v).transpose(1, 2), logits.logsumexp(dim=-1)


def random(tokens, heads=3, dim=16, batch=1, seed=0, sharp=1.0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, tokens, heads, dim, generator=generator) for _ in range(3))
    return sharp * q, k, v


def groups(layout, *axes_of_head, dim=64, batch=1, seed=0):
    """q, k, v in which a video token attends, evenly, to those that differ from it only along the axes named
    for the head: "W" is attention along rows, "HW" within frames. Text attends to everything."""
    position = torch.stack(torch.unravel_index(torch.arange(layout.video_tokens), layout.grid))
    codes = []
    for axes in axes_of_head:
        label = torch.zeros(layout.video_tokens, dtype=torch.long)
        for axis, name in enumerate("THW"):
            if name not in axes:
                label = label * layout.grid[axis] + position[axis]
        codes.append(torch.nn.functional.one_hot(label, dim).float())
    code = SHARP * torch.stack(codes, dim=1).expand(batch, -1, -1, -1)
    v = random(layout.num_tokens, len(axes_of_head), dim, batch, seed)[2]
    text = torch.zeros(batch, layout.text_tokens, *code.shape[2:])
    parts = [text, code] if layout.text_position == "first" else [code, text]
    code = torch.cat(parts, dim=1)
    return code, code.clone(), v


def run(method, x, layout, steps, runtime=None):
    """Outputs of a generation whose q, k, v stay, or change step by step (a list), and its runtime."""
    runtime = runtime or Runtime(method)
    out = []
    for step in range(steps):
        q, k, v = x[step] if isinstance(x, list) else x

        def stock(q=q, k=k, v=v):
            return dense(q, k, v)[0].to(q.dtype)

        out.append(runtime.run(q, k, v, Call(Site(0, step, steps), layout, 1, None, stock, None, None)))
    return out, runtime


def generation(runtime, inputs, layout, steps=2):
    """Outputs by (branch, step) of guidance branches, q, k, v by name, that run one after the other."""
    out = {}
    for step in range(steps):
        for branch, x in inputs.items():

            def stock(x=x):
                return dense(*x)[0].float()

            call = Call(Site(0, step, steps, branch), layout, 1, None, stock, None, None)
            out[branch, step] = runtime.run(*x, call)
    return out


def observed_steps(runtime):
    return [record.site.step for record in runtime.records if record.dense_reason == "observed"]


def densities(runtime):
    """Of the sparse calls."""
    return [float(record.density) for record in runtime.records if record.dense_reason is None]


def relative_error(out, exact):
    """Per head, ``[B, H]``."""
    out, exact = out.double(), exact.double()
    return ((out - exact).square().sum((1, 3)) / exact.square().sum((1, 3))).sqrt()


def block_mass(q, k, block, lse=None):
    """Exact share of every block, float64 ``[B, H, nQ, nK]``, for token counts that the block divides."""
    q, k = (x.transpose(1, 2).double() for x in (q, k))
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    lse = logits.logsumexp(-1) if lse is None else lse.double()
    share = (logits - lse[..., None]).exp()
    return share.unflatten(-1, (-1, block)).sum(-1).unflatten(-2, (-1, block)).mean(-2)
