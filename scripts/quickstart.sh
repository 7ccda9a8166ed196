#!/usr/bin/env bash
# The main job on a fresh machine: install, then generate a video with sparse attention beside the dense one.
# usage: scripts/quickstart.sh [PROMPT] [options of `dit-sparse generate`]
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh" report

prompt="a red circle bouncing over a blue checkerboard"
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    prompt=$1
    shift
fi
exec .venv/bin/dit-sparse generate "$prompt" --method mosaic --density 0.25 \
    --compare --output outputs/quickstart "$@"
