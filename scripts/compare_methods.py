"""The full grid of the comparison: every method, five densities, sixteen held-out prompts, on the embedded
model; rows come out one by one and a second start goes on where the first ended.

    python scripts/compare_methods.py --output comparison

Any option of ``dit-sparse compare`` may follow and wins over the grid's, for example ``--prompts 4``.
"""

from __future__ import annotations

import sys

from dit_sparse.cli.main import app

DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)


def main() -> None:
    """Run ``dit-sparse compare`` with the grid's defaults."""
    given = sys.argv[1:]
    grid = [] if "--density" in given else [f"--density={density}" for density in DENSITIES]
    baseline = [] if "--baseline" in given or "--method" in given else ["--baseline=svg2"]
    app(["compare", *grid, *baseline, "--layers", *given])


if __name__ == "__main__":
    main()
