"""Record a model and choose a profile: ``dit-sparse profile`` from a checkout.

    python scripts/profile_model.py --density 0.25 --work tiny-wan-profile --output balanced.safetensors

All options are those of ``dit-sparse profile``.
"""

from __future__ import annotations

import sys

from dit_sparse.cli.main import app


def main() -> None:
    """Run the command."""
    app(["profile", *sys.argv[1:]])


if __name__ == "__main__":
    main()
