"""Baking with chosen answers, into folders and with settings of the test alone."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).resolve().parent.parent
PROJECT = TEMPLATE / "{{cookiecutter.project_slug}}"
sys.path.insert(0, str(PROJECT))  # kfold
os.environ.setdefault("OMP_NUM_THREADS", "1")

OFFLINE = PROJECT / "tests" / "offline"  # no test reaches another machine, nor does a process that a test starts
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")]))
specification = importlib.util.spec_from_file_location("offline", OFFLINE / "sitecustomize.py")
specification.loader.exec_module(importlib.util.module_from_spec(specification))

QUESTIONS = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
DEFAULTS = {key: value[0] if isinstance(value, list) else value for key, value in QUESTIONS.items() if key[0] != "_"}
DEFAULTS["project_slug"] = "digits-demo"
AS_THEY_ARE = ("competition.py", "pipeline.sh", "Makefile")

Bake = Callable[..., Path]


@pytest.fixture
def output(tmp_path) -> Path:
    folder = tmp_path / "outer" / "output"  # ../../x is below tmp_path too
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def settings(tmp_path) -> Path:
    """A cookiecutter settings file that keeps it out of the home folder."""
    path = tmp_path / "settings" / "config.yaml"
    path.parent.mkdir()
    path.write_text(f"cookiecutters_dir: '{path.parent}/templates'\nreplay_dir: '{path.parent}/replay'\n")
    return path


@pytest.fixture
def bake(output, settings) -> Bake:
    """bake(key=answer, ...) -> the new project's folder."""

    def run(template: Path = TEMPLATE, into: Path = output, **answers: object) -> Path:
        folder = cookiecutter(
            str(template), no_input=True, extra_context=answers, output_dir=str(into), config_file=str(settings)
        )
        return Path(folder)

    return run


@pytest.fixture(scope="session")
def small_template(tmp_path_factory) -> Path:
    """The questions, the hooks, every file that answers are rendered into, and three that are copied as they are.

    It asks, refuses and answers as the whole one does, and bakes without copying 300 files.
    """
    template = tmp_path_factory.mktemp("template")
    copied = QUESTIONS["_copy_without_render"]
    for name in tracked_files(TEMPLATE):
        within = name.removeprefix(f"{PROJECT.name}/")
        is_rendered = not any(fnmatch(within, pattern) for pattern in copied)
        if name.startswith("hooks/") or "/" not in name or within in AS_THEY_ARE or (within != name and is_rendered):
            (template / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TEMPLATE / name, template / name)
    return template


@pytest.fixture(scope="session")
def hook():
    """hooks/pre_gen_project.py as a module."""
    spec = importlib.util.spec_from_file_location("pre_gen_project", TEMPLATE / "hooks" / "pre_gen_project.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def tracked_files(folder: Path) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z", "."], cwd=folder, capture_output=True, check=True).stdout
    return {name.decode() for name in listed.split(b"\0") if name}


def files_below(folder: Path) -> set[str]:
    """Files, links and empty folders, but not what is in .git."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[0] != ".git" and (not path.is_dir() or not any(path.iterdir()))
    }
