#!/usr/bin/env bash
# Everything that must hold before a change lands: install with the dev extras, lint, type-check, test.
# usage: scripts/test.sh [options of pytest]
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh" dev

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
