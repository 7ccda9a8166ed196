#!/usr/bin/env python
"""Check the GPU kernels and measure them: the GPU tests first, then the tables, in one command.

    python scripts/gpu_check.py                      tests, then every default benchmark
    python scripts/gpu_check.py --bench kernels      tests, then the kernel tables
    python scripts/gpu_check.py --no-tests --bench tune --quick
    python scripts/gpu_check.py --json results.json
    python scripts/gpu_check.py --render results.json      its tables and plot into docs/performance.md

Every rate counts the computed blocks only and stands beside the dense baselines timed in the same process.
Block maps of the kernel tables are random at a given density: a kernel's speed, not a method's. Times are
medians over CUDA events, warm-up excluded, on random data. Exit code 1 when a test fails; then nothing is
measured. A benchmark that breaks is reported, the others still run, and the exit code is 3.

The benchmarks are the files of ``gpu_bench/``; a new file there is found by itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch
from gpu_bench import discover
from gpu_bench.harness import BENCHMARKS, BLOCK, GROUPS, Row, Settings, environment, print_table
from gpu_bench.tables import render

ROOT = Path(__file__).resolve().parents[1]


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    by_name = ", ".join(name for name, (_, default) in BENCHMARKS.items() if not default)
    parser.add_argument(
        "--bench",
        nargs="*",
        choices=[*GROUPS, *BENCHMARKS],
        help=f"benchmarks or groups; default: all but {by_name}",
    )
    parser.add_argument("--no-tests", action="store_true", help="skip the GPU tests (the output says so)")
    parser.add_argument("--quick", action="store_true", help="small shapes, short timings")
    parser.add_argument("--json", type=Path, help="write environment and rows to this file")
    parser.add_argument(
        "--render",
        nargs="+",
        type=Path,
        metavar="JSON",
        help="write the tables of these results into docs/performance.md, measure nothing",
    )
    return parser.parse_args()


def run_tests() -> bool:
    """The GPU tests in a process of their own; whether they passed."""
    command = [sys.executable, "-m", "pytest", str(ROOT / "tests" / "gpu"), "-q", "-rs", "--durations=5"]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def run_benchmark(name: str, settings: Settings) -> list[Row] | None:
    """Run and print one benchmark; None if it raised."""
    function, _ = BENCHMARKS[name]
    started = time.perf_counter()
    try:
        rows = function(settings)
    except Exception:  # the other benchmarks are worth having
        print(f"\n{name}: FAILED\n{traceback.format_exc()}", file=sys.stderr)
        return None
    print(f"\n{name}: {(function.__doc__ or '').splitlines()[0]} ({time.perf_counter() - started:.0f} s)")
    print_table(rows)
    return rows


def chosen(asked: list[str] | None) -> list[str]:
    """The benchmarks that these names of benchmarks and groups stand for; the default ones for none."""
    if not asked:
        return [name for name, (_, default) in BENCHMARKS.items() if default]
    return list(dict.fromkeys(name for choice in asked for name in GROUPS.get(choice, [choice])))


def measure(names: list[str], settings: Settings, report: Row, path: Path | None) -> bool:
    """Run these benchmarks and write the report with their rows; whether all of them ran."""
    results: dict[str, list[Row]] = {}
    for name in names:
        rows = run_benchmark(name, settings)
        if rows is not None:
            results[name] = rows
        torch.compiler.reset()
        torch.cuda.empty_cache()
        if path is not None:  # after every benchmark: what was measured is kept whatever happens later
            path.write_text(json.dumps(report | {"results": results}, indent=1))
    return len(results) == len(names)


def main() -> int:
    """Parse, test, measure."""
    discover()
    arguments = parse()
    if arguments.render:
        for path in arguments.render:
            names = render(path, ROOT / "docs" / "performance.md", ROOT / "docs" / "images" / "speedup.svg")
            print(f"{path}: {', '.join(names)}")
        return 0
    if not torch.cuda.is_available():
        print("gpu_check needs a CUDA GPU; on a CPU run: pytest tests/kernels", file=sys.stderr)
        return 2
    env = environment()
    versions = "  ".join(f"{name} {value}" for name, value in env.items())
    print(versions, "bfloat16", f"blocks {BLOCK[0]}x{BLOCK[1]}")

    report: Row = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "environment": env,
        "tests": "not run",
        "results": {},
    }
    if arguments.no_tests:
        print("GPU tests: NOT RUN")
    elif run_tests():
        report["tests"] = "passed"
    else:
        print("GPU tests failed: nothing is measured", file=sys.stderr)
        return 1

    complete = measure(chosen(arguments.bench), Settings(arguments.quick), report, arguments.json)
    return 0 if complete else 3


if __name__ == "__main__":
    sys.exit(main())
