"""The full grid of the comparison: every method, five densities, sixteen held-out prompts, on the embedded
model; rows come out one by one and a second start goes on where the first ended.

    python scripts/compare_methods.py --output comparison
    python scripts/compare_methods.py --output comparison --jobs 6 --batch 16
    python scripts/compare_methods.py --output corrections --corrections --density 0.2

``--corrections`` compares every method with itself under each correction. ``--jobs`` shares the methods among
so many processes on one device; the rows have no times then. Any option of ``dit-sparse compare`` may follow
and wins over the grid's, for example ``--prompts 4``.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import dit_sparse
from dit_sparse.report.atomic import write_text
from dit_sparse.report.comparison_rows import merged
from dit_sparse.report.comparison_schema import Comparison
from dit_sparse.report.comparison_table import write_pages

DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)
CORRECTIONS = ("none", "pooled", "reshape", "residual")


def main() -> int:
    """Run ``dit-sparse compare`` with the grid's defaults, in one or several processes, and join the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("dit-sparse-compare"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--corrections", action="store_true")
    parser.add_argument("--method", action="append")
    parser.add_argument("--profile", action="append", default=[])
    parser.add_argument("--density", action="append")
    parser.add_argument("--baseline")
    args, others = parser.parse_known_args()
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    methods = args.method or list(dit_sparse.list_methods())
    if args.corrections:
        methods = [f"{method}:correction={name}" for method in methods for name in CORRECTIONS]
    baseline = args.baseline or ("svg2" if "svg2" in methods else None)
    grid = [f"--density={density}" for density in args.density or DENSITIES] + ["--layers", *others]
    asked = [f"--method={name}" for name in methods] + [f"--profile={name}" for name in args.profile]
    parts = [args.output / f"part-{i}" for i in range(min(args.jobs, len(asked)))] if args.jobs > 1 else []
    if not parts:
        chosen = [*asked, *([f"--baseline={baseline}"] if baseline else []), f"--output={args.output}"]
        return subprocess.run([*COMPARE, *grid, *chosen]).returncode
    # The floor is measured once.
    started = [
        subprocess.Popen(
            [
                *COMPARE,
                *grid,
                *asked[i :: len(parts)],
                f"--output={part}",
                "--no-times",
                *(["--no-floor"] if i else []),
            ]
        )
        for i, part in enumerate(parts)
    ]
    codes = [process.wait() for process in started]
    done = [part / "comparison.json" for part in parts if (part / "comparison.json").exists()]
    if done:
        found = [Comparison.model_validate_json(path.read_text(encoding="utf-8")) for path in done]
        whole = merged(found, [*methods, *args.profile], shlex.join(["python", *sys.argv]))
        write_text(args.output / "comparison.json", whole.model_dump_json(indent=1) + "\n")
        measured = {row.label for row in whole.rows}
        for path in write_pages(args.output, whole, baseline if baseline in measured else None):
            print(path)
    return max(codes)


COMPARE = (sys.executable, "-m", "dit_sparse.cli.main", "compare")

if __name__ == "__main__":
    sys.exit(main())
