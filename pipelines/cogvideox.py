"""CogVideoX text to video with sparse attention, beside the dense run, with a report.

python pipelines/cogvideox.py              # CogVideoX-5b, 720x480, 49 frames; one GPU with 16 GB
python pipelines/cogvideox.py --model THUDM/CogVideoX1.5-5B --height 768 --width 1360 --frames 81
python pipelines/cogvideox.py --tiny       # random weights, any machine: shows that it runs, not how it looks
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import CogVideoXPipeline

from dit_sparse.report.compare import Context, generate_pair, write_comparison
from dit_sparse.report.environment import describe_model

PROMPT = (
    "A panda, dressed in a small red jacket and a tiny hat, sits on a wooden stool in a serene bamboo forest "
    "and strums a miniature acoustic guitar, its fluffy paws producing soft, melodic tunes."
)


def main() -> None:
    """Generate dense and sparse from one seed and write the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="THUDM/CogVideoX-5b")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=720)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--method", default="mosaic")
    parser.add_argument("--density", type=float, default=0.3)
    parser.add_argument("--output", type=Path, default=Path("outputs/cogvideox"))
    parser.add_argument("--tiny", action="store_true", help="random weights at a tiny size")
    args = parser.parse_args()

    # The dense guard: the first fifth of the steps stays dense. Text comes first in the sequence and is
    # always kept.
    sparse = {"method": args.method, "density": args.density, "dense_steps": 0.2}
    call = {"height": args.height, "width": args.width, "num_frames": args.frames, "guidance_scale": 6.0}
    if args.tiny:
        from tiny import cogvideox_inputs, cogvideox_pipeline

        pipe = cogvideox_pipeline()
        call |= {k: v for k, v in cogvideox_inputs().items() if k != "output_type"}
        sparse |= {"min_tokens": 0, "block_size": 16}
    else:
        pipe = CogVideoXPipeline.from_pretrained(args.model, dtype=torch.bfloat16)
        pipe.vae.enable_tiling()
        pipe.enable_model_cpu_offload()
        call |= {"prompt": args.prompt, "num_inference_steps": args.steps}

    pair = generate_pair(pipe, call, sparse, seed=args.seed)
    context = Context(
        args.prompt, args.seed, describe_model(pipe, "tiny" if args.tiny else args.model), config=sparse
    )
    write_comparison(args.output, pair, context, fps=8)
    print(args.output / "report.html")


if __name__ == "__main__":
    main()
