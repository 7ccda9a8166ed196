#!/usr/bin/env python
"""Train, export or judge `tiny-wan`, the embedded text-to-video model. See docs/training-tiny-wan.md."""

from __future__ import annotations

import argparse
import random
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from tiny_wan.captions import describe
from tiny_wan.config import Plan, toy_plan
from tiny_wan.evaluate import evaluate
from tiny_wan.export import export
from tiny_wan.render import render
from tiny_wan.runtime import Workspace
from tiny_wan.scenes import sample_scenes
from tiny_wan.sheets import contact_sheet
from tiny_wan.train import profiling_plan, train


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("train", "evaluate", "export", "sheet"), help="what to do")
    parser.add_argument("--work", type=Path, default=Path("tiny-wan-work"), help="checkpoints and log")
    parser.add_argument("--export", type=Path, default=Path("tiny-wan-export"), help="where results go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="use the work folder"
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=None, help="default: on a GPU"
    )
    parser.add_argument("--toy", action="store_true", help="toy sizes, for tests on a CPU")
    parser.add_argument(
        "--profile-stages", type=float, metavar="SECONDS", help="run every stage this long, and compile"
    )
    parser.add_argument(
        "--seconds",
        nargs="*",
        default=[],
        metavar="STAGE=SECONDS",
        help="budgets: text, vae, low, main, mixed, classifier",
    )
    return parser.parse_args(arguments)


def with_budgets(plan: Plan, budgets: list[str]) -> Plan:
    """The plan with some stages' seconds replaced, each given as "stage=seconds"."""
    for item in budgets:
        name, _, value = item.partition("=")
        if hasattr(plan, f"{name}_seconds"):
            plan = replace(plan, **{f"{name}_seconds": float(value)})
        elif name in {stage.name for stage in plan.stages}:
            stages = (replace(s, seconds=float(value)) if s.name == name else s for s in plan.stages)
            plan = replace(plan, stages=tuple(stages))
        else:
            raise ValueError(f"no stage is called {name!r}")
    return plan


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    plan = replace(toy_plan() if args.toy else Plan(), seed=args.seed)
    plan = with_budgets(plan, args.seconds)
    if args.profile_stages is not None:
        plan = profiling_plan(plan, args.profile_stages)
    device = torch.device(args.device)
    compiles = args.compile if args.compile is not None else device.type == "cuda"
    work = Workspace(args.work, device, compile=compiles, free_warmup=args.profile_stages is not None)
    if args.verb == "sheet":
        scenes, rng = sample_scenes(24, seed=61), random.Random(61)
        clips = render(scenes, plan.main.frames, plan.main.side, device)
        texts = [describe(row, rng).text for row in scenes.attributes.tolist()]
        contact_sheet(list(clips), texts, args.export / "contact_sheets_real.jpg")
    elif args.verb == "train":
        if not args.resume:
            shutil.rmtree(args.work, ignore_errors=True)
        train(work, plan, args.export)
    elif args.verb == "evaluate":
        evaluate(work, plan, args.export)
    else:
        export(work, plan, args.export)


if __name__ == "__main__":
    main()
