# Sourced by quickstart.sh and test.sh: makes .venv at the repository's root and installs the package with extras.
# usage: source scripts/_venv.sh EXTRAS
#
# DIT_SPARSE_PYTHON  interpreter to build .venv with (default: the first of python3.12, 3.11, 3.13, 3.10, python3)
# DIT_SPARSE_TORCH   requirement for PyTorch when it is not in .venv yet (default below)

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local name
    for name in ${DIT_SPARSE_PYTHON:-python3 python3.12 python3.11 python3.13 python3.10 python}; do
        if command -v "$name" >/dev/null &&
            "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "error: Python 3.10 to 3.13 is needed; set DIT_SPARSE_PYTHON to one" >&2
    exit 1
}

extras=$1
stamp=.venv/.installed-$extras
export PIP_DISABLE_PIP_VERSION_CHECK=1
# The second run is quick: nothing is installed unless the package's metadata changed.
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    python=$(find_python)
    echo "== installing dit-sparse[$extras] into .venv ($("$python" --version))"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    # PyTorch first and alone: the package must not pull another build of it.
    .venv/bin/python -c 'import torch' 2>/dev/null || .venv/bin/pip install -q "${DIT_SPARSE_TORCH:-torch==2.13.0}"
    .venv/bin/pip install -q -e ".[$extras]"
    touch "$stamp"
fi
