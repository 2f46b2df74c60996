#!/usr/bin/env bash
# Every stage in order, from data/ to submission.csv and report.html. Stages that are done say so and are skipped: run it again at will.
#
#   ./pipeline.sh                        trains baseline and a second backbone
#   ./pipeline.sh baseline my_config     trains these; the first one goes on with pseudo-labels
#   ROUNDS=0 ./pipeline.sh               without pseudo-labels; ROUNDS=3 for three rounds (default: 1)
#   TIME_LIMIT=8h30m ./pipeline.sh       exits with 75 when the time is up, a training at its next batch, a shorter stage
#                                        at its end; the same command goes on from there
#   PARALLEL=auto ./pipeline.sh          several folds at once where one leaves GPUs idle (train.py --parallel)
#   RESUME_FROM=/kaggle/input/x ./pipeline.sh      takes over the runs of an earlier session
#
# PYTHON chooses the interpreter: PYTHON=.venv/bin/python ./pipeline.sh
set -euo pipefail

case "${PYTHON:=python}" in */*) PYTHON="$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ $# -eq 0 ]; then
    if grep -q '^backbone: efficientnet_b0' configs/baseline.yaml; then set -- baseline resnet18; else set -- baseline efficientnet_b0; fi
fi
earlier=()
if [ -n "${RESUME_FROM:-}" ]; then earlier=(--resume-from "$RESUME_FROM"); fi
limit=""
if [ -n "${TIME_LIMIT:-}" ]; then limit="$("$PYTHON" -m kfold.stopping "$TIME_LIMIT")"; fi

child="" asked=""
trap 'asked=yes; if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null || true; fi' TERM INT

stage() { # runs a stage; SIGTERM and Ctrl-C are passed on to it, and its exit code (75: run again) ends this script
    if [ -n "$limit" ] && [ "$SECONDS" -ge "$limit" ]; then
        echo "interrupted: the time limit of $TIME_LIMIT is over before $1: run the same command again" >&2
        exit 75
    fi
    local code=0
    "$PYTHON" "$@" &
    child=$!
    if [ -n "$asked" ]; then kill -TERM "$child" 2>/dev/null || true; fi # the signal came before the stage had a number
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do code=0; wait "$child" || code=$?; done # a signal ends the first wait early
    child=""
    if [ "$code" -eq 143 ] || [ "$code" -eq 130 ]; then code=75; fi # killed before it could answer: nothing is lost
    if [ "$code" -eq 0 ] && [ -n "$asked" ]; then code=75; fi # the signal came with the stage's end
    return "$code"
}

long_stage() { # a stage that trains, with what is left of the time limit
    local left=()
    if [ -n "$limit" ]; then left=(--time-limit "$((limit > SECONDS ? limit - SECONDS : 0))s"); fi
    stage "$@" ${left[@]+"${left[@]}"} ${earlier[@]+"${earlier[@]}"}
}

stage make_folds.py
for name in "$@"; do
    long_stage train.py --config "configs/$name.yaml" --fold all ${PARALLEL:+--parallel "$PARALLEL"}
    stage predict.py --run "$name"
done
if [ "${ROUNDS:=1}" -gt 0 ]; then long_stage pseudo_label.py --run "$1" --rounds "$ROUNDS"; fi
stage stack.py # of all runs, but rejected rounds of pseudo-labels
stage submit.py --run stack
stage report.py
