#!/usr/bin/env bash
# Every stage in order, from data/ to submission.csv. Stages that are done say so and are skipped: run it again at will.
#
#   ./pipeline.sh                       trains configs/baseline.yaml
#   ./pipeline.sh baseline resnet18     trains these; of all runs, the one with the best out-of-fold score is submitted
#
# PYTHON chooses the interpreter: PYTHON=.venv/bin/python ./pipeline.sh
set -euo pipefail

case "${PYTHON:=python}" in */*) PYTHON="$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")"
[ $# -gt 0 ] || set -- baseline

"$PYTHON" make_folds.py
for name in "$@"; do
    "$PYTHON" train.py --config "configs/$name.yaml" --fold all
    "$PYTHON" predict.py --run "$name"
done
"$PYTHON" submit.py
