"""Which peers there are to compare with, and the commands that start them."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from machine import num_workers
from project import BENCHMARKS, TEMPLATE

FOLDER = BENCHMARKS / "peers"
PLAIN = "plain code"  # runs in our own environment
PACKAGES = {"timm": "timm", "fastai": "fastai", "lightning": "lightning"}  # peer -> the module that it needs
DEFAULT_PYTHON = TEMPLATE / ".venv-peers" / "bin" / "python"
AUTOGLUON = "autogluon"  # needs an older torch: make bench AUTOGLUON=1
AUTOGLUON_PYTHON = TEMPLATE / ".venv-autogluon" / "bin" / "python"


def peers_there(python: Path, work: str) -> list[str]:
    """The plain code, and the peers that are installed and can do the work; a missing one is no error."""
    has_autogluon = AUTOGLUON_PYTHON.exists() and work in ("folds", "import")
    return [PLAIN, *installed(python), *([AUTOGLUON] if has_autogluon else [])]


def installed(python: Path) -> list[str]:
    """Peers whose module that Python has."""
    find = f"from importlib.util import find_spec\nprint(*[name for name in {[*PACKAGES.values()]} if find_spec(name)])"
    try:
        ended = subprocess.run([str(python), "-c", find], capture_output=True, text=True)
    except OSError:
        return []
    return [peer for peer, module in PACKAGES.items() if module in ended.stdout.split()]


def peer_command(peer: str, python: Path, work: str, *words: object) -> tuple[Sequence[object], Path]:
    """(command, folder) of a piece of work, as peers/common.py names them."""
    interpreter = {PLAIN: sys.executable, AUTOGLUON: AUTOGLUON_PYTHON}.get(peer, python)
    script = "train_plain.py" if peer == PLAIN else f"train_{peer}.py"
    return [interpreter, script, work, "--workers", num_workers(), *words], FOLDER
