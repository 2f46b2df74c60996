"""kaggle/bundle.py: what it takes, what it refuses, what Kaggle's command would say to it; what winners hand over."""

import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kaggle_runs import REPOSITORY, bundle_of, load_script, runs_to_bundle

import stack
from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.errors import UserError
from kfold.files import file_sha256
from kfold.kaggle import contents, hand_over, wheel
from kfold.kaggle.hand_over import write_hand_over
from kfold.kaggle.metadata import dataset_metadata, kernel_metadata, make_slug

bundle = load_script("bundle")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def root(tmp_path):
    return Path(
        shutil.copytree(
            runs_to_bundle(),
            tmp_path / "root",
            ignore=shutil.ignore_patterns("bundles", "build", "train_images", "test_images"),
        )
    )


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_file_is_listed_with_its_sha256_and_a_name_that_kaggle_keeps():
    dataset = bundle_of("weighted") / "dataset"
    marker = json.loads((dataset / "bundle.json").read_text())
    assert set(marker["files"]) == names_in(dataset) - {"bundle.json", "dataset-metadata.json"}
    assert all(file_sha256(dataset / name) == digest for name, digest in marker["files"].items())
    assert all(re.fullmatch(r"[A-Za-z0-9._/-]+", name) for name in marker["files"])
    assert (marker["runs"], marker["final"]) == (["second", "baseline", "weighted"], ["weighted"])


def test_a_stack_brings_its_runs_weights_and_rows_but_no_test_predictions_and_no_images():
    names = names_in(bundle_of("weighted") / "dataset")
    for run in ("baseline", "second"):
        for fold in range(3):
            files = {Path(name).name for name in names if name.startswith(f"runs/{run}/fold{fold}/")}
            assert files == {"last.safetensors", "manifest.json", "oof.parquet"}
    assert not {name for name in names if "trees" in name or name.endswith((".png", ".jpg"))}
    assert {"folds.csv", "competition.py", "competition.yaml", "kaggle/infer.py", "kfold/artifacts.py"} <= names
    assert not {name for name in names if name.startswith("tests/")}


def test_a_full_data_fit_leaves_the_folds_weights_at_home():
    names = names_in(bundle_of("second", all_data=True) / "dataset")
    assert {name for name in names if name.endswith(".safetensors")} == {"runs/second/all-data/last.safetensors"}
    assert {f"runs/second/fold{fold}/oof.parquet" for fold in range(3)} <= names


def test_the_notebook_is_valid_short_and_pinned_to_its_bundle():
    folder = bundle_of("weighted")
    notebook = nbformat.read(folder / "notebook" / "inference.ipynb", as_version=4)
    nbformat.validate(notebook)
    codes = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert len(codes) == 5
    assert file_sha256(folder / "dataset" / "bundle.json") in codes[0]
    for code in codes:
        compile(code, "cell", "exec")


def test_a_bundle_made_again_is_the_same_bytes_and_takes_the_place_of_the_first(root):
    bundle.main(["second"], owner="me", root=root)
    first = {name: file_sha256(root / "build" / "kaggle" / name) for name in names_in(root / "build" / "kaggle")}
    (root / "build" / "kaggle" / "dataset" / "old.bin").write_bytes(b"of another bundle")
    (root / "build" / "kaggle.unfinished").mkdir()
    bundle.main(["second"], owner="me", root=root)
    again = {name: file_sha256(root / "build" / "kaggle" / name) for name in names_in(root / "build" / "kaggle")}
    assert again == first
    assert not (root / "build" / "kaggle.unfinished").exists()


def test_sizes_are_told_and_refused_before_a_byte_is_written(root, monkeypatch, capsys):
    weights = sum(path.stat().st_size for path in root.glob("runs/second/fold*/last.safetensors"))
    monkeypatch.setattr(contents.shutil, "disk_usage", lambda _: Usage(10**9, 0, 100_000))
    with pytest.raises(UserError, match=r"GB with the upload's own copy, and 0\.00 GB are free"):
        bundle.main(["second"], owner="me", root=root)
    assert re.search(rf"run second, weights +3 files +{weights / 1e6:,.1f} MB", capsys.readouterr().out)
    monkeypatch.setattr(contents, "LARGEST", 1000)
    with pytest.raises(UserError, match="name fewer --runs"):
        bundle.main(["second"], owner="me", root=root)
    assert not (root / "build").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"runs": ["nothing"]}, r"run 'nothing': no such run in .*: there are baseline, second, trees, weighted"),
        ({"owner": ""}, "--owner: give your name in kaggle.com/<name>"),
        ({"owner": "a/b"}, "--owner: .*'a/b' is none"),
        ({"time_limit": "soon"}, "--time-limit soon: write hours"),
        ({"runs": ["weighted"], "all_data": True}, "--all-data: is for a single run"),
        ({"runs": ["baseline"], "all_data": True}, "run baseline: all-data is not predicted: run predict.py"),
    ],
)
def test_what_cannot_be_sent_is_one_line_with_the_remedy(root, options, problem):
    with pytest.raises(UserError, match=problem) as caught:
        bundle.main(**{"runs": ["second"], "owner": "me", "root": root, **options})
    assert len(caught.value.problems) == 1
    assert not (root / "build").exists()


def test_damage_odd_names_foreign_files_and_embeddings_are_refused(root, tmp_path):
    code = Path(shutil.copytree(REPOSITORY / "kaggle", tmp_path / "code" / "kaggle")).parent
    (code / "requirements.txt").write_text("")
    (code / "my=file.py").write_text("")
    with pytest.raises(UserError, match=r"my=file\.py: Kaggle changes such names"):
        contents.list_items(Workspace(root), code, ["second"], False)
    (root / "build" / "kaggle").mkdir(parents=True)
    (root / "build" / "kaggle" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.txt, which is no part of a bundle"):
        bundle.main(["second"], owner="me", root=root)
    pixels = root / "runs" / "second" / "pixels.json"
    content = pixels.read_text()
    pixels.write_text(content + " ")
    with pytest.raises(UserError, match=r"second.pixels\.json: damaged or changed"):
        bundle.main(["second"], owner="me", root=root)
    pixels.write_text(content)
    weights = root / "runs" / "second" / "fold1" / "last.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"fold1.last\.safetensors: damaged or changed"):
        bundle.main(["second"], owner="me", root=root)
    config = root / "runs" / "trees" / "config.yaml"
    config.write_text(config.read_text().replace("- images", "- embeddings"))
    with pytest.raises(UserError, match=r"run trees: stands on embeddings.*without them"):
        bundle.main(["trees"], owner="me", root=root)


def test_a_stack_that_takes_one_run_is_said_to_be_needless(root, capsys):
    stack.main(["baseline", "second"], "single", "best_single", ["oof"], root=root, alone=True)
    bundle.main(["single"], owner="me", root=root)
    assert "warning: single takes run baseline alone: a bundle of that run says" in capsys.readouterr().out


# What Kaggle's command checks (2.2.5) before it sends anything


@given(st.text(max_size=80) | st.text("ab1- ", min_size=30, max_size=80), st.sampled_from(["bundle", "inference"]))
def test_every_name_becomes_a_slug_and_title_that_kaggle_takes(text, ending):
    slug = make_slug(text, ending)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug)
    assert slug.endswith(f"-{ending}")
    dataset = dataset_metadata("me", slug)
    assert 6 <= len(slug) <= 50
    assert 6 <= len(dataset["title"]) <= 50
    assert len(dataset["licenses"]) == 1
    kernel = kernel_metadata("me", slug, slug, "x", True)
    assert re.sub(r"[^a-z0-9]+", "-", kernel["title"].lower()) == kernel["id"].split("/")[1]


def test_the_notebook_is_private_offline_and_has_its_bundle_and_the_competition():
    kernel = json.loads((bundle_of("weighted") / "notebook" / "kernel-metadata.json").read_text())
    dataset = json.loads((bundle_of("weighted") / "dataset" / "dataset-metadata.json").read_text())
    assert (kernel["is_private"], kernel["enable_internet"]) == (True, False)
    assert kernel["dataset_sources"] == [dataset["id"]]
    assert kernel["competition_sources"] == ["digits-2026"]
    assert (bundle_of("weighted") / "notebook" / kernel["code_file"]).exists()
    assert "machine_shape" not in kernel_metadata("me", "a-bundle", "b", "", False)


# The wheel


def test_the_wheel_installs_without_a_network_and_holds_the_package_as_it_is_here(tmp_path):
    (path,) = (bundle_of("weighted") / "dataset" / "wheels").iterdir()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    done = subprocess.run([*command, str(tmp_path / "site"), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = Path(importlib.import_module("ttach").__file__).parent
    code = {file.name: file.read_bytes() for file in (tmp_path / "site" / "ttach").glob("*.py")}
    assert code == {file.name: file.read_bytes() for file in here.glob("*.py")}
    assert len(code) > 3


def test_a_wheel_is_taken_only_where_the_code_needs_it_and_refused_where_there_is_none(tmp_path, monkeypatch):
    item = contents.Item("a.py", tmp_path / "a.py", "code")
    item.source.write_text("import ttachment\nx = 'import ttach'\n")
    assert not bundle.is_imported("ttach", [item])
    item.source.write_text("def late():\n    from ttach import Compose\n")
    assert bundle.is_imported("ttach", [item])
    with pytest.raises(UserError, match="no-such-package: not installed.*pip install no-such-package"):
        wheel.repack("no-such-package")
    with pytest.raises(UserError, match="numpy: is not pure Python"):
        wheel.repack("numpy")


# What a winner hands over


def commands_of(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    python ")]


def test_the_commands_of_a_hand_over_exist_and_make_the_same_runs(root, monkeypatch):
    shutil.copy(REPOSITORY / "requirements.txt", root)
    write_hand_over(Workspace(root), ["weighted"])
    commands = commands_of((root / "build" / "winner" / "entry_points.md").read_text())
    scripts = [command[1] for command in commands]
    order = ["kaggle/download.py", "make_folds.py", "train.py", "train.py", "predict.py", "predict.py", "stack.py"]
    assert scripts == [*order, "submit.py"]
    for _, script, *words in commands:
        assert parses(script, words, monkeypatch)
    named = " ".join(" ".join(command) for command in commands)
    for run in artifacts.stack_of(Workspace(root), "weighted"):
        assert f"--config runs/{run}/config.yaml --name {run} --fold all" in named
        assert f"--run {run} --weights last --tta {'flips' if run == 'baseline' else 'none'}" in named
    assert named.endswith("submit.py --run weighted")


class Parsed(Exception):
    pass


def parses(script: str, words: list[str], monkeypatch) -> bool:
    """Whether the script's own parser takes the words; the work that follows is left out."""
    with monkeypatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            parse = getattr(ArgumentParser, name)

            def stop(self, args=None, namespace=None, parse=parse):
                parse(self, args, namespace)
                raise Parsed

            patch.setattr(ArgumentParser, name, stop)
        patch.setattr(sys, "argv", [script, *words])
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except Parsed:
            return True
        except SystemExit:
            return False
    return False


def test_a_hand_over_names_folders_and_exact_versions(root):
    shutil.copy(REPOSITORY / "requirements.txt", root)
    write_hand_over(Workspace(root), ["second"])
    into = root / "build" / "winner"
    settings = json.loads((into / "SETTINGS.json").read_text())
    assert settings == {"RAW_DATA_DIR": "data", "MODEL_DIR": "runs", "CHECKPOINT_DIR": "runs", "SUBMISSION_DIR": "."}
    lines = (into / "requirements.txt").read_text().splitlines()
    assert f"ttach=={version('ttach')}" in lines
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==\S+", line) for line in lines[1:])
    folders = (into / "directory_structure.txt").read_text().splitlines()
    assert {"runs/second/fold0", "configs"} <= set(folders)
    with pytest.raises(UserError, match="stand side by side: name the one"):
        write_hand_over(Workspace(root), ["baseline", "second"])
    (root / "requirements.txt").write_text("no-such-package>=1\n")
    with pytest.raises(UserError, match="no-such-package: not installed"):
        hand_over.exact_versions(root / "requirements.txt")
