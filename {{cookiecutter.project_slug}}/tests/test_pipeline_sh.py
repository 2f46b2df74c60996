"""What pipeline.sh does around its stages, which are stood in for by a script: order, signals, time limit, exit codes.

With the real stages it runs in test_pipeline.py and test_resume.py.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

STAND_IN = """#!/bin/bash
if [ "$1" = -m ]; then exec "{python}" "$@"; fi
echo "$@" >> calls.txt
case "$1" in
    {waits}) trap 'sleep 0.1; exit {code}' TERM INT; echo waiting; for _ in $(seq 300); do sleep 0.1; done ;;
    {fails}) exit 3 ;;
    {slow}) sleep 1.2 ;;
esac
"""


def start(
    root: Path, *names: str, waits: str = "-", fails: str = "-", slow: str = "-", code: int = 75, **settings: str
) -> subprocess.Popen:
    """pipeline.sh with stages that only note how they were called; one of them may wait for a signal, or fail."""
    project = Path(__file__).parent.parent
    shutil.copy(project / "pipeline.sh", root)
    shutil.copytree(project / "kfold", root / "kfold", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "configs").mkdir()
    (root / "configs" / "baseline.yaml").write_text("backbone: resnet18\n")
    stand_in = root / "python"
    stand_in.write_text(STAND_IN.format(python=sys.executable, waits=waits, fails=fails, slow=slow, code=code))
    stand_in.chmod(0o755)
    return subprocess.Popen(
        ["./pipeline.sh", *names],
        cwd=root,
        env={**os.environ, "PYTHON": "./python", **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As in a terminal: where these tests run behind `nohup` or `&`, Ctrl-C is switched off for all below.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end(running: subprocess.Popen, root: Path) -> tuple[int, str, list[str]]:
    """Exit code, standard error and how each stage was called."""
    _, errors = running.communicate(timeout=60)
    return running.returncode, errors, (root / "calls.txt").read_text().splitlines()


def test_the_stages_come_in_order_and_the_first_experiment_gets_the_pseudo_labels(tmp_path):
    assert end(start(tmp_path, "baseline", "mine", ROUNDS="2", RESUME_FROM="/earlier"), tmp_path) == (
        0,
        "",
        [
            "make_folds.py",
            "train.py --config configs/baseline.yaml --fold all --resume-from /earlier",
            "predict.py --run baseline",
            "train.py --config configs/mine.yaml --fold all --resume-from /earlier",
            "predict.py --run mine",
            "pseudo_label.py --run baseline --rounds 2 --resume-from /earlier",
            "stack.py",
            "submit.py --run stack",
            "report.py",
        ],
    )


def test_without_names_it_trains_two_backbones_and_rounds_0_leaves_out_pseudo_labels(tmp_path):
    code, _, calls = end(start(tmp_path, ROUNDS="0"), tmp_path)
    assert code == 0
    assert [call.split()[2] for call in calls if call.startswith("train.py")] == [
        "configs/baseline.yaml",
        "configs/efficientnet_b0.yaml",
    ]
    assert not any(call.startswith("pseudo_label.py") for call in calls)


@pytest.mark.parametrize("stage", ["make_folds.py", "train.py", "predict.py", "stack.py"])
def test_a_stage_that_fails_ends_it_with_its_code(stage, tmp_path):
    code, _, calls = end(start(tmp_path, "baseline", fails=stage), tmp_path)
    assert code == 3
    assert calls[-1].startswith(stage)


@pytest.mark.parametrize(("to_group", "number"), [(False, "SIGTERM"), (False, "SIGINT"), (True, "SIGINT")])
@pytest.mark.parametrize("stage", ["train.py", "submit.py"])
@pytest.mark.parametrize("code", [75, 143, 0])
def test_a_signal_reaches_the_stage_and_the_exit_code_says_run_it_again(to_group, number, stage, code, tmp_path):
    """Also where the stage was killed by it before it could answer (143), or was about to end anyway (0)."""
    running = start(tmp_path, "baseline", waits=stage, code=code)
    assert running.stdout.readline() == "waiting\n"
    (os.killpg if to_group else os.kill)(running.pid, signal.Signals[number])  # a group: Ctrl-C in a terminal
    ended, _, calls = end(running, tmp_path)
    assert ended == 75
    assert calls[-1].startswith(stage)


def test_the_stages_share_one_time_limit(tmp_path):
    running = start(tmp_path, "baseline", "mine", slow="train.py", TIME_LIMIT="2s")
    code, errors, calls = end(running, tmp_path)
    assert code == 75
    assert "the time limit of 2s is over before" in errors
    left = [int(call.split("--time-limit ")[1].rstrip("s")) for call in calls if "--time-limit" in call]
    assert left == sorted(left, reverse=True)
    assert left[0] in (1, 2)
    assert len(left) == 1 or left[1] < left[0]
    assert "submit.py --run stack" not in calls


def test_a_time_limit_that_cannot_be_read_starts_no_stage(tmp_path):
    running = start(tmp_path, "baseline", TIME_LIMIT="soon")
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 2
    assert "soon: write hours, minutes and seconds" in errors
    assert not (tmp_path / "calls.txt").exists()
