"""One fold on several processes: the same batches and, without BatchNorm, the same weights as on one."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from interrupted import fingerprint
from ranks import RUNS, train_run
from reliability import FULL
from safetensors.torch import load_file, save_file
from test_pipeline import REPOSITORY, copy_code, prepare

import predict
from kfold import distributed
from kfold.artifacts import Workspace
from kfold.config import Config
from kfold.data.loader import EpochOrder, Images, rows_of_share
from kfold.distributed import Group
from kfold.errors import UserError, run_stage
from kfold.setup.network import make_model
from kfold.setup.several import describe_processes, synchronized
from kfold.training.losses import choose_loss
from kfold.training.objective import Objective
from kfold.training.sharing import has_idle_weights, shared_forward

CPU = torch.device("cpu")
TINY = {"backbone": "test_resnet", "pretrained": False, "image_size": 32}
PATIENCE = 300  # seconds
RANKS = "tests/ranks.py"

# Real processes


def torchrun(num_processes: int, *words, folder: Path = REPOSITORY, restarts: int = 0) -> subprocess.Popen:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", num_processes]
    return start([*launch, "--max-restarts", restarts, "--monitor-interval", 0.1, *words], folder)


def start(words, folder: Path) -> subprocess.Popen:
    command = [sys.executable, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, **pipes)


def on_ranks(places: dict[int, list[Path]]) -> str:
    """What the first process says while so many train these runs; one number of processes after another, as the later
    ones go on from a state that the earlier leave."""
    if FULL:
        return "".join(said_by(torchrun(number, RANKS, *of_number)) for number, of_number in places.items())
    words = " + ".join(f"{number} {' '.join(map(str, of_number))}" for number, of_number in places.items())
    return said_by(start([RANKS, *words.split()], REPOSITORY))


def said_by(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors[-3000:]
    return output


def copy_of(root: Path, folder: Path) -> Path:
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns("data", "rows"), symlinks=True)
    (folder / "data").symlink_to((root / "data").resolve())
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """75 rows in three folds: no batch, and no fold, divides evenly."""
    root = prepare(tmp_path_factory.mktemp("ranks") / "base", "multiclass", 75, 12, epochs=2, batch_size=16)
    torch.manual_seed(1)
    save_file(timm.create_model("test_vit", img_size=32).state_dict(), root / "vit.safetensors")
    return root


@pytest.fixture(scope="module")
def killed(base):
    """A repository whose run `killed` lost a process, was restarted by torchrun, and then stopped by SIGTERM."""
    root = copy_code(copy_of(base, base.with_name("two")))
    words = ["train.py", "--fold", "0", "--name", "killed", *RUNS["killed"]]
    process = torchrun(2, *words, folder=root, restarts=1)
    state = Workspace(root).state_path("killed", 0)
    try:
        wait_for(state.exists, process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        wait_for(lambda: len(list_starts(root)) == 0, process)
        saved = state.stat().st_mtime_ns
        wait_for(lambda: list_starts(root) and state.stat().st_mtime_ns > saved, process)
        process.terminate()
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return root, output, errors


def wait_for(is_so, process) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def list_starts(root: Path) -> list[Path]:
    """The name of the process that holds the fold, if one does and is alive."""
    holders = list((root / "runs").glob("killed/fold0/.lock.holder"))
    return [path for path in holders if Path("/proc", re.search(r"process (\d+)", path.read_text())[1]).exists()]


@pytest.fixture(scope="module")
def several(base, killed):
    """(Two, four, calm): everything on two processes, some on four, some undisturbed; what the first one said."""
    two, four = killed[0], copy_of(base, base.with_name("four"))
    calm = copy_of(base, base.with_name("calm"))
    copy_of(base, base.with_name("one"))
    names = (
        "plain",
        "mixed",
        "frozen",
        "statistics",
        "skipped",
        "unreadable",
        "measured",
        "interrupted",
        "resumed",
        "killed",
    )
    on_two = [*(two / name for name in names), *(calm / name for name in ("resumed", "killed"))]
    said = on_ranks({2: on_two, 4: [four / name for name in ("plain", "mixed", "frozen", "resumed")]})
    return two, four, calm, said


@pytest.fixture(scope="module")
def two(several):
    return several[0]


@pytest.fixture(scope="module")
def four(several):
    return several[1]


@pytest.fixture(scope="module")
def calm(several):
    return several[2]


@pytest.fixture(scope="module")
def one(base, several):
    root = base.with_name("one")
    for name in ("plain", "mixed", "frozen", "statistics", "resumed"):
        train_run(root, name)
    return root


def batches_of(root: Path, run: str) -> dict[tuple[int, int], list[int]]:
    """(epoch, batch) -> the rows that all processes trained on, in order."""
    found = {}
    for path in sorted((root / "rows").glob(f"{run}.*.txt")):
        for epoch, batch, rows in map(json.loads, path.read_text().splitlines()):
            found.setdefault((epoch, batch), []).extend(rows)
    return found


@pytest.mark.parametrize("run", ["plain", "mixed", "frozen"])
def test_without_batch_norm_any_number_of_processes_makes_the_same_weights(run, one, two, four):
    alone = Workspace(one).fold_dir(run, 0)
    start = load_file(alone / "last.safetensors")
    for root in (two, four):
        assert batches_of(root, run) == batches_of(one, run)
        folder = Workspace(root).fold_dir(run, 0)
        files = sorted(path.name for path in alone.glob("*.safetensors"))
        assert files == sorted(path.name for path in folder.glob("*.safetensors"))
        for name in files:
            mine, others = load_file(alone / name), load_file(folder / name)
            for key, tensor in mine.items():
                torch.testing.assert_close(others[key], tensor, rtol=1e-4, atol=1e-5, msg=f"{root.name} {name} {key}")
        log, its_log = (pd.read_csv(place / "log.csv") for place in (alone, folder))
        columns = ["epoch", "train_loss", "valid_loss", "score", "lr", "skipped"]
        np.testing.assert_allclose(its_log[columns], log[columns], rtol=1e-4, atol=1e-6)
    assert any(tensor.abs().max() > 0.01 for tensor in start.values())


@pytest.mark.parametrize("run", ["plain", "mixed"])
def test_every_id_has_exactly_one_oof_row_for_any_number_of_processes(run, one, two, four):
    oof = pd.read_parquet(Workspace(one).predictions_path(run, 0, "oof")).set_index("id")
    assert len(oof) == 25
    for root in (two, four):
        others = pd.read_parquet(Workspace(root).predictions_path(run, 0, "oof")).set_index("id")
        assert list(others.index) == list(oof.index)
        np.testing.assert_allclose(others.filter(like="p_"), oof.filter(like="p_"), atol=1e-4)


def test_a_run_of_two_processes_is_predicted_as_any_other(two):
    predict.main(run="plain", root=two)
    assert Workspace(two).predictions_path("plain", 0, "test").exists()


def test_what_it_comes_to_is_said_at_the_start_and_in_the_manifest(two, several):
    said = "2 processes x 8 images = batches of 16; lr 0.05 as for 16 images on one device; BatchNorm sees the 8 of its"
    assert said in several[3]
    assert "2 processes x 7 or 8 images = batches of 15, in 2 parts each" in several[3]
    assert json.loads((two / "runs" / "plain" / "fold0" / "manifest.json").read_text())["processes"] == 2


def test_statistics_of_batch_norm_are_the_mean_over_the_shares(one, two):
    mine, others = (load_file(root / "runs" / "statistics" / "fold0" / "last.safetensors") for root in (one, two))
    layers = timm.create_model("test_resnet").named_modules()
    first = next(name for name, layer in layers if isinstance(layer, torch.nn.BatchNorm2d))
    first = f"backbone.{first}.running_mean"  # later layers see what BatchNorm made of the shares
    torch.testing.assert_close(others[first], mine[first], rtol=1e-4, atol=1e-6)
    assert mine[first].abs().max() > 0.01


def test_the_first_process_alone_measures_what_is_fastest_and_all_compute_so(two, several):
    assert "timing steps on 8 random images of 32 px" in several[3]
    (chosen,) = json.loads((two / "runs" / "measured" / "speed.json").read_text()).values()
    assert json.loads((two / "runs" / "measured" / "fold0" / "manifest.json").read_text())["speed"] in str(chosen)


def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_all_and_an_early_end_is_agreed(two):
    folder = two / "runs" / "skipped" / "fold0"
    assert pd.read_csv(folder / "log.csv")["skipped"].tolist() == [1, 1]  # of 4 epochs
    skipped = pd.read_csv(folder / "skipped.csv", dtype=str)
    assert skipped["epoch"].tolist() == ["1"] * 16 + ["2"] * 16
    assert skipped.groupby("epoch")["id"].nunique().tolist() == [16, 16]


def test_an_image_that_one_process_cannot_read_stops_all(two):
    for place in range(2):
        assert (two / "rows" / f"unreadable.{place}.txt").read_text() == "x.png: is empty"
    assert not (two / "runs" / "unreadable" / "fold0" / "manifest.json").exists()


def test_processes_stop_together_and_as_many_go_on_with_the_same_bytes(two, calm, several):
    assert "interrupted: enough, saved at epoch 2, after batch " in several[3]
    assert fingerprint(two, "resumed") == fingerprint(calm, "resumed")
    assert several[3].count("not byte for byte") == several[3].count("processes 2 -> 4") == 1


@pytest.mark.parametrize("name", ["one", "four"])
def test_a_state_of_two_processes_goes_on_with_another_number_and_each_row_is_seen_once(name, calm, request):
    root = request.getfixturevalue(name)
    before = batches_of(calm.with_name("stopped"), "resumed")
    after = batches_of(root, "resumed")
    assert not set(before) & set(after)
    assert 0 < len(before) < len(after) + len(before) == 9
    assert {**before, **after} == batches_of(calm, "resumed")
    for epoch in range(3):
        rows = [row for (of, _), rows in {**before, **after}.items() if of == epoch for row in rows]
        assert len(rows) == len(set(rows)) == 48  # of 50: the incomplete batch is left out
    assert (root / "runs" / "resumed" / "fold0" / "manifest.json").exists()


def test_after_a_kill_torchruns_restart_goes_on_and_ends_with_the_same_bytes(killed, calm):
    root, output, _ = killed
    assert output.count("goes on from epoch") == 1
    assert output.count("forecast: ") >= 2
    assert fingerprint(root, "killed") == fingerprint(calm, "killed")


def test_the_process_that_is_left_after_a_kill_says_so_in_one_line(killed):
    (line,) = [line for line in killed[2].splitlines() if line.startswith("error: ")]
    assert re.match(r"error: another process of this training ended \(.*Connection .*\): see what it said", line)


def test_sigterm_to_torchrun_saves_tells_it_once_and_starts_nothing_again(killed):
    _, output, errors = killed
    assert errors.count("interrupted: SIGTERM received, saved at epoch ") == 1
    assert errors.count("run the same command again") == 1
    assert errors.count("Traceback") == 1  # torchrun's own


# In this process


@given(num_rows=st.integers(0, 300), size=st.integers(1, 17))
def test_shares_make_the_whole_in_order_and_differ_by_one_row_at_most(num_rows, size):
    shares = [range(num_rows)[rows_of_share(num_rows, process, size)] for process in range(size)]
    assert [row for share in shares for row in share] == list(range(num_rows))
    lengths = {len(share) for share in shares}
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) == -(-num_rows // size)  # as gather_rows pads them


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 6), st.booleans(), st.integers(0, 5))
def test_every_row_of_an_epoch_is_read_by_one_process(num_rows, batch_size, size, shuffle, epoch):
    order = EpochOrder(num_rows, batch_size, shuffle)
    order.epoch, read = epoch, [[] for _ in range(size)]

    def images_of(process):
        def reader(row):
            read[process].append(row)
            return np.full((2, 2, 3), row, np.uint8)

        unchanged = lambda image: {"image": image}  # noqa: E731
        targets = np.arange(num_rows)[:, None]
        return Images([Path("x")] * num_rows, targets, unchanged, 2, read=reader, share=(process, size))

    everyone = [images_of(process) for process in range(size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kfold.data.loader.apply_into", lambda target, transform, image, seed: target.__iadd__(image))
        for keys in order:
            batches = [images.__getitems__(keys) for images in everyone]
            for batch in batches:
                assert batch.targets[:, 0].tolist() == [row for _, row in keys]
            own = [row for batch in batches for row in batch.indices[batch.own].tolist()]
            assert own == [row for _, row in keys]
            assert all(len(batch.images) == len(batch.indices[batch.own]) for batch in batches)
    assert sorted(sum(read, [])) == sorted(row for keys in order for _, row in keys)


@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 2**31))
def test_the_losses_of_the_shares_add_up_to_the_mean_of_the_batch(num_rows, size, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, targets, weights = (torch.rand(num_rows, 3, generator=generator) for _ in range(3))
    objective = Objective(choose_loss("auto", "multilabel"))
    whole = objective.supervised(logits, targets, weights, weights)
    shares = [rows_of_share(num_rows, process, size) for process in range(min(size, num_rows))]
    shares = [rows_of_share(num_rows, process, len(shares)) for process in range(len(shares))]
    parts = [objective.supervised(logits[rows], targets[rows], weights[rows], weights) for rows in shares]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize(
    ("words", "num_rows", "problem"),
    [
        ({"batch_size": 7}, 100, "batches of 7 over 4 processes leave fewer than 2 images to each"),
        ({"batch_size": 32}, 7, "batches of 7 over 4 processes leave fewer than 2 images"),
        ({"center_weight": 0.1}, 100, "center_weight: each process would move the centers by its own images"),
        ({"sync_batch_norm": True}, 100, "sync_batch_norm works on GPUs alone"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_with_the_reason(words, num_rows, problem, monkeypatch):
    monkeypatch.setattr(distributed, "group", Group(0, 4))
    with pytest.raises(UserError, match=problem):
        describe_processes(Config(**words), num_rows, CPU)


def test_batch_norm_over_all_processes_needs_equally_many_parts(monkeypatch):
    monkeypatch.setattr(distributed, "group", Group(0, 4))
    gpu = torch.device("cuda")
    config = Config(batch_size=30, accumulate=4, sync_batch_norm=True)  # shares of 7 and 8 images
    with pytest.raises(UserError, match="3 to 4 parts of a batch: take a batch_size that 4 divides"):
        describe_processes(config, 100, gpu)
    even = config.model_copy(update={"batch_size": 32})
    assert "BatchNorm sees the 2 of a part, of each process" in describe_processes(even, 100, gpu)
    whole = even.model_copy(update={"accumulate": 1})
    assert "BatchNorm sees all 32" in describe_processes(whole, 100, gpu)


def test_of_a_batch_in_parts_batch_norm_is_said_to_see_a_part(monkeypatch):
    monkeypatch.setattr(distributed, "group", Group(0, 2))
    assert describe_processes(Config(batch_size=32, accumulate=2), 100, CPU).endswith("BatchNorm sees the 8 of a part")
    assert "sees the 3 or 4 of a part" in describe_processes(Config(batch_size=15, accumulate=2), 100, CPU)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])  # of timm's norms some have an activation
def test_batch_norm_over_all_processes_is_the_same_network(backbone, monkeypatch):
    monkeypatch.setattr(distributed, "group", Group(0, 2))
    config = Config(backbone=backbone, pretrained=False, image_size=32, sync_batch_norm=True)
    images, targets = torch.rand(4, 3, 32, 32), np.eye(3, dtype=np.float32)
    model = make_model(config, "multiclass", 0, targets).eval()
    before, names = model(images), list(model.state_dict())
    shared = synchronized(model, config)
    torch.testing.assert_close(shared(images), before)
    assert list(shared.state_dict()) == names
    norms = [layer for layer in shared.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)


@pytest.fixture
def group_of_one():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_weights_that_have_no_part_in_the_logits_stop_no_shared_training(group_of_one):
    torch.manual_seed(0)
    model = make_model(Config(**TINY, drop_rate=0.5), "multiclass", 0, np.eye(3, dtype=np.float32)).train()
    generator = torch.get_rng_state()
    assert not has_idle_weights(model, 32)
    assert torch.equal(torch.get_rng_state(), generator)
    model.backbone.unused = torch.nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forward = shared_forward(model, 32, False)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())  # BatchNorm's, too
    for _ in range(2):  # PyTorch misses the gradients of the first step in the second
        forward(torch.rand(2, 3, 32, 32)).sum().backward()
    assert model.backbone.unused.weight.grad is None
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("rows", [[[0, 1], [1, 2]], [[0], [2]]], ids=["twice", "missing"])
def test_predictions_that_miss_or_double_a_row_are_refused(rows, monkeypatch):
    monkeypatch.setattr(distributed, "group", Group(0, 2))
    found = [(torch.tensor(part), torch.zeros(len(part), 1)) for part in rows]
    monkeypatch.setattr(distributed, "gather_objects", lambda value: found)
    with pytest.raises(ValueError, match="do not make a whole"):
        distributed.gather_by_index(torch.zeros(1, 1), torch.tensor([0]))


def test_a_problem_reaches_another_process_as_it_is():
    problems = ["a.csv: row 1: odd", "b.csv: row 2: odd"]
    assert pickle.loads(pickle.dumps(UserError(problems))).problems == problems


def test_other_stages_refuse_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(sys, "argv", ["make_folds.py"])
    with pytest.raises(SystemExit, match="2"):
        run_stage(lambda: None)
    assert capsys.readouterr().err == "error: torchrun is for train.py: start make_folds.py with python\n"
