"""Shards as tasks: stages one after another, each command a process, failures named. Ray is played by a list here."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_pipeline import prepare

import fan_out
from kfold.errors import Interrupted, UserError
from kfold.fan_out.cluster import Share
from kfold.fan_out.shards import run_stages, run_words
from kfold.fan_out.worker import TryAgain
from kfold.shards import shard_commands
from kfold.stopping import Stop

SCRIPT = """
import sys
with open("order", "a") as file:
    file.write(sys.argv[-1] + "\\n")
if sys.argv[-1] == "2/3" and "bad" in sys.argv:
    sys.exit("error: shard 2/3 has a problem")
"""


class CallsAtOnce:
    """What `run_stages` needs of Ray; a task is done when it is asked for."""

    exceptions = SimpleNamespace(TaskCancelledError=KeyboardInterrupt, RayError=TryAgain)

    def remote(self, **_options):
        return lambda function: SimpleNamespace(remote=lambda *arguments: (function, arguments))

    def wait(self, references, timeout):
        return references[-1:], references[:-1]  # in another order than they were given

    def get(self, reference):
        function, arguments = reference
        return function(*arguments)

    def cancel(self, reference):
        pass


@pytest.fixture
def root(tmp_path):
    (tmp_path / "predict.py").write_text(SCRIPT)
    return tmp_path


def run(root: Path, runs: list[str], stop: Stop | None = None) -> None:
    stages = shard_commands(runs, 3)
    logs = {words: root / f"{number}.log" for number, words in enumerate(words for stage in stages for words in stage)}
    run_stages(CallsAtOnce(), stages, logs, root, Share(1, 0), 0, stop or Stop())


def test_the_shards_come_after_the_choice_and_before_the_merge(root):
    run(root, ["good"])
    order = (root / "order").read_text().split()
    assert (order[0], sorted(order[1:4]), order[4:]) == ("--oof", ["1/3", "2/3", "3/3"], ["--merge"])
    assert list(root.glob("*.log")) == []


def test_a_shard_that_fails_is_named_and_nothing_is_merged(root):
    with pytest.raises(UserError) as refusal:
        run(root, ["bad"])
    (problem,) = refusal.value.problems
    assert "predict.py --run bad --shard 2/3: failed, see" in problem
    assert "shard 2/3 has a problem" in problem
    assert sorted((root / "order").read_text().split()) == ["--oof", "1/3", "2/3", "3/3"]
    assert [path.read_text() for path in root.glob("*.log")] == ["error: shard 2/3 has a problem\n"]


def test_a_stop_is_passed_on_before_the_next_stage(root):
    stop = Stop(0)
    with pytest.raises(Interrupted):
        run(root, ["good"], stop)
    assert (root / "order").read_text().split() == ["--oof"]


def test_a_task_is_told_once_to_stop(root):
    """A second time would interrupt it while it waits for its process."""
    told, looks = [], iter([False, False, False])

    class Slow(CallsAtOnce):
        def wait(self, references, timeout):
            return super().wait(references, timeout) if next(looks, True) else ([], references)

        def cancel(self, reference):
            told.append(reference)

    stages = shard_commands(["good"], 3)
    with pytest.raises(Interrupted):
        run_stages(Slow(), stages, {stages[0][0]: root / "log"}, root, Share(1, 0), 0, Stop(0))
    assert len(told) == 1


def test_a_run_that_is_not_trained_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(fan_out, "has_ray", lambda: True)
    root = prepare(tmp_path, "multiclass", 48, 6)
    for name, problem in (("none", "run none: no trained fold in"), ("../up", "run name '../up'")):
        with pytest.raises(UserError, match=problem):
            fan_out.predict_in_shards([name], 3, "no address is asked for", root=root)
    assert not (root / "runs").exists()


def test_a_node_without_the_folder_says_so(tmp_path):
    assert "share this folder with it" in run_words(("predict.py",), str(tmp_path), str(tmp_path / "log"), 1)


def test_the_printed_list_is_a_shell_script(root, capsys):
    fan_out.predict_in_shards(["good"], 3, prints=True, root=root)
    printed = capsys.readouterr().out
    (root / "all.sh").write_text(printed.replace("\npython ", f"\n{sys.executable} "))
    subprocess.run(["sh", "all.sh"], cwd=root, check=True)
    assert (root / "order").read_text().split() == ["--oof", "1/3", "2/3", "3/3", "--merge"]
    with pytest.raises(UserError, match="--shards 0"):
        fan_out.predict_in_shards(["good"], 0, root=root)
