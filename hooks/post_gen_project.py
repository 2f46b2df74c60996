"""Start a git repository, leave out the template's caches, and say what comes next."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ANSWERS = r"""
{{ cookiecutter.items() | list | tojson }}
"""

CACHES = ["__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", "*.egg-info"]


def remove_caches(project: Path) -> None:
    """Tests run in the template's folder leave caches there, which cookiecutter copies with all else."""
    for pattern in CACHES:
        for cache in list(project.rglob(pattern)):
            if cache.is_dir() and not {".git", ".venv"} & set(cache.relative_to(project).parts):
                shutil.rmtree(cache, ignore_errors=True)


def start_repository(project: Path) -> None:
    """`git init`, unless there is a repository already or no git; a failure is no reason to stop."""
    if (project / ".git").exists():
        return
    # A bake run from a git hook has GIT_DIR set: git init would then start over in that other repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        subprocess.run(["git", "init", "--quiet"], cwd=project, env=environment, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return


def next_steps(project: Path, answers: dict[str, str]) -> str:
    shown = [f"  {key:<19} {value}" for key, value in answers.items() if not key.startswith("_")]
    if answers["start_with"] == "demo":
        data = ("python demo_data.py", "writes the digits into data/")
    elif answers["kaggle_competition"]:
        data = ("python kaggle/download.py", "needs `pip install kaggle` and your key; unpacks into data/")
    else:
        data = ("mkdir data", "then put the CSV files and images there (see README.md)")
    steps = [
        (f"cd {shlex.quote(str(project))}", ""),
        ("make setup && . .venv/bin/activate", "installs into .venv"),
        data,
        ("./pipeline.sh", "folds, training, prediction, submission.csv"),
        ("python train.py --fold 0", "or one fold by itself, to try things out"),
    ]
    width = max(len(command) for command, _ in steps[1:])
    commands = [f"  {command:<{width}}  {'# ' + reason if reason else ''}".rstrip() for command, reason in steps]
    return "\n".join(["", "Your answers:", *shown, "", "Next:", *commands, ""])


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show every letter
    remove_caches(Path.cwd())
    start_repository(Path.cwd())
    print(next_steps(Path.cwd(), dict(json.loads(ANSWERS))))
