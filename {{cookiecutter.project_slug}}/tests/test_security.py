"""Files from others never run code or fill the machine; secrets stay in the environment; odd names are only text."""

import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save
from test_pipeline import write_settings

import make_folds
import predict
import submit
import train
from kfold.config import Config, load_config
from kfold.errors import UserError
from kfold.model.build import build_model
from kfold.model.weights import load_model
from kfold.report.pictures import importance_picture
from kfold.settings import parse_overrides, settings_to_yaml
from kfold.strict_yaml import LONGEST_YAML, read_yaml

# Weights


class Runs:
    """Unpickling it calls a function, as a hostile file would."""

    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


def touch(path: str) -> None:
    """What a payload of our own calls; pickles name it by module and name."""
    Path(path).touch()


def torch_file(value: object, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def torch_script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1, 1)), file)
    return file.getvalue()


def hostile_weights(canary: Path) -> dict[str, bytes]:
    """What it is -> the file's content; run, each would make the file `canary`."""
    shell = Runs(os.system, f"touch {canary}")
    weights = OrderedDict(timm.create_model("test_resnet").state_dict())
    archive = torch_file({"a": shell})
    return {
        **{f"pickle, protocol {number}": pickle.dumps(shell, number) for number in range(6)},
        "within the weights": torch_file({**weights, "extra": shell}),
        "in place of a tensor": torch_file({**weights, "conv1.weight": shell}),
        "as a key": torch_file({**weights, shell: torch.zeros(1)}),
        "under state_dict": torch_file({"state_dict": weights, "optimizer": shell}),
        "torch's old format": torch_file(shell, zipped=False),
        "open for writing": torch_file(Runs(open, str(canary), "w")),
        "eval": torch_file(Runs(eval, f"open({str(canary)!r}, 'w')")),
        "exec": torch_file(Runs(exec, f"open({str(canary)!r}, 'w')")),
        "a process": torch_file(Runs(subprocess.Popen, ["touch", str(canary)])),
        "our own function": torch_file(Runs(touch, str(canary))),
        "through getattr": torch_file(Runs(getattr, Runs(__import__, "os"), "system")),
        "an import": torch_file(Runs(__import__, "antigravity")),
        "a zip in a zip": zip_of({"archive/data.pkl": archive, "archive/version": b"3\n"}),
        "a zip by hand": zip_of({"archive/data.pkl": pickle.dumps(shell), "archive/version": b"3\n"}),
        "two pickles in a zip": zip_of({"a/data.pkl": pickle.dumps({}), "b/data.pkl": pickle.dumps(shell)}),
        "a tar": tar_of("pickle", pickle.dumps(shell)),
        "gzip": gzip.compress(pickle.dumps(shell)),
        "after safetensors": save({"a": torch.zeros(1)}) + pickle.dumps(shell),
        "safetensors of 8 exabytes": b"\xff" * 7 + b"\x7f" + pickle.dumps(shell),
        "a script": torch_script(),
        "no tensors": torch_file(dict.fromkeys(weights, "text")),
        "numbers for names": torch_file(dict.fromkeys(range(9), torch.zeros(1))),
        "a list": torch_file([torch.zeros(1)]),
    }


@pytest.mark.filterwarnings("ignore")  # torch's own, of old formats
def test_hostile_weights_are_refused_in_one_line_and_never_run(tmp_path, figures):
    canary, refused = tmp_path / "canary", 0
    for what, content in hostile_weights(canary).items():
        for name in ("weights.pth", "weights.pt", "weights.bin", "weights.safetensors", "weights.npz"):
            path = tmp_path / name
            path.write_bytes(content)
            problems = problems_of_weights(path)
            assert len(problems) == 1, (what, name)
            assert len(problems[0].splitlines()) == 1, (what, name)
            assert str(path) in problems[0], (what, name)
            with pytest.raises(UserError, match="damaged or not a weights file"):
                load_model(path)
            assert not canary.exists(), (what, name)
            refused += 1
    figures(f"{refused} of {refused} hostile weights files refused, 0 run")


def problems_of_weights(path: Path) -> list[str]:
    try:
        build_model("test_resnet", 3, 32, pretrained=True, pretrained_path=str(path))
    except UserError as error:
        return error.problems
    return []


@pytest.mark.filterwarnings("ignore")
def test_the_hostile_weights_are_live(tmp_path):
    """The test before could not fail if the payloads did nothing."""
    canary = tmp_path / "canary"
    for what, load in (("pickle, protocol 2", pickle.loads), ("within the weights", unsafe_load)):
        load(hostile_weights(canary)[what])
        canary.unlink()


def unsafe_load(content: bytes) -> object:
    return torch.load(io.BytesIO(content), weights_only=False)


# Settings

HOSTILE_YAML = {
    "os.system": "a: !!python/object/apply:os.system ['touch CANARY']\n",
    "a function": "!!python/object/new:os.system ['touch CANARY']\n",
    "subprocess": "a: !!python/object/apply:subprocess.Popen [[touch, CANARY]]\n",
    "a module": "a: !!python/module:antigravity\n",
    "a name": "a: !!python/name:os.system\n",
    "an object": "a: !!python/object:kfold.config.Config {seed: 1}\n",
    "an own tag": "a: !run 'touch CANARY'\n",
    "a verbatim tag": "a: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch CANARY']\n",
    "a redefined tag": "%TAG ! tag:yaml.org,2002:python/object/apply:\n---\na: !os.system ['touch CANARY']\n",
    "tuple": "a: !!python/tuple [1]\n",
    "billion laughs": "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi")),  # noqa: B905
    "laughing keys": "a: &a {x: 1}\nb: {<<: *a, y: *a}\n",
    "an alias of itself": "a: &a [*a]\n",
    "deep lists": "a: " + "[" * 20_000,
    "deep lists, closed": "a: " + "[" * 1_000 + "]" * 1_000,
    "deep maps": "{a: " * 20_000,
    "deep dashes": "- " * 40_000,
    "deep indents": "\n".join(" " * depth + "a:" for depth in range(440)),
    "deep questions": "? " * 40_000,
    "a long file": "# " + "x" * LONGEST_YAML,
    "many long keys": "".join(f"{number:050}: 1\n" for number in range(1900)) + f"{7:050}: 1\n",
    "a bad time": "a: !!timestamp soon\n",
    "a bad truth": "a: !!bool maybe\n",
    "a bad number": "a: !!int ''\n",
    "a bad float": "a: !!float ''\n",
    "a bad binary": "a: !!binary \u00e9\n",
    "a map as key": "{a: 1}: 1\n",
    "control characters": "a: \x07\n",
    "two documents": "a: 1\n---\na: 2\n",
}


@pytest.mark.parametrize("what", HOSTILE_YAML)
def test_hostile_settings_are_refused_in_one_line_at_once(tmp_path, what):
    text, path = HOSTILE_YAML[what].replace("CANARY", str(tmp_path / "canary")), tmp_path / "baseline.yaml"
    path.write_text(text, encoding="utf-8")
    started = time.monotonic()
    for read in (read_yaml, load_config):
        with pytest.raises(UserError) as refusal:
            read(path)
        (problem,) = refusal.value.problems
        assert path.name in problem
        assert len(problem.splitlines()) == 1
        assert len(problem) < 500 + len(str(path))
    assert time.monotonic() - started < 5
    assert os.listdir(tmp_path) == ["baseline.yaml"]


@pytest.mark.parametrize("text", ["[" * 20_000, "!!bool maybe", "&a [*a]", "!!python/name:os.system", "{" * 3000])
def test_hostile_words_are_refused_in_one_line(text):
    with pytest.raises(UserError, match="cannot read the value") as refusal:
        parse_overrides([f"lr={text}"])
    assert len(refusal.value.problems) == 1
    assert len(str(refusal.value)) < 600


def test_settings_with_equal_lists_are_written_without_aliases(tmp_path):
    runs = ("a", "b")
    config = Config(pseudo_from=runs, distill_from=runs)
    (tmp_path / "config.yaml").write_text(settings_to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


# Secrets

SECRET = "c4naryT0ken5ecret"
SECRET_NAMES = ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "WANDB_API_KEY", "HF_TOKEN")


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    """A person's keys in the environment and at home, and a `kaggle` that fails and shouts out what it knows."""
    home = tmp_path / "home"
    (home / ".kaggle").mkdir(parents=True)
    (home / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": SECRET, "key": SECRET}))
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {SECRET}\n")
    monkeypatch.setenv("HOME", str(home))
    for name in SECRET_NAMES:
        monkeypatch.setenv(name, SECRET)
    command = tmp_path / "bin" / "kaggle"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable} -S\nimport os, sys\nprint('401 - Unauthorized for key', os.environ['KAGGLE_KEY'])\n"
        "sys.exit(1)\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)


def write_competition(root: Path) -> Path:
    """A few images of noise, and a tiny model."""
    write_settings(root, "multiclass", epochs=1)
    with (root / "competition.yaml").open("a") as facts:
        facts.write("kaggle_competition: digits\n")
    for name, num_images in (("train", 30), ("test", 6)):
        ids = [f"{name}{number}" for number in range(num_images)]
        (root / "data" / f"{name}_images").mkdir(parents=True)
        for number, image_id in enumerate(ids):
            noise = np.random.default_rng([number, num_images]).integers(0, 255, (32, 32, 3))
            cv2.imwrite(str(root / "data" / f"{name}_images" / f"{image_id}.png"), noise)
        table = pd.DataFrame({"image_id": ids, "label": [number % 3 for number in range(num_images)]})
        table.to_csv(root / "data" / f"{name}.csv", index=False)
    shutil.copy(root / "data" / "test.csv", root / "data" / "sample_submission.csv")
    return root


@pytest.mark.usefixtures("secrets")
def test_no_secret_is_in_any_file_or_output_of_the_stages(tmp_path, capfd):
    root = write_competition(tmp_path / "repository")
    make_folds.main(root=root)
    train.main(root=root)
    predict.main(root=root)
    with pytest.raises(UserError, match="401") as refusal:
        submit.main(upload=True, root=root)
    output = capfd.readouterr()
    assert SECRET not in output.out + output.err + str(refusal.value)
    written = [path for path in root.rglob("*") if path.is_file()]
    assert len([path for path in written if path.is_relative_to(root / "runs")]) > 15
    assert (root / "submission.csv").exists()
    assert [path for path in written if SECRET.encode() in path.read_bytes() or SECRET in str(path)] == []


# Names

ODD_NAMES = [
    r"$\frac{",
    r"$\frac{1}{",
    r"$\undefined$ and $",
    "$$",
    "$x^$",
    r"\$",
    "<script>alert(1)</script>",
    "=1+1",
    "%s %d {} {0}",
    "line\nbreak",
    "tab\tbell\x07 nul\0",
    "\u202eright to left",
    "\u6f22\u5b57 \U0001f600 e\u0301",
    "",
    " ",
    "_hidden",
    "x" * 5000,
]


def test_odd_names_are_drawn_as_they_are():
    for name in ODD_NAMES:
        table = pd.DataFrame({"name": [name, "plain"], "gain": [2.0, 1.0]})
        assert importance_picture(table, name).startswith(b"\x89PNG"), ascii(name)


def test_a_name_that_would_be_a_formula_is_drawn_with_its_dollars():
    """As a formula the spaces would go."""
    tables = [pd.DataFrame({"name": [name], "gain": [1.0]}) for name in ("$a  b$", "$a b$", "$ab$")]
    pictures = [importance_picture(table, "gain") for table in tables]
    assert len(set(pictures)) == 3
