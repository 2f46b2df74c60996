"""What a reader of a README types, a test has typed: every command of every README and of docs/, in small.

A command is a line of an indented block, or a piece of code in the text, that begins with one of PROGRAMS. Each must be
in one of the tables below, which say how it is run; one that is in no table, or in no README any more, fails.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import sklearn.ensemble
import timm
from cookiecutter.cli import main as cookiecutter_command
from safetensors.torch import save_file

from conftest import DEFAULTS, PROJECT, TEMPLATE, files_below, tracked_files
from kfold import intervals
from kfold.artifacts import Workspace
from kfold.ensemble import gbdt
from kfold.shards import Shard
from kfold.verify import WRITTEN_BY_STAGES
from test_bake import rendered

PROGRAMS = r"(?:\S*/)?(?:python|make|pip|kaggle|cookiecutter|cd|git|pre-commit|sha256sum|torchrun|ray)"
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:{PROGRAMS} .+|\./pipeline\.sh.*)")
NO_COMMAND = re.compile(r"\w+: .+|\S+(?:, \S+)?  +\S.*")  # a line of YAML; a file, and what it is
SLUG = "digits-2026"
STARTS = [("demo", ""), ("competition", ""), ("competition", SLUG)]  # start_with, kaggle_competition: other commands

# In the written repository, in this order, in one folder. The text makes it small: "a -> b" puts b in the place of a,
# other words are added, "= 75" is the exit code where it is not 0.
STORY = {
    "python demo_data.py": "",
    "python unpack.py data/<name>.zip": "<name> -> competition",
    "python make_folds.py --check": "",
    "python make_folds.py": "",
    "python train.py --fold 0": "",
    "python train.py --fold 0 --overfit-batch": "batch_size=4",
    "python train.py --fold 0 --find-lr": "",
    "python train.py --fold 0 --limit 200 --profile": "200 -> 40",
    "python train.py --fold 0 loss=focal mixing=mixup": "--name focal",
    "python train.py --fold 0 pretrained=false": "",
    "python train.py --fold 0 pretrained=true pretrained_path=weights.safetensors": "--name from-a-file",
    "python train.py --config configs/efficientnet_b0.yaml --fold 0 lr=1e-3 epochs=3 --name trial": "",
    "python train.py --config configs/bag_of_tricks.yaml --fold 0": "backbone=test_resnet epochs=2 workers=0",
    "python train.py --fold all --resume-from /kaggle/input/<notebook>": "/kaggle/input/<notebook> -> earlier",
    "python train.py --fold all --parallel auto": "",
    "python train.py --fold all --time-limit 8h30m": "",
    "python train.py --name averaged ema_decay=0.99 epochs=12 swa_from_epoch=8": "",
    "python predict.py --run averaged --weights auto": "",
    "python train.py --name snapshots schedule=cosine_cycles num_cycles=4": "epochs=4",
    "python predict.py --run snapshots --weights auto": "",
    "python train.py seed=1..3": "",
    "python predict.py --run baseline-seed1 baseline-seed2 baseline-seed3": "",
    "python train.py --fold all-data": "",
    "python predict.py": "",
    "python predict.py --weights auto": "",
    "python predict.py --tta auto": "",
    "python predict.py --speed plain": "",
    "python predict.py --speed auto": "",
    "python submit.py --run baseline --all-data": "",
    "python pseudo_label.py --run baseline --rounds 3 --thresholds 0.9 0.85 0.8": "--dry-run",
    "python pseudo_label.py": "--dry-run",
    "python pseudo_label.py --run baseline": "pseudo_top_share=0.5",
    "python train.py --name student distill_from=[efficientnet_b0]": "efficientnet_b0 -> averaged",
    "python predict.py --oof": "--run student",
    "python predict.py --shard 1/16": "1/16 -> 1/1 --run student",
    "python predict.py --merge": "--run student",
    "python train.py --name mean_teacher ema_decay=0.99 consistency_weight=1.0": "",
    "python stack.py --runs baseline efficientnet_b0": "efficientnet_b0 -> averaged",
    "python stack.py": "--overwrite --method mean",
    "python submit.py": "",
    "python report.py --augment-preview": "",
    "python report.py --compare baseline efficientnet_b0": "efficientnet_b0 -> averaged",
    "python report.py --log-lb baseline 0.873": "",
    "python report.py": "",
    "python make_folds.py --verify": "",
    "python make_folds.py --verify baseline": "",
    "sha256sum -c SHA256SUMS": "",
    "python embed.py": "--random-weights --backbone test_resnet --image-size 32",
    "python embed.py --pretrained-path weights.safetensors": "--overwrite --backbone test_resnet --image-size 32",
    "python ablate.py --fold 0 --seeds 3 loss=focal mixing=mixup pooling=gem": "3 -> 2",
    "python train.py pseudo_threshold=0.8": "= 2",
    "python kaggle/bundle.py --runs stack --owner <your Kaggle name>": "<your Kaggle name> -> someone",
    "python kaggle/bundle.py --runs stack --winner": "",
}
BEGINS = "--time-limit 1s = 75"  # of docs/recipes.md: every setting is accepted, the first training begins
TINY = {"backbone": "test_resnet", "pretrained": False, "image_size": 32, "hflip": False, "epochs": 1, "batch_size": 16}
TINY |= {"lr": 0.003, "workers": 0, "speed": "plain"}
PHOTOS = TINY | {"epochs": 5, "pretrained": True, "pretrained_path": "weights.safetensors"}

# Around the stages, which are stood in for: the command, and what the first stage that trains is told.
PIPELINE = {
    "./pipeline.sh": "--fold all",
    "./pipeline.sh baseline efficientnet_b0": "--config configs/baseline.yaml",
    "TIME_LIMIT=8h30m ./pipeline.sh": "--time-limit 30",
    "PARALLEL=auto ./pipeline.sh": "--parallel auto",
    "RESUME_FROM=/kaggle/input/<notebook> ./pipeline.sh": "--resume-from /kaggle/input/",
}

SMALL_BENCHMARKS = {
    "python benchmarks/second_level.py": "--rows 300",
    "python benchmarks/step_time.py --rounds 7 --steps 3 --size 64": "7 -> 1 | 3 -> 1 --backbone test_resnet --batch 4",
    "python benchmarks/speed_auto.py": "--backbone test_resnet --size 32 --rounds 1 --steps 2",
}

RANKS = "test_distributed.py::test_without_batch_norm_any_number_of_processes_makes_the_same_weights"
RAY_TASKS = "test_fan_out_ray.py::test_a_worker_that_is_killed_half_way_through_a_fold_changes_no_byte_of_it"
PRINTED = "test_fan_out.py::test_without_ray_the_commands_are_printed_and_nothing_is_begun"
PROMPTS = "test_answers.py::test_what_is_typed_at_the_prompts_is_text_as_well"
IN_ANOTHER_TEST = {
    "cookiecutter <path or address of this repository>": PROMPTS,
    "git ls-files": "test_bake.py::test_defaults_bake_the_tracked_files_and_nothing_else",
    "git add": "test_bake.py::test_defaults_bake_the_tracked_files_and_nothing_else",
    "python kaggle/download.py": "test_kaggle_download.py::test_the_competitions_files_lie_in_data_and_nothing_else",
    'python submit.py --upload -m "what is new"': "test_submit.py::test_upload_hands_the_checked_file_to_kaggle",
    "python predict.py --engine openvino": "test_converted.py::test_a_converted_model_predicts_the_same_in_float32",
    "python predict.py --engine onnxruntime": "test_converted.py::test_a_converted_model_predicts_the_same_in_float32",
    "python train.py --fold 0 loss=poly": "test_commands.py::test_a_loss_is_added_as_contributing_says",
    "torchrun --nproc-per-node 2 train.py --fold 0": RANKS,
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint head:29400 train.py --fold 0": RANKS,
    "python import_run.py TEAMMATE_DIR": "test_import_run.py::test_runs_are_taken_over_verified_and_stacked",
    "python fan_out.py --configs baseline efficientnet_b0 --seeds 3": RAY_TASKS,
    "python fan_out.py --configs baseline efficientnet_b0 --folds all --seeds 3": RAY_TASKS,
    "python fan_out.py --configs baseline --seeds 5 --address <head>:6379": RAY_TASKS,
    "python fan_out.py --configs baseline --seeds 5 --address <head>:6379 --storage s3://bucket/prefix": (
        "test_fan_out_ray.py::test_a_fold_of_a_lost_node_goes_on_elsewhere_from_what_was_stored"
    ),
    "python fan_out.py --predict baseline-seed1 baseline-seed2 --shards 16 --address <head>:6379": (
        "test_fan_out_ray.py::test_test_rows_that_are_predicted_in_tasks_are_those_of_predict_py"
    ),
    "python fan_out.py --configs baseline efficientnet_b0 --seeds 3 --print > tasks.txt": PRINTED,
    "python fan_out.py --configs baseline efficientnet_b0 --seeds 3 --sessions 5": (
        "test_fan_out.py::test_sessions_are_blocks_of_the_same_commands_and_end_at_home"
    ),
    "python fan_out.py ... --print": PRINTED,
}
OUT_OF_REACH = (  # a network is needed, or it is these tests themselves
    "pip install cookiecutter",
    "pip install kaggle",
    "pip install ray",
    "pip install s3fs",
    "ray start --head",
    "ray start --address=<head>:6379",
    "pip install openvino",
    "pip install onnxruntime onnx",
    "pip install pytorch_optimizer",
    "pre-commit install",
    "kaggle datasets create -p build/kaggle/dataset --dir-mode zip",
    "kaggle kernels push -p build/kaggle/notebook",
    ".venv/bin/python -m pytest tests/test_answers.py",
    "cd '{{cookiecutter.project_slug}}' && ../.venv/bin/python -m pytest tests/test_config.py",
)
BY_HAND = (  # each starts a dozen processes that import torch: run when figures are taken
    "python benchmarks/fan_out.py --tasks 15 --rounds 2",
    "python benchmarks/scaling_ranks.py",
)


# Which commands there are


def pages() -> dict[str, str]:
    found = {name: (TEMPLATE / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md")}
    found["benchmarks/README.md"] = (TEMPLATE / "benchmarks" / "README.md").read_text("utf-8")
    for start, name in STARTS:
        answers = {**DEFAULTS, "start_with": start, "kaggle_competition": name}
        found[f"the written README, {start} {name}"] = rendered("README.md", answers)
    return found | {f"docs/{path.name}": path.read_text("utf-8") for path in (PROJECT / "docs").glob("*.md")}


def folder_of(page: str) -> Path:
    return TEMPLATE if (TEMPLATE / page).exists() else PROJECT


def code_of(text: str) -> tuple[list[str], list[str]]:
    """Lines of indented blocks, without remarks, and pieces of code in the text. Fenced blocks hold no commands."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
    lines = [re.sub(r"(^|\s+)# .*", "", line).strip() for line in re.findall(r"^ {4}(.*)", text, re.MULTILINE)]
    prose = re.sub(r"^ {4}.*", "", text, flags=re.MULTILINE)
    return [line for line in lines if line], re.findall(r"`([^`\n]+)`", prose)


def commands_of(text: str) -> list[str]:
    lines, pieces = code_of(text)
    return [command for code in lines + pieces if COMMAND.fullmatch(command := re.sub(r"\s+", " ", code))]


PAGES = pages()
COMMANDS = {command: name for name, text in PAGES.items() for command in commands_of(text)}
ABLATIONS = [command for command in COMMANDS if command.startswith("python ablate.py") and command not in STORY]
OF_MAKE = [
    (folder_of(name), command)
    for name, text in PAGES.items()
    for command in commands_of(text)
    if command[:5] == "make "
]
OF_COOKIECUTTER = [command for command in COMMANDS if command.startswith("cookiecutter . ")]


def test_every_command_is_in_a_table_and_every_line_of_a_table_in_a_readme():
    tables = [*STORY, *PIPELINE, *SMALL_BENCHMARKS, *IN_ANOTHER_TEST, *OUT_OF_REACH, *BY_HAND]
    tables += [*ABLATIONS, *OF_COOKIECUTTER, *(command for _, command in OF_MAKE)]
    assert len(set(COMMANDS)) > 60
    unknown = {command: page for command, page in COMMANDS.items() if command not in tables}
    assert unknown == {}, "say in a table of tests/test_commands.py how it is run"
    assert set(tables) - set(COMMANDS) == set(), "no README has it any more"


@pytest.mark.parametrize("page", PAGES)
def test_a_line_of_a_block_is_a_command_or_something_known(page):
    lines, _ = code_of(PAGES[page])
    assert [line for line in lines if not COMMAND.fullmatch(line) and not NO_COMMAND.fullmatch(line)] == []


@pytest.mark.parametrize(("command", "named"), IN_ANOTHER_TEST.items())
def test_the_test_that_runs_a_command_is_there(command, named):
    file_name, _, name = named.partition("::")
    folder = TEMPLATE if (TEMPLATE / "tests" / file_name).exists() else PROJECT
    assert f"\ndef {name}(" in (folder / "tests" / file_name).read_text("utf-8")


# Running them


def made_small(command: str, change: str) -> tuple[list[str], int]:
    """The words to run, and the exit code to expect."""
    change, _, code = change.partition("= ")
    for part in change.split(" | "):
        if " -> " in part:
            old, new = part.split(" -> ")
            new, _, part = new.partition(" ")
            assert old in command, (command, old)
            command = command.replace(old, new)
        command += f" {part}"
    return shlex.split(command), int(code or 0)


@pytest.fixture
def run_script(monkeypatch, capsys):
    """run_script(folder, words of a command) -> its exit code and all that it said.

    In this process, which has imported torch and all else already; each script imports the others from its own folder.
    """
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]

    def run(folder: Path, words: list[str]) -> tuple[int, str]:
        for script in folder.glob("*.py"):
            monkeypatch.delitem(sys.modules, script.stem, raising=False)
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.syspath_prepend(folder)
            patch.setattr(sys, "argv", words[1:])
            code = 0
            try:
                runpy.run_path(words[1], run_name="__main__")
            except SystemExit as ended:
                code = ended.code or 0
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    yield run
    for number, handler in handlers:
        signal.signal(number, handler)


def small_project(bake, monkeypatch) -> Path:
    """A bake with tiny experiments, as `python demo_data.py` finds it; bootstrap and trees are short."""
    monkeypatch.setattr(intervals, "NUM_RESAMPLES_AT_MOST", 4)
    monkeypatch.setattr(intervals, "NUM_RESAMPLES_AT_LEAST", 4)
    monkeypatch.setattr(gbdt, "MAX_ROUNDS", 3)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    project = bake(num_folds="2", kaggle_competition=SLUG)
    for name, settings in (("baseline", TINY), ("efficientnet_b0", TINY), ("photos", PHOTOS)):
        (project / "configs" / f"{name}.yaml").write_text(json.dumps(settings))
    model = timm.create_model("test_resnet", pretrained=False)
    save_file(model.state_dict(), project / "weights.safetensors")
    (project / "earlier" / "runs").mkdir(parents=True)
    return project


def few_rows(project: Path) -> None:
    for name, count in (("train", 50), ("test", 12), ("sample_submission", 12), ("solution", 12)):
        path = project / "data" / f"{name}.csv"
        pd.read_csv(path, dtype=str).head(count).to_csv(path, index=False)
    for folder in ("train_images", "test_images"):
        kept = set(pd.read_csv(project / "data" / f"{folder.split('_')[0]}.csv", dtype=str)["image_id"])
        for path in (project / "data" / folder).iterdir():
            if path.stem not in kept:
                path.unlink()
    with zipfile.ZipFile(project / "data" / "competition.zip", "w") as archive:
        archive.writestr("notes.txt", "of the host")


def test_the_commands_of_the_written_repository_work_and_leave_what_its_readme_lists(bake, monkeypatch, run_script):
    project = small_project(bake, monkeypatch)
    before = tracked_files(PROJECT) | {"weights.safetensors", "configs/photos.yaml"}
    failed = {}
    ablations = {command: f"--name table{number} {BEGINS}" for number, command in enumerate(ABLATIONS)}
    for command, change in (STORY | ablations).items():
        words, expected = made_small(command, change)
        if words[0] == "python":
            code, said = run_script(project, words)
        else:
            done = subprocess.run(words, cwd=project / "runs", capture_output=True, text=True)
            code, said = done.returncode, done.stderr
        if command == "python demo_data.py":
            few_rows(project)
        if code != expected or "Traceback" in said:
            failed[command] = f"exit code {code}, not {expected}: {said[-600:]}"
    assert not failed, "\n".join(f"{command}: {problem}" for command, problem in failed.items())
    assert (project / "build" / "kaggle" / "dataset" / "dataset-metadata.json").exists()
    assert (project / "build" / "kaggle" / "notebook" / "kernel-metadata.json").exists()
    left = {name for name in files_below(project) - before if not name.startswith(("data/", "earlier/"))}
    assert len(left) > 100
    assert sorted(name for name in left if not is_listed(name)) == []


@pytest.mark.parametrize(("command", "told"), PIPELINE.items())
def test_pipeline_sh_tells_its_stages_what_it_is_told(command, told, tmp_path):
    shutil.copy(PROJECT / "pipeline.sh", tmp_path)
    (tmp_path / "kfold").symlink_to(PROJECT / "kfold")
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && exec "{sys.executable}" "$@"\necho "$@" >> calls.txt\n')
    python.chmod(0o755)
    settings = dict(word.split("=") for word in command.split() if "=" in word)
    words = [word for word in command.split() if "=" not in word]
    done = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, "PYTHON": "./python", **settings}, capture_output=True
    )
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert (done.returncode, done.stderr) == (0, b"")
    assert [call.split()[0] for call in calls].count("train.py") == 2
    assert [call for call in calls if call.startswith("submit")] == ["submit.py --run stack"]
    assert told in calls[1]


@pytest.mark.parametrize(("folder", "command"), sorted(set(OF_MAKE)))
def test_make_knows_the_target_and_every_script_that_it_starts_is_there(folder, command):
    """Not run: each begins with an installation. What comes after it has tests of its own."""
    words = shlex.split(command.partition(" && ")[0])
    done = subprocess.run(
        [words[0], "--dry-run", "--always-make", *words[1:]], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, "Nothing to be done" in done.stdout) == (0, False), done.stderr or done.stdout
    for script in re.findall(r"(?<=[\s\"])[\w./-]+\.(?:py|sh)(?=[\s\"])", done.stdout):
        baked = script.replace("build/digits-demo/", f"{PROJECT.name}/")
        assert (folder / baked).exists(), script


@pytest.mark.parametrize("command", OF_COOKIECUTTER)
def test_the_command_that_bakes_does(command, output, settings, monkeypatch):
    monkeypatch.chdir(TEMPLATE)
    words = [*shlex.split(command)[1:], "--output-dir", str(output), "--config-file", str(settings)]
    cookiecutter_command(words, standalone_mode=False)
    assert len(list(output.glob("*/competition.yaml"))) == 1


@pytest.mark.parametrize(("command", "change"), SMALL_BENCHMARKS.items())
def test_a_benchmark_prints_a_table(command, change, monkeypatch, run_script):
    if "speed_auto" not in command and os.environ.get("RELIABILITY") != "full":
        pytest.skip("takes 20 s: make reliability runs it")
    monkeypatch.syspath_prepend(TEMPLATE / "benchmarks")
    monkeypatch.setattr(gbdt, "MAX_ROUNDS", 3)
    few_trees = partial(sklearn.ensemble.HistGradientBoostingClassifier, max_iter=2)
    monkeypatch.setattr(sklearn.ensemble, "HistGradientBoostingClassifier", few_trees)
    code, said = run_script(TEMPLATE, made_small(command, change)[0])
    assert code == 0, said
    assert said.count("|") > 20


# What else the READMEs claim


def listed() -> list[str]:
    """Patterns of the paths in the table of artifacts; a name without a folder is in that of the one before it."""
    table = PAGES["the written README, demo "].partition("## Artifacts")[2].partition("\n## ")[0]
    patterns = []
    for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE):
        folder = ""
        for path in re.findall(r"`([^`]+)`", row):
            folder = path.rpartition("/")[0] + "/" if "/" in path else folder
            pattern = re.escape(path if "/" in path else folder + path)
            for name, stands_for in (("fold<k>/", r"(fold\d+|all-data)/"), ("fold<k>", r"(fold\d+|all-data)"),
                                     ("<name>", "[^/]+"), ("<r>", r"\d+"), ("<s>", r"\d+"), ("<digest>", "[0-9a-f]+"),
                                     ("snapshot1", r"snapshot\d+")):  # fmt: skip
                pattern = pattern.replace(name, stands_for)
            patterns.append(pattern + (".*" if path.endswith("/") else ""))
    return patterns


LISTED = listed()


def is_listed(path: str) -> bool:
    is_lock = any(part.startswith(".") for part in Path(path).parts)
    return is_lock or any(re.fullmatch(pattern, path) for pattern in LISTED)


def paths_of(member: str) -> list[str]:
    """The paths that a member of Workspace gives, for several runs, kinds of rows and endings."""
    workspace = Workspace(Path("/root"))
    found = getattr(Workspace, member)
    if isinstance(found, property):
        return [str(getattr(workspace, member).relative_to("/root"))]
    choices = {"run": ("baseline", "baseline-p1", "stack"), "fold": (0,), "kind": ("last",), "name": ("baseline",)}
    choices |= {"rows": ("oof", "train"), "suffix": ("png",), "elsewhere": ("",), "number": (1,), "table": ("blend",)}
    choices |= {"shard": (Shard(3, 16),)}
    names = [name for name in found.__annotations__ if name != "return"]
    return [
        str(found(workspace, *values).relative_to("/root")) for values in product(*(choices[name] for name in names))
    ]


NO_ARTIFACT = {"competition_path", "config_path", "data_path", "runs_dir", "ablations_dir", "run_dir", "fold_dir"}
MEMBERS = [name for name in vars(Workspace) if name.endswith(("_path", "_dir")) and name not in NO_ARTIFACT]


@pytest.mark.parametrize("member", MEMBERS)
def test_what_artifacts_py_knows_is_in_the_table_of_artifacts(member):
    assert any(is_listed(path) or is_listed(f"{path}/x") for path in paths_of(member)), paths_of(member)


@pytest.mark.parametrize("name", WRITTEN_BY_STAGES)
def test_what_verify_knows_is_in_the_table_of_artifacts(name):
    assert any(is_listed(f"runs/{run}/{name}") for run in ("baseline", "baseline-p1", "stack"))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_between_files_leads_somewhere(page):
    folder = (folder_of(page) / page).parent
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", PAGES[page]):
        assert target.startswith("#") or (folder / target).exists(), target


def test_what_the_template_says_to_have_has_the_test_that_it_names():
    table = PAGES["README.md"].partition("## Beside its peers")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    assert {len(row) for row in rows} == {8}
    for feature, here, *peers in rows:
        assert re.fullmatch(r"yes, test_\w+\.py|no( \(.+\))?", here), feature
        assert set(peers) <= {"yes", "part", "no", "no*", "?", "yes (tables)"}, feature
        for name in re.findall(r"test_\w+\.py", here):
            assert (PROJECT / "tests" / name).exists(), name
    assert sum(here.startswith("no") and "yes" in peers for _, here, *peers in rows) >= 3, "peers are better at some"


def test_a_loss_is_added_as_contributing_says(bake, monkeypatch, run_script):
    project = small_project(bake, monkeypatch)
    path = project
    for line in re.search(r"```diff\n(.*?)```", PAGES["CONTRIBUTING.md"], re.DOTALL)[1].splitlines():
        if line[0] == " ":
            above = line[1:]
        elif line[0] == "+":
            lines = path.read_text("utf-8").splitlines()
            (place,) = (number for number, text in enumerate(lines) if text.startswith(above))
            path.write_text("\n".join([*lines[: place + 1], line[1:], *lines[place + 1 :]]) + "\n", "utf-8")
        else:
            path = project / line.partition("/")[2]
    recipes = project / "docs" / "recipes.md"
    recipes.write_text(recipes.read_text("utf-8").replace("`loss` auto (", "`loss` auto (poly, "), "utf-8")
    assert run_script(project, ["python", "demo_data.py"])[0] == 0
    few_rows(project)
    assert run_script(project, ["python", "make_folds.py"])[0] == 0
    code = """
import pytest, runpy, sys
words = ["-q", "-p", "no:cacheprovider", "-k", "poly or explained or default_and_range"]
assert pytest.main([*words, "tests/test_losses.py", "tests/test_docs.py"]) == 0
sys.argv = ["train.py", "--fold", "0", "loss=poly", "--name", "poly"]
runpy.run_path("train.py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "runs" / "poly" / "fold0" / "manifest.json").exists()
    lint = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "kfold"], cwd=project)
    assert lint.returncode == 0
