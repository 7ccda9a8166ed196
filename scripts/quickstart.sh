#!/usr/bin/env bash
# The main job on a fresh machine: install, then generate a video with sparse attention beside the dense one.
# usage: scripts/quickstart.sh [PROMPT] [options of `dit-sparse generate`]
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh" report

prompt="a red circle bouncing over a blue checkerboard"
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    prompt=$1
    shift
fi
exec .venv/bin/dit-sparse generate "$prompt" --method svg2 --density 0.25 \
    --set score=mean_key --set correction=pooled --compare --output outputs/quickstart "$@"
