#!/usr/bin/env bash
# Every stage in order, from data/ to submission.csv. Stages that are done say so and are skipped: run it again at will.
#
#   ./pipeline.sh                        trains baseline and a second backbone
#   ./pipeline.sh baseline my_config     trains these; the first one goes on with pseudo-labels
#   ROUNDS=0 ./pipeline.sh               without pseudo-labels; ROUNDS=3 for three rounds (default: 1)
#
# PYTHON chooses the interpreter: PYTHON=.venv/bin/python ./pipeline.sh
set -euo pipefail

case "${PYTHON:=python}" in */*) PYTHON="$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ $# -eq 0 ]; then
    if grep -q '^backbone: efficientnet_b0' configs/baseline.yaml; then set -- baseline resnet18; else set -- baseline efficientnet_b0; fi
fi

"$PYTHON" make_folds.py
for name in "$@"; do
    "$PYTHON" train.py --config "configs/$name.yaml" --fold all
    "$PYTHON" predict.py --run "$name"
done
if [ "${ROUNDS:=1}" -gt 0 ]; then "$PYTHON" pseudo_label.py --run "$1" --rounds "$ROUNDS"; fi
"$PYTHON" stack.py # of all runs, but rejected rounds of pseudo-labels
"$PYTHON" submit.py --run stack
