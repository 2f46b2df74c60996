"""Any file that the stages stored is damaged by a bit, a byte, a cut or more bytes: --verify names it."""

import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from finished_runs import finished_runs
from reliability import count

import make_folds
from kfold.errors import UserError

DAMAGES = ("bit", "byte", "cut", "more bytes")


@pytest.fixture
def root(tmp_path):
    return Path(shutil.copytree(finished_runs(), tmp_path / "copy"))


def damage(content: bytes, kind: str, generator: np.random.Generator) -> bytes:
    """Other content, whatever is drawn."""
    changed = bytearray(content)
    place = int(generator.integers(len(content)))
    if kind == "bit":
        changed[place] ^= 1 << int(generator.integers(8))
    if kind == "byte":
        changed[place] = (changed[place] + int(generator.integers(1, 256))) % 256
    if kind == "cut":
        changed = changed[:place]
    if kind == "more bytes":
        changed += generator.bytes(int(generator.integers(1, 9)))
    return bytes(changed)


def stored_files(root: Path) -> dict[str, list[Path]]:
    """kind -> all files of it: a file name, with snapshot1 and snapshot2 as one."""
    files: dict[str, list[Path]] = {"folds.csv": [root / "folds.csv"]}
    for path in sorted((root / "runs").rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            files.setdefault(re.sub(r"^(snapshot)\d+", r"\1", path.name), []).append(path)
    return files


def runs_to_verify(root: Path, path: Path) -> list[str]:
    """The run that the file belongs to; of a shared file all of them."""
    parts = path.relative_to(root).parts
    return [parts[1]] if len(parts) > 2 else []


def problems_of(root: Path, runs=()) -> list[str]:
    try:
        make_folds.verify(runs, root)
    except UserError as error:
        return error.problems
    return []


def test_the_stages_store_every_kind_of_file_that_is_damaged_here(root):
    assert set(stored_files(root)) == {
        "folds.csv", "SHA256SUMS", "ledger.csv", "image_statistics_train.parquet", "image_statistics_test.parquet",
        "config.yaml", "competition.yaml", "environment.json", "pixels.json", "choices.csv", "round.json", "tuned.json",
        "blend.csv", "correlation.csv", "importance.csv", "importance.png",
        "manifest.json", "log.csv", "oof.parquet", "test.parquet", "pseudo.parquet", "last.safetensors",
        "best.safetensors", "snapshot.safetensors", "lightgbm.txt", "feature_map.csv",
    }  # fmt: skip


def test_nothing_is_wrong_with_undamaged_runs_and_nothing_is_noted(root, capsys):
    assert problems_of(root) == []
    output = capsys.readouterr().out
    assert len(re.findall(r"^run \S+: 3 folds, \d+ files, 60 ids: all verified$", output, re.MULTILINE)) == 3
    assert len([line for line in output.splitlines() if line.startswith("  pooled")]) == 3
    assert "no stage vouches" not in output


def test_any_damage_of_any_stored_file_is_detected_and_the_file_is_named(root, figures, capsys):
    generator = np.random.default_rng(0)
    files = stored_files(root)
    kinds = sorted(files)
    tried, detected = Counter(), Counter()
    for trial in range(count(len(kinds), 1000)):
        kind, how = kinds[trial % len(kinds)], DAMAGES[trial // len(kinds) % len(DAMAGES)]
        path = files[kind][generator.integers(len(files[kind]))]
        content = path.read_bytes()
        path.write_bytes(damage(content, how, generator))
        problems = problems_of(root, runs_to_verify(root, path))
        path.write_bytes(content)
        tried[kind] += 1
        where = f"{path.parent.name}/{path.name}: " if path.parent != root else f"{path.name}: "
        assert all("\n" not in problem for problem in problems)
        assert any(where in problem for problem in problems), (path, how, problems)
        detected[kind] += 1
    capsys.readouterr()
    by_kind = ", ".join(f"{kind} {detected[kind]}/{tried[kind]}" for kind in kinds)
    figures(f"damaged files detected and named: {detected.total()} of {tried.total()} ({by_kind})")
    assert problems_of(root) == []


def test_every_file_that_is_gone_is_named(root, figures, capsys):
    files = [path for paths in stored_files(root).values() for path in paths if path.name != "folds.csv"]
    named = 0
    for path in files[:: count(7, 1)]:
        kept = path.read_bytes()
        path.unlink()
        problems = problems_of(root, runs_to_verify(root, path))
        path.write_bytes(kept)
        told = [*problems, *capsys.readouterr().out.splitlines()]  # a full fit without manifest may be in the making
        assert any(str(path) in line or line.startswith(f"{path.parent}: ") for line in told), (path, told)
        assert problems or path.parent.name == "all-data"
        named += 1
    figures(f"files taken away: {named} of {named} named")
