"""The table of benchmarks, the runner that goes on where it ended, and sides that take turns. Nothing is timed here."""

import json
import sys
from pathlib import Path

import peers_there
import pytest
import run
from hypothesis import given
from hypothesis import strategies as st
from photos import write_photos
from plan import SIZES, WITH_PEERS, make_plan
from rows import best_peer, gain, make_row, table
from turns import Side, SideFailed, take_turns

from conftest import TEMPLATE

BENCHMARKS = TEMPLATE / "benchmarks"
NO_PYTHON = Path("no-such-python")
figures = st.floats(0.01, 1e6)
rounds = st.integers(1, 5).flatmap(lambda count: st.tuples(*[st.lists(figures, min_size=count, max_size=count)] * 2))


# Rows and the table


@given(rounds, st.floats(0.1, 10))
def test_twice_the_speed_is_twice_the_gain_and_so_is_half_the_time(both, factor):
    ours, theirs = both
    speed = make_row("r", "w", "images/s", {"ours": [factor * value for value in theirs]})
    seconds = make_row("r", "w", "s", {"ours": [value / factor for value in theirs]})
    assert gain(speed, theirs) == pytest.approx(factor)
    assert gain(seconds, theirs) == pytest.approx(factor)


def test_a_slow_round_of_the_machine_falls_on_both_sides_and_changes_no_ratio():
    row = make_row("r", "w", "images/s", {"ours": [40, 4, 36, 44], "timm": [20, 2, 18, 22]})
    assert gain(row, row["sides"]["timm"]) == 2


def test_with_unequal_rounds_the_medians_are_compared():
    row = make_row("r", "w", "s", {"ours": [1, 2, 30], "timm": [4]})
    assert gain(row, row["sides"]["timm"]) == 2


def test_the_best_peer_is_the_fastest_whatever_the_unit():
    sides = {"ours": [1], "timm": [5, 90, 6], "fastai": [7, 7, 7]}
    assert best_peer(make_row("r", "w", "images/s", sides)) == "fastai"
    assert best_peer(make_row("r", "w", "s", sides)) == "timm"
    assert best_peer(make_row("r", "w", "s", {"ours": [1]})) == ""


def test_the_table_of_stored_rows_has_medians_ratios_limits_and_empty_cells_for_missing_peers():
    rows = [
        make_row("2 training", "a", "images/s", {"ours": [90, 100, 300], "timm": [50, 25, 100]}, [100, 200, 400]),
        {**make_row("6 start", "b", "s", {"ours": [2], "timm": [3], "lightning": [4]}), "load": [0.5, 1.25]},
        make_row("7 scale", "c", "MB", {"ours": [110.4]}, [100]),
    ]
    lines = table(json.loads(json.dumps(rows))).splitlines()
    assert lines == [
        "| row | what | unit | ours | timm | lightning | ours / best peer | limit | ours / limit | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 2 training | a | images/s | 100 | 50 |  | 3.00 | 200 | 0.75 |  |",
        "| 6 start | b | s | 2 | 3 | 4 | 1.50 |  |  | 0.5 to 1.2 |",
        "| 7 scale | c | MB | 110 |  |  |  | 100 | 0.91 |  |",
    ]


def test_a_peer_without_figures_has_no_side_and_one_without_a_column_is_refused():
    assert make_row("r", "w", "s", {"ours": [1], "fastai": []})["sides"] == {"ours": [1]}
    with pytest.raises(ValueError, match="no column for keras"):
        make_row("r", "w", "s", {"ours": [1], "keras": [1]})


# The runner

MADE_UP = """
import json, sys
from pathlib import Path
folder = Path({folder!r})
with (folder / "calls").open("a") as calls:
    calls.write(sys.argv[1] + " ")
if (folder / sys.argv[1]).exists():
    raise SystemExit("broken")
row = dict(row=sys.argv[1], what="made up", unit="s", sides=dict(ours=[1]), limit=[], facts={{}})
Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps([row]))
"""


@pytest.fixture
def bench(tmp_path):
    """bench(again) -> names of failed lines, the calls so far, and what is in the file, for a plan of a, b and c."""
    script, path = tmp_path / "made_up.py", tmp_path / "results" / "machine.json"
    script.write_text(MADE_UP.format(folder=str(tmp_path)))
    plan = {name: [str(script), name] for name in "abc"}

    def once(again: bool = False) -> tuple[list[str], str, dict]:
        failed = run.run_plan(plan, run.read_result(path) or {}, path, again, NO_PYTHON)
        return failed, (tmp_path / "calls").read_text(), run.read_result(path)["done"]

    return once


def test_what_is_in_the_file_is_not_measured_again_unless_asked_for(bench):
    assert bench()[1] == "a b c "
    failed, calls, done = bench()
    assert (failed, calls, list(done)) == ([], "a b c ", ["a", "b", "c"])
    assert bench(again=True)[1] == "a b c a b c "
    assert [row["row"] for row in run.rows_of({"done": done})] == ["a", "b", "c"]
    assert len(done["a"]["rows"][0]["load"]) == 2


def test_a_line_that_fails_is_named_keeps_the_others_and_is_measured_the_next_time(bench, tmp_path):
    (tmp_path / "b").touch()
    failed, _, done = bench()
    assert (failed, list(done)) == (["b"], ["a", "c"])
    (tmp_path / "b").unlink()
    failed, calls, done = bench()
    assert (failed, calls, sorted(done)) == ([], "a b c b ", ["a", "b", "c"])


def test_an_interruption_leaves_the_lines_before_it_in_the_file(bench, tmp_path, monkeypatch):
    measure = run.measure

    def interrupted_at_b(words, python):
        if words[1] == "b":
            raise KeyboardInterrupt
        return measure(words, python)

    monkeypatch.setattr(run, "measure", interrupted_at_b)
    with pytest.raises(KeyboardInterrupt):
        bench()
    monkeypatch.undo()
    assert bench()[1] == "a b c "


def test_results_are_kept_by_machine_code_and_size():
    cpu, gpu = ({"cores": 2, "processor": "Intel(R) Xeon(R) @ 2.0GHz", "gpu": name} for name in ("", "NVIDIA H200"))
    names = {run.file_name(machine, code, size) for machine in (cpu, gpu) for code in ("1a", "2b") for size in SIZES}
    assert len(names) == 2 * 2 * 3
    assert "2-cores-intel-r-xeon-r-2-0ghz-1a" in names
    assert "nvidia-h200-2b-quick" in names


def test_the_stamp_of_the_code_changes_with_what_is_measured_and_not_with_results_or_tests(tmp_path, monkeypatch):
    folders = {"BENCHMARKS": tmp_path / "benchmarks", "PACKAGE": tmp_path / "package", "TEMPLATE": tmp_path}
    for name, folder in folders.items():
        monkeypatch.setattr(run, name, folder)
    for name in ("kfold/data", "tests", "configs"):
        (folders["PACKAGE"] / name).mkdir(parents=True)
    (folders["BENCHMARKS"] / "results").mkdir(parents=True)
    empty = run.code_stamp()
    (folders["BENCHMARKS"] / "results" / "x.json").write_text("{}")
    (folders["PACKAGE"] / "tests" / "test_x.py").write_text("")
    assert run.code_stamp() == empty
    stamps = [empty]
    for path in ("benchmarks/x.py", "package/train.py", "package/kfold/data/cache.py", "package/configs/a.yaml"):
        (tmp_path / path).write_text("1")
        stamps.append(run.code_stamp())
    assert len(set(stamps)) == 5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_gpu", [False, True])
def test_every_line_of_the_plan_names_a_script_that_knows_its_words(size, has_gpu):
    plan = make_plan(size, has_gpu)
    assert {name[0] for name in plan} == set("12345678")
    for script, *words in plan.values():
        text = (BENCHMARKS / script).read_text(encoding="utf-8")
        options = {word for word in words if word.startswith("--")} | {"--json"}
        options |= {"--peers"} if script in WITH_PEERS else set()
        assert all(f'"{option}"' in text for option in options), script


# Sides

SIDE = """
import sys
from pathlib import Path
for number, _ in enumerate(sys.stdin):
    print("whatever a library prints")
    with Path({log!r}).open("a") as log:
        log.write({name!r})
    if number == {fails_at}:
        raise SystemExit("no memory left")
    print('TURN {{"images_per_second": ' + str(number) + '}}', flush=True)
"""


@pytest.fixture
def side(tmp_path):
    """side(name, fails_at) -> the command of a made-up side that writes its name into tmp_path/log in each turn."""

    def make(name: str, fails_at: int = -1):
        code = SIDE.format(log=str(tmp_path / "log"), name=name, fails_at=fails_at)
        return [sys.executable, "-c", code], tmp_path

    return make


def test_sides_work_in_turns_after_a_warm_up_that_does_not_count(side, tmp_path):
    answers, left_out = take_turns({"ours": side("o"), "timm": side("t")}, rounds=2, needed=["ours"])
    assert (tmp_path / "log").read_text() == "ototot"
    assert answers == {name: [{"images_per_second": 1}, {"images_per_second": 2}] for name in ("ours", "timm")}
    assert left_out == {}


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_peer_that_fails_is_left_out_with_its_reason(side, fails_at):
    commands = {"ours": side("o"), "timm": side("t", fails_at)}
    answers, left_out = take_turns(commands, rounds=2, needed=["ours"])
    assert (len(answers["ours"]), answers["timm"]) == (2, [])
    assert left_out == {"timm": "no memory left"}


def test_where_a_needed_side_fails_there_is_nothing_to_measure(side):
    with pytest.raises(SideFailed, match="no memory left"):
        take_turns({"ours": side("o", 1)}, rounds=2, needed=["ours"])


def test_peers_that_are_not_installed_are_no_error(monkeypatch):
    monkeypatch.setattr(peers_there, "AUTOGLUON_PYTHON", NO_PYTHON)
    assert peers_there.peers_there(NO_PYTHON, "folds") == ["plain code"]
    assert peers_there.peers_there(Path(sys.executable), "folds") == ["plain code", "timm"]  # see requirements.txt


def test_autogluon_is_compared_where_it_is_installed_in_what_it_can_do(monkeypatch):
    monkeypatch.setattr(peers_there, "AUTOGLUON_PYTHON", Path(sys.executable))
    found = {work: peers_there.peers_there(NO_PYTHON, work) for work in ("load", "train", "folds", "import")}
    assert [work for work, peers in found.items() if "autogluon" in peers] == ["folds", "import"]
    assert peers_there.peer_command("autogluon", NO_PYTHON, "folds")[0][0] == Path(sys.executable)


def test_our_side_answers_with_the_speed_of_its_loader(tmp_path):
    """The real side, on few and small photographs; the figures mean nothing here."""
    write_photos(tmp_path, count=8, width=80, height=60)
    ours = Side([sys.executable, BENCHMARKS / "ours.py", "load", tmp_path, 32, 4, "cached"], BENCHMARKS)
    answers = [ours.turn(), ours.turn()]
    ours.close()
    assert all(answer["images_per_second"] > 0 and answer["uint8"] > 0 for answer in answers)
    assert len(list(tmp_path.glob("*/pixels.bin"))) == 1
