#!/usr/bin/env python
"""Train, export or judge `tiny-wan`, the embedded text-to-video model. See docs/training-tiny-wan.md."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_wan.config import Plan, toy_plan
from tiny_wan.evaluate import evaluate, real_clips
from tiny_wan.export import export
from tiny_wan.runtime import Workspace
from tiny_wan.sheets import contact_sheet
from tiny_wan.train import profile_stage, profiling_plan, train


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add, flag = parser.add_argument, argparse.BooleanOptionalAction
    add("verb", choices=("train", "evaluate", "export", "profile", "sheet"), help="what to do")
    add("--work", type=Path, default=Path("tiny-wan-work"), help="checkpoints and log")
    add("--export", type=Path, default=Path("tiny-wan-export"), help="where results go")
    add("--init", type=Path, metavar="FOLDER", help="train: start from the resume bundle in this folder")
    add("--from", dest="first", metavar="STAGE", help="with --init: go on here; default: first unfinished")
    add("--stop-after", type=float, metavar="SECONDS", default=float("inf"), help="train: stop and export")
    add("--bundle", action=flag, default=True, help="write a resume bundle with each export")
    add("--stage", default="main", help="profile: text, vae, low, main or mixed")
    add("--steps", type=int, default=25, help="profile: steps")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    add("--resume", action=flag, default=True, help="use the work folder")
    add("--compile", action=flag, default=None, help="compile the denoiser's blocks; default: on a GPU")
    add("--graphs", action=flag, default=None, help="record steps as CUDA graphs; default: on a GPU")
    add("--toy", action="store_true", help="toy sizes, for tests on a CPU")
    add("--trial", type=float, metavar="SECONDS", help="run every stage this long, not counting compilation")
    budgets = "budgets: text, vae, low, main, mixed, classifier"
    add("--seconds", nargs="*", default=[], metavar="STAGE=SECONDS", help=budgets)
    return parser.parse_args(arguments)


def with_budgets(plan: Plan, budgets: list[str]) -> Plan:
    """The plan with some stages' seconds replaced, each given as "stage=seconds"."""
    for item in budgets:
        name, _, value = item.partition("=")
        if hasattr(plan, f"{name}_seconds"):
            change: dict[str, Any] = {f"{name}_seconds": float(value)}
            plan = replace(plan, **change)
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
    if args.trial is not None:
        plan = profiling_plan(plan, args.trial)
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    work = Workspace(
        args.work / "profile" if args.verb == "profile" else args.work,
        device,
        compile=on_gpu if args.compile is None else args.compile,
        graphs=on_gpu and args.graphs is not False,
        free_warmup=args.trial is not None,
        stop_after_s=args.stop_after,
    )
    if args.verb == "sheet":
        clips, texts = real_clips(plan.main, 24, device)
        contact_sheet(list(clips), texts, args.export / "contact_sheet_real.jpg")
    elif args.verb == "train":
        if not args.resume:
            shutil.rmtree(args.work, ignore_errors=True)
        train(work, plan, args.export, args.init, args.first, args.bundle)
    elif args.verb == "evaluate":
        evaluate(work, plan, args.export, args.bundle)
    elif args.verb == "profile":
        if args.stage not in plan.stage_names():
            raise SystemExit(f"no stage is called {args.stage!r}: {', '.join(plan.stage_names())}")
        profile_stage(work, plan, args.stage, args.steps)
    else:
        export(work, plan, args.export, args.bundle)


if __name__ == "__main__":
    main()
