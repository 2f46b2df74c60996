import cv2
import numpy as np
import pytest
import torch

from kfold.data import workers as workers_module
from kfold.data.augment import Augmentation, train_transform
from kfold.data.loader import EpochOrder, Images, ThreadLoader, make_loader, read_batches
from kfold.data.workers import measure, workers_for
from kfold.errors import Interrupted

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    found = [folder / f"{number}.png" for number in range(12)]
    for path in found:
        cv2.imwrite(str(path), np.full((20, 20, 3), 7, np.uint8))
    return found


def images_of(paths, preset="light") -> Images:
    return Images(paths, np.zeros((len(paths), 1)), train_transform(Augmentation(preset), 16), 16)


@pytest.fixture
def speeds(monkeypatch):
    """What the measurement says; this thread makes 100 images a second of batches of 4."""
    found = {"threads": 50.0, 3: 50.0}
    monkeypatch.setattr(workers_module, "num_cores", lambda: 3)
    monkeypatch.setattr(workers_module, "time_here", lambda images, order: 0.04)
    monkeypatch.setattr(workers_module, "LITTLE", 0.0)
    monkeypatch.setattr(workers_module, "measure", lambda images, order, kind, *others: found[kind])
    return found


@pytest.mark.parametrize(
    ("threads", "processes", "chosen"),
    [(50, 60, 0), (300, 320, "threads"), (300, 340, 3), (90, 0, 0), (92, 0, "threads")],
)
def test_auto_takes_the_fastest_and_processes_only_when_they_are_clearly_faster(
    paths, speeds, threads, processes, chosen, capsys
):
    speeds.update({"threads": threads, 3: processes})
    assert workers_for(images_of(paths), EpochOrder(12, 4, True), "auto", CPU) == chosen
    line = capsys.readouterr().out
    assert line.startswith(f"  workers={chosen}: ")
    assert f"this thread 100, threads {threads}, 3 processes {processes}" in line


def test_auto_starts_no_processes_where_shared_memory_is_small_and_no_threads_for_a_policy(paths, speeds, monkeypatch):
    speeds.update({"threads": 200, 3: 500})
    order = EpochOrder(12, 4, True)
    assert workers_for(images_of(paths, "randaugment"), order, "auto", CPU) == 3
    monkeypatch.setattr(workers_module, "free_shared_memory", lambda: 1000.0)
    assert workers_for(images_of(paths), order, "auto", CPU) == "threads"
    assert workers_for(images_of(paths, "randaugment"), order, "auto", CPU) == 0


def test_little_work_is_not_measured(paths, monkeypatch, capsys):
    monkeypatch.setattr(workers_module, "num_cores", lambda: 2)
    order = EpochOrder(12, 4, True)
    assert workers_for(images_of(paths), order, "auto", CPU) == 0
    assert workers_for(images_of(paths), order, "auto", GPU) == "threads"
    assert workers_for(images_of(paths, "randaugment"), order, "auto", GPU) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("wish", [0, 3, "threads"])
def test_a_wish_is_not_measured(paths, speeds, wish):
    speeds.clear()
    assert workers_for(images_of(paths), EpochOrder(12, 4, True), wish, CPU) == wish


@pytest.mark.parametrize("kind", ["threads", 1])
def test_measuring_counts_images_and_leaves_the_order_as_it_was(paths, kind):
    images, order = images_of(paths), EpochOrder(12, 4, True)
    before = [batch.images.numpy().tobytes() for batch in read_batches(make_loader(images, order, 0, CPU), 3)]
    assert measure(images, order, kind, CPU, lambda: None) > 1
    after = [batch.images.numpy().tobytes() for batch in read_batches(make_loader(images, order, 0, CPU), 3)]
    assert after == before


def test_measuring_stops_when_it_is_time_to(paths):
    def stop():
        raise Interrupted("now")

    with pytest.raises(Interrupted):
        measure(images_of(paths), EpochOrder(12, 4, True), "threads", CPU, stop)


# Threads


def test_threads_keep_to_the_order_and_stop_at_once_when_nobody_takes_more(paths):
    images, read = images_of(paths), []

    def count(row):
        read.append(row)
        return np.zeros((20, 20, 3), np.uint8)

    images.read = count
    order = EpochOrder(12, 1, False)
    found = [batch.indices.item() for batch in ThreadLoader(images, order, 3, False)]
    assert found == list(range(12))
    read.clear()
    batches = iter(
        ThreadLoader(images, EpochOrder(10_000, 1, False, rows_of=lambda _: np.zeros(10_000, int)), 3, False)
    )
    next(batches)
    batches.close()
    assert len(read) < 20


def test_an_error_in_a_thread_is_raised_where_the_batch_is_asked_for(paths):
    images = images_of(paths)
    images.read = lambda row: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(ThreadLoader(images, EpochOrder(12, 4, False), 2, False))
