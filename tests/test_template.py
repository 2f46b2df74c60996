"""The template folder as it lies, and a baked project used as a person would."""

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PROJECT, QUESTIONS, TEMPLATE, tracked_files

QUICK_TESTS = ["tests/test_config.py", "tests/test_artifacts.py"]  # `make test` runs all of them where they lie
TINY_EXPERIMENT = """backbone: test_resnet
pretrained: false
image_size: 32
epochs: 1
workers: 0
speed: plain
"""


def run(*command: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, encoding="utf-8"
    )


def test_python_holds_no_template_code():
    for name in tracked_files(PROJECT):
        if name.endswith(".py"):
            text = (PROJECT / name).read_text(encoding="utf-8")
            assert "{{" not in text, name
            assert "{%" not in text, name


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_the_template_folder_lints_unrendered(command):
    result = run(sys.executable, "-m", "ruff", *command, "--no-cache", ".", folder=PROJECT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_file_names_a_machine_or_an_index():
    """A path of one machine or a mirror's address would not work elsewhere."""
    for name in tracked_files(TEMPLATE):
        if name != "tests/test_template.py":
            text = (TEMPLATE / name).read_text(encoding="utf-8", errors="replace")  # a picture holds other bytes
            for word in ("--index-url", "--extra-index-url", "--find-links", "file:///", "/home/", "/root/", "/opt/"):
                assert word not in text, (name, word)


def test_locked_packages_all_have_hashes():
    for lock in (PROJECT / "requirements.lock", TEMPLATE / "requirements-dev.lock"):
        entries = lock.read_text(encoding="utf-8").replace("\\\n", "").splitlines()
        packages = [entry for entry in entries if entry[:1].isalnum()]
        assert len(packages) > 10
        assert all("==" in package and "--hash=sha256:" in package for package in packages)


def test_both_locks_agree():
    def versions(lock: Path) -> dict[str, str]:
        lines = lock.read_text(encoding="utf-8").splitlines()
        return dict(line.split(" ")[0].split("==") for line in lines if line[:1].isalnum())

    project, template = versions(PROJECT / "requirements.lock"), versions(TEMPLATE / "requirements-dev.lock")
    shared = project.keys() & template.keys()
    assert {name: project[name] for name in shared} == {name: template[name] for name in shared}


def test_requirements_are_what_the_code_imports():
    python = [name for name in tracked_files(PROJECT) if name.endswith(".py") and not name.startswith("tests/")]
    code = "\n".join((PROJECT / name).read_text(encoding="utf-8") for name in python)
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", code, re.MULTILINE))
    own = {"kfold", *(name.removesuffix(".py") for name in python)}
    modules = {"opencv-python-headless": "cv2", "scikit-learn": "sklearn", "PyYAML": "yaml", "Pillow": "PIL"}
    modules |= {"iterative-stratification": "iterstrat", "huggingface-hub": "huggingface_hub"}
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {line.split(">=")[0] for line in lines if line[:1].isalnum()}
    optional = {"ray", "wandb", "mlflow", "fsspec"}  # imported where they are asked for; what to install is said
    assert {modules.get(name, name) for name in required} == imported - own - optional - sys.stdlib_module_names
    assert optional <= imported


def test_a_bake_passes_its_own_tests_in_a_path_with_spaces_and_other_letters(bake, tmp_path):
    project = bake(into=tmp_path / "mein Übungs 汉字 folder")
    result = run(sys.executable, "-m", "pytest", "-q", *QUICK_TESTS, folder=project, PYTHONPATH="")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def as_command(monkeypatch):
    """as_command(script, *words): what it does when called so; handlers of signals are put back."""

    def start(script: Path, *words: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(script), *words])
        runpy.run_path(str(script), run_name="__main__")

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield start
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("task", QUESTIONS["task"])
def test_the_demo_of_each_task_starts_with_its_answers(bake, small_template, as_command, task):
    """In this process, which imports torch once for all; a bake's own scripts run in pipeline.sh, below."""
    answers = {"task": task, "num_folds": "2", "group_column": "who's: it?", "id_column": 'the "id" #汉'}
    project = bake(small_template, **answers)
    for script, *words in (
        ["demo_data.py"],
        ["make_folds.py"],
        ["train.py", "--fold", "0", "--limit", "60", "backbone=test_resnet", "epochs=1", "workers=0", "speed=plain"],
    ):
        shutil.copy(PROJECT / script, project)
        as_command(project / script, *words)
    assert (project / "runs" / "baseline-limit60" / "fold0" / "manifest.json").exists()


def test_pipeline_sh_of_a_bake_ends_with_a_checked_submission_and_a_report(bake, as_command, tmp_path):
    """From another folder, with the interpreter given by a path relative to it, which holds spaces.

    Rounds of pseudo-labels are left to the project's own tests.
    """
    project = bake(into=tmp_path / "zwei 汉字", num_folds="2", id_column="it's: #1", target_columns='a "digit"')
    for name in ("baseline", "efficientnet_b0"):  # the two of pipeline.sh without words
        (project / "configs" / f"{name}.yaml").write_text(TINY_EXPERIMENT)
    python = tmp_path / "an environment" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    as_command(project / "demo_data.py")
    for name, count in (("train", 120), ("test", 30), ("sample_submission", 30), ("solution", 30)):
        path = project / "data" / f"{name}.csv"
        path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[: 1 + count]), "utf-8")
    result = run(project / "pipeline.sh", folder=tmp_path, PYTHON="an environment/python", ROUNDS="0")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{project / 'submission.csv'}: checked, 30 rows" in result.stdout
    assert (project / "submission.csv").read_text("utf-8").splitlines()[0] == 'it\'s: #1,"a ""digit"""'
    assert "<h2 id=" in (project / "report.html").read_text("utf-8")


def test_pipeline_sh_stops_with_the_code_of_the_stage_that_failed(bake, tmp_path):
    project = bake()  # no data yet
    result = run(project / "pipeline.sh", folder=tmp_path, PYTHON=sys.executable)
    assert result.returncode == 2
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not (project / "runs").exists()


def test_a_bake_lints(bake):
    project = bake(author_name='Zoë "Q" O\'Neil \\', project_name="It's #1")
    result = run(sys.executable, "-m", "ruff", "check", "--no-cache", ".", folder=project)
    assert result.returncode == 0, result.stdout + result.stderr
