"""What a training survives on its own: full memory, losses that are not finite, loader processes that die."""

import os
import signal
import time

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from test_pipeline import prepare
from torch import nn

import train
from kfold.data import loader as loader_module
from kfold.data.augment import eval_transform
from kfold.data.loader import EpochOrder, Images, make_loader, read_batches
from kfold.errors import UserError
from kfold.model.weights import ModelCard
from kfold.setup import start
from kfold.training.averaging import make_ema
from kfold.training.loop import Recipe, fit
from kfold.training.losses import choose_loss
from kfold.training.memory import split_rows
from kfold.training.objective import Objective
from kfold.training.optimizers import make_optimizer
from kfold.training.precision import Precision
from kfold.training.predicting import forward_views, same
from kfold.training.state import Averages, Training
from kfold.training.step import MAX_SKIPPED_IN_ROW

CPU = torch.device("cpu")
FLOAT32 = Precision(torch.float32, "test")
HALF = (0.5,) * 3
NAMES = ("a", "b", "c")


class Colours(nn.Module):
    """Mean colour -> logits; sees no other image of the batch, unless it is asked for BatchNorm."""

    def __init__(self, batch_norm: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(3) if batch_norm else nn.Identity()
        self.head = nn.Linear(3, 3)
        self.most_images = 10**9  # that fit into the memory
        self.poisoned = []  # calls, counted from 1, whose output is NaN
        self.calls = 0

    def forward(self, images, with_features=False):
        if len(images) > self.most_images:
            raise torch.OutOfMemoryError(f"no room for {len(images)}")
        self.calls += 1
        features = self.norm(images.mean(dim=(2, 3)))
        logits = self.change(self.head(features))
        return (logits, features) if with_features else logits

    def change(self, logits):
        return logits * float("nan") if self.calls in self.poisoned else logits


@pytest.fixture(scope="module")
def image_paths(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(24):
        cv2.imwrite(str(folder / f"{number}.png"), draw.integers(0, 256, (8, 8, 3), np.uint8))
    return [folder / f"{number}.png" for number in range(24)]


def make_training(model, accumulate=1, ema=None):
    optimizer = make_optimizer("adam", model, 0.01, 0.0)
    return Training(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), Averages(ema), accumulate)


def run(training, image_paths, epochs=2, loss_name="auto", weights=None, targets=None):
    values = np.eye(3, dtype=np.float32)[np.arange(24) % 3] if targets is None else targets
    images = Images(image_paths, values, eval_transform(8), 8, weights=weights)
    batches = make_loader(images, EpochOrder(24, 8, True), 0, CPU)
    card = ModelCard("test", 8, "multiclass", NAMES, HALF, HALF, (0.0,) * 3, (1.0,) * 3)
    recipe = Recipe(epochs, 0.01, 0.0, "constant", 1, 0.0, 0, 0)
    objective = Objective(choose_loss(loss_name, "multiclass"))
    return list(fit(training, card, objective, batches, None, lambda predictions: 0.0, recipe, CPU, FLOAT32))


def largest_difference(first, second):
    return max((a - b).abs().max().item() for a, b in zip(first.parameters(), second.parameters(), strict=True))


# A batch in parts


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_parts_of_a_batch_are_one_step_like_the_whole_batch(image_paths, accumulate):
    whole, parts = Colours(), Colours()
    weights = np.random.default_rng(1).random((24, 3)).astype(np.float32)  # unequal: a mean of means would differ
    log = run(make_training(whole), image_paths, weights=weights)
    log_of_parts = run(make_training(parts, accumulate), image_paths, weights=weights)
    assert largest_difference(whole, parts) < 1e-6
    assert log_of_parts[-1].train_loss == pytest.approx(log[-1].train_loss, abs=1e-6)
    assert parts.calls == accumulate * whole.calls


@pytest.mark.parametrize("num_rows", range(1, 40))
def test_parts_cover_a_batch_once_and_hold_two_rows_or_more(num_rows):
    for num_parts in range(1, 20):
        rows = np.arange(num_rows)
        parts = [rows[part] for part in split_rows(num_rows, num_parts)]
        assert np.concatenate(parts).tolist() == rows.tolist()
        assert len(parts) <= num_parts
        assert min(map(len, parts)) >= min(2, num_rows)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


# Memory


def test_a_full_memory_halves_the_parts_until_they_fit_and_trains_the_same(image_paths, capsys):
    whole, small = Colours(), Colours()
    run(make_training(whole), image_paths)
    small.most_images = 3
    training = make_training(small)
    log = run(training, image_paths)
    assert largest_difference(whole, small) < 1e-6
    assert training.accumulate == 4
    assert [result.accumulate for result in log] == [4, 4]
    assert capsys.readouterr().out.count("the memory is full") == 2  # 8 -> 4 -> 2 images


def test_a_second_try_draws_the_same_dropout_as_a_first_one_would(image_paths):
    class Dropping(Colours):
        def change(self, logits):
            return nn.functional.dropout(logits, 0.5, self.training)

    split, full = Dropping(), Dropping()
    run(make_training(split, accumulate=2), image_paths)
    fails = iter([True])

    def full_in_the_first_try(module, inputs, outputs):
        if next(fails, False):
            raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")  # cuDNN's way to say so

    full.register_forward_hook(full_in_the_first_try)
    run(make_training(full), image_paths)
    assert largest_difference(split, full) == 0


def test_a_failed_try_leaves_no_trace_in_batch_norm(image_paths):
    """The first part may have gone through before the memory was full."""
    one, other = Colours(batch_norm=True), Colours(batch_norm=True)
    run(make_training(one, accumulate=2), image_paths, epochs=1)

    other.most_images = 4
    fails = iter([True])

    def full_in_the_second_part(module, inputs):
        if module.calls == 1 and next(fails, False):
            raise torch.OutOfMemoryError("in the second part")

    training = make_training(other, accumulate=1)
    other.most_images = 10**9
    training.accumulate = 2
    handle = other.register_forward_pre_hook(full_in_the_second_part)
    try:
        run(training, image_paths, epochs=1)
    finally:
        handle.remove()
    assert training.accumulate == 4
    assert int(other.norm.num_batches_tracked) == 3 * 4  # three batches in four parts, none of the failed try


def test_a_memory_too_small_for_two_images_is_one_line(image_paths):
    model = Colours()
    model.most_images = 1
    with pytest.raises(UserError, match="full with 2 images: lower image_size"):
        run(make_training(model), image_paths)


def test_a_full_memory_in_the_optimizers_step_is_not_tried_again(image_paths, monkeypatch):
    """Some weights may have changed already."""
    training = make_training(Colours())

    def step(*arguments, **options):
        raise torch.OutOfMemoryError("moments")

    monkeypatch.setattr(training.optimizer, "step", step)
    with pytest.raises(UserError, match="full in the optimizer's step: .* run the same command again"):
        run(training, image_paths)
    assert training.accumulate == 1


def test_prediction_with_a_full_memory_takes_fewer_images_at_a_time(image_paths):
    model, small = Colours(), Colours()
    small.most_images = 3
    images = torch.rand(7, 3, 8, 8)
    expected = forward_views(model, images, [same, same], CPU, FLOAT32)
    assert expected.shape == (2, 7, 3)
    assert torch.allclose(forward_views(small, images, [same, same], CPU, FLOAT32), expected)
    small.most_images = 0
    with pytest.raises(UserError, match="full with 1 image"):
        forward_views(small, images, [same], CPU, FLOAT32)


def test_a_full_memory_is_saved_in_the_state_and_in_the_log(tmp_path, monkeypatch, capsys):
    root = prepare(tmp_path, "multiclass", 60, 20, epochs=2, batch_size=16)
    build = start.make_model

    def build_small(*arguments):
        model = build(*arguments)

        def refuse_many(module, inputs):
            if module.training and len(inputs[0]) > 8:
                raise torch.OutOfMemoryError("too many")

        model.register_forward_pre_hook(refuse_many)
        return model

    monkeypatch.setattr(start, "make_model", build_small)
    train.main(fold="0", root=root)
    assert "batches of 16 are split into 2 parts" in capsys.readouterr().out
    log = pd.read_csv(root / "runs" / "baseline" / "fold0" / "log.csv")
    assert list(log["accumulate"]) == [2, 2]


# Losses that are not finite


def test_a_batch_without_a_finite_loss_is_skipped_counted_and_leaves_no_trace(image_paths):
    poisoned, clean = Colours(batch_norm=True), Colours(batch_norm=True)
    poisoned.poisoned = [2]
    ema = make_ema(poisoned, 0.9)
    training = make_training(poisoned, ema=ema)
    log = run(training, image_paths)
    assert [result.skipped for result in log] == [1, 0]
    assert all(np.isfinite(result.train_loss) for result in log)
    assert len(training.skipped_rows) == 8
    assert {(epoch, batch) for epoch, batch, _ in training.skipped_rows} == {(1, 2)}
    tensors = [*poisoned.state_dict().values(), *ema.state_dict().values()]
    assert all(torch.isfinite(tensor).all() for tensor in tensors)
    assert int(poisoned.norm.num_batches_tracked) == 5  # of six
    run(make_training(clean), image_paths)
    assert largest_difference(poisoned, clean) > 0


def test_a_loss_that_is_finite_with_a_gradient_that_is_not_is_skipped(image_paths):
    class Root(Colours):
        def change(self, logits):
            zero = (self.head.weight - self.head.weight.detach()).sum()
            return logits + (zero.abs().sqrt() if self.calls == 1 else 0)  # sqrt has no slope at 0

    model = Root()
    log = run(make_training(model), image_paths)
    assert log[0].skipped == 1
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_an_epoch_of_skipped_batches_has_no_loss_and_alone_is_warned_of(image_paths, capsys):
    model = Colours()
    model.poisoned = [1, 2, 3, 4]  # of three batches an epoch
    log = run(make_training(model), image_paths)
    assert np.isnan(log[0].train_loss)
    assert np.isfinite(log[1].train_loss)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: epoch 1: nothing was learned")


def test_many_in_a_row_stop_the_training_and_others_do_not(image_paths):
    model = Colours()
    model.poisoned = range(1, MAX_SKIPPED_IN_ROW)  # one fewer
    assert sum(result.skipped for result in run(make_training(model), image_paths, 10)) == MAX_SKIPPED_IN_ROW - 1
    model = Colours()
    model.poisoned = range(5, 1000)
    with pytest.raises(UserError, match=f"not finite, {MAX_SKIPPED_IN_ROW} times in a row: lower lr"):
        run(make_training(model), image_paths, 10)


def test_the_ids_of_skipped_batches_are_saved(tmp_path, monkeypatch):
    root = prepare(tmp_path, "regression", 60, 20, epochs=20, batch_size=16)
    build = start.make_model

    def build_broken(*arguments):
        model = build(*arguments)
        model.head.register_forward_hook(lambda head, inputs, output: output * float("inf") if head.training else None)
        return model

    monkeypatch.setattr(start, "make_model", build_broken)
    with pytest.raises(UserError, match="times in a row"):
        train.main(fold="0", root=root)
    skipped = pd.read_csv(root / "runs" / "baseline" / "fold0" / "skipped.csv", dtype=str)
    ids = pd.read_csv(root / "folds.csv", dtype=str)["id"]
    assert list(skipped.columns) == ["epoch", "batch", "id"]
    assert len(skipped) == 16 * MAX_SKIPPED_IN_ROW
    assert set(skipped["id"]) <= set(ids)


def test_float16_overflows_lower_the_scale_and_name_no_ids(image_paths):
    class Steep(Colours):
        def change(self, logits):
            return 16 * logits

    training = make_training(Steep())
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, enabled=True)
    log = run(training, image_paths, epochs=6)
    assert log[0].skipped > 0
    assert log[-1].skipped == 0
    assert training.skipped_rows == []
    assert training.scaler.get_scale() < 2.0**127


# Loader processes


def loader_of(image_paths, num_workers):
    images = Images(image_paths, np.zeros((24, 1)), eval_transform(8), 8)
    return make_loader(images, EpochOrder(24, 4, True), num_workers, CPU)


def test_a_killed_loader_process_changes_no_batch(image_paths, capsys):
    expected = [batch.indices.tolist() for batch in read_batches(loader_of(image_paths, 0), 1)]
    loader, found = loader_of(image_paths, 2), []
    for batch in read_batches(loader, 1):
        found.append(batch.indices.tolist())
        if len(found) == 2:
            for worker in loader._iterator._workers:
                os.kill(worker.pid, signal.SIGKILL)
                worker.join()
    assert found == expected
    assert "a loader process was killed" in capsys.readouterr().err
    assert [batch.indices.tolist() for batch in read_batches(loader, 1)] == expected


def test_a_loader_process_that_dies_within_a_step_does_not_break_the_step(image_paths, capsys):
    """As when a signal reaches the whole process group: PyTorch's own handler would raise in the middle of anything."""
    loader, found = loader_of(image_paths, 2), []
    for batch in read_batches(loader, 1):
        found.append(batch.indices.tolist())
        if len(found) == 1:
            for worker in loader._iterator._workers:
                os.kill(worker.pid, signal.SIGTERM)
            ends = time.monotonic() + 1
            while time.monotonic() < ends:  # the signal of their death arrives here
                sum(range(1000))
    assert found == [batch.indices.tolist() for batch in read_batches(loader_of(image_paths, 0), 1)]
    assert "a loader process was killed" in capsys.readouterr().err


def test_an_error_of_another_kind_in_a_loader_process_is_raised(image_paths):
    loader = loader_of(image_paths, 1)
    loader.dataset.transform = None  # nothing that a person could do
    with pytest.raises(AttributeError):
        list(read_batches(loader))


def test_too_little_shared_memory_is_said_and_this_process_reads(image_paths, monkeypatch, capsys):
    monkeypatch.setattr(loader_module, "free_shared_memory", lambda: 1000.0)
    assert loader_of(image_paths, 2).num_workers == 0
    assert "shared memory (/dev/shm) has 0 MB free, 2 loader processes need" in capsys.readouterr().err
    assert loader_of(image_paths, 0).num_workers == 0
    assert capsys.readouterr().err == ""
