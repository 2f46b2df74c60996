"""The notebook that a bundle is run by: five cells that find it, check it and call its scripts."""

import json

INTRODUCTION = """# Inference without internet
Made by `python kaggle/bundle.py`. The submission is valid from the second cell on, and replaced at the end."""

FIND = """import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

STARTED = time.monotonic()
TIME_LIMIT = "<time limit>"
BUNDLE = "<digest>"  # sha256 of the bundle.json that this notebook was made with
KAGGLE = Path(os.environ.get("KAGGLE_ROOT", "/kaggle"))


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


tried = sorted([*KAGGLE.glob("input/*"), *KAGGLE.glob("input/datasets/*/*")])  # the old layout, the new one
bundles = [folder for folder in tried if (folder / "bundle.json").is_file()]
bundle = next((folder for folder in bundles if sha256(folder / "bundle.json") == BUNDLE), None)
if bundle is None:
    found = "only other versions: " + ", ".join(map(str, bundles)) if bundles else "tried " + ", ".join(map(str, tried))
    sys.exit(f"this notebook's bundle is not there: attach its dataset, in the version made with it ({found})")
files = json.loads((bundle / "bundle.json").read_text())["files"]
wrong = [name for name in files if not (bundle / name).is_file() or sha256(bundle / name) != files[name]]
if wrong:
    sys.exit(f"{bundle}: {len(wrong)} files missing or damaged ({', '.join(wrong[:3])}): upload with --dir-mode zip")
print(f"{bundle}: {len(files)} files are as they were sent")"""

PREPARE = """REPOSITORY = KAGGLE / "temp" / "repository"


def stage(folder, script, *words):
    subprocess.run([sys.executable, "-u", str(folder / "kaggle" / script), *words], check=True)


if importlib.util.find_spec("ttach") is None:
    wheels = map(str, bundle.glob("wheels/*.whl"))
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *wheels], check=True)
stage(bundle, "infer.py", "prepare")"""

PREDICT = """spent = f"{time.monotonic() - STARTED:.0f}s"
stage(REPOSITORY, "predict_hidden.py", "--time-limit", TIME_LIMIT, "--spent", spent)"""

SUBMIT = 'stage(REPOSITORY, "infer.py", "submit")'

CHECK = 'stage(REPOSITORY, "infer.py", "check")'


def make_notebook(digest: str, time_limit: str) -> str:
    """The notebook's text (format 4.5). digest: sha256 of bundle.json; time_limit: such as 8h30m."""
    find = FIND.replace("<digest>", digest).replace("<time limit>", time_limit)
    cells = [{"cell_type": "markdown", "id": "introduction", "metadata": {}, "source": INTRODUCTION}]
    codes = {"find": find, "prepare": PREPARE, "predict": PREDICT, "submit": SUBMIT, "check": CHECK}
    for name, source in codes.items():
        cell = {"cell_type": "code", "id": name, "metadata": {}, "source": source}
        cells.append(cell | {"execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
