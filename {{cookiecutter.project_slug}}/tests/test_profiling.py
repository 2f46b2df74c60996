from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kfold.data.loader import Batch
from kfold.free_memory import free_memory
from kfold.rehearsal import profile
from kfold.rehearsal.assembled import repeated
from kfold.report.rehearsal_pictures import profile_picture
from kfold.setup.rows import TrainingRows
from kfold.training.profiling import (
    PARTS,
    Stopwatch,
    bytes_kept_for_backward,
    largest_fitting,
    time_parts,
    time_steps,
    watched,
)

CPU = torch.device("cpu")


# Time, with a clock that only work moves


class Clock:
    seconds = 0.0

    def now(self):
        return self.seconds

    def work(self, seconds):
        self.seconds += seconds


class Slow(torch.autograd.Function):
    @staticmethod
    def forward(context, inputs, clock):
        context.clock = clock
        clock.work(5)
        return inputs * 1

    @staticmethod
    def backward(context, gradient):
        context.clock.work(7)
        return gradient, None


class SlowNetwork(nn.Module):
    def __init__(self, clock, with_features):
        super().__init__()
        self.layer, self.clock, self.with_features = nn.Linear(2, 2), clock, with_features

    def forward(self, inputs):
        logits = Slow.apply(self.layer(inputs), self.clock)
        return (logits, inputs) if self.with_features else logits


@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("with_features", [False, True])
def test_each_part_of_a_step_gets_its_own_seconds(num_parts, with_features):
    clock = Clock()
    model = SlowNetwork(clock, with_features)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: clock.work(3))
    batch = SimpleNamespace(images=torch.randn(6, 2))

    def load():
        while True:
            clock.work(2)
            yield batch

    def step(batch):
        optimizer.zero_grad()
        for rows in batch.images.chunk(num_parts):
            outputs = model(rows)
            logits = outputs[0] if with_features else outputs
            clock.work(0.5)  # the loss
            logits.square().sum().backward()
        optimizer.step()

    stopwatch = Stopwatch(CPU, clock.now)
    with watched(stopwatch, model, optimizer):
        assert time_parts(load(), step, 4, 1e9, stopwatch) == 4
    expected = {"data": 8, "forward": 4 * num_parts * 5.5, "backward": 4 * num_parts * 7, "optimizer": 12}
    assert stopwatch.seconds == expected
    assert sum(stopwatch.seconds.values()) == clock.now()
    step(batch)
    assert stopwatch.seconds == expected  # the hooks are gone


def test_timing_ends_at_its_limit_but_not_before_two_steps():
    batches = iter([SimpleNamespace(images=torch.zeros(3, 1))] * 9)
    assert time_steps(batches, lambda batch: None, 5, 1e9, CPU)[1] == 15
    assert time_steps(batches, lambda batch: None, 5, 0.0, CPU)[1] == 6
    assert time_parts(batches, lambda batch: None, 5, 0.0, Stopwatch(CPU)) == 2


@given(st.integers(2, 9), st.integers(0, 5), st.integers(1, 4))
def test_repeated_rows_are_the_same_rows_equally_often_real_ones_first(num_real, num_pseudo, times):
    ids = np.arange(num_real + num_pseudo)
    rows = TrainingRows(ids, ids, ids[:, None], ids[:, None], num_real, ids, ids, ids)
    many = repeated(rows, times)
    assert many.num_real == times * num_real
    assert sorted(many.train_ids) == sorted(ids.tolist() * times)
    assert (many.train_ids[: many.num_real] < num_real).all()
    for values in (many.train_paths, many.train_targets[:, 0], many.train_weights[:, 0]):
        assert np.array_equal(values, many.train_ids)


def test_the_whole_run_counts_every_fold_epoch_and_row():
    # 5 folds of 800 training rows, and 200 validation rows at a third of the cost, ten times at 100 images/s
    assert profile.describe_run(1000, 5, 10, 1.0, 100) == "7m for 5 folds of 10 epochs on 1,000 rows"
    assert profile.describe_run(1000, 5, 10, 2.0, 100).startswith("14m")


def test_the_table_and_the_picture_show_every_part():
    parts = dict(zip(PARTS, (0.1, 0.2, 0.3, 0.4), strict=True))
    table = profile.parts_table(parts)
    assert list(table.columns) == ["part", "seconds_per_step", "percent_of_step"]
    assert tuple(table["part"]) == PARTS
    assert table["percent_of_step"].sum() == pytest.approx(100)
    assert profile_picture(parts, "a $title").startswith(b"\x89PNG\r\n")


# Memory


@given(st.integers(0, 5000), st.integers(2, 3000))
def test_the_largest_batch_fits_and_a_sixteenth_more_does_not(limit, most):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    found = largest_fitting(fits, most)
    best = min(limit, most) if limit >= 2 else 0
    assert found <= best <= found + max(1, found // 16)
    assert (found == most) == (limit >= most)
    assert len(tried) <= 20
    assert max(tried) <= most


def make_fold(device):
    batch = Batch(torch.zeros(4, 2, 2, 3), torch.zeros(4, 2), torch.ones(4, 2), torch.arange(4), [])
    model = nn.Linear(2, 2)
    training = SimpleNamespace(accumulate=3, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    return SimpleNamespace(training=training, device=torch.device(device)), batch


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("too large for 32 bits")])
def test_on_a_gpu_sizes_are_tried_until_memory_is_full_without_splitting(monkeypatch, error):
    def try_step(fold, batch):
        assert fold.training.accumulate == 1
        assert len({len(tensor) for tensor in batch[:4]}) == 1
        if len(batch.images) > 37:
            raise error

    monkeypatch.setattr(profile, "try_step", try_step)
    fold, batch = make_fold("cuda")
    assert "36 images" in profile.describe_largest_batch(fold, batch, 1000)
    assert "20 images (as many as a fold has rows)" in profile.describe_largest_batch(fold, batch, 20)


def test_without_a_gpu_half_of_the_free_memory_is_divided_by_what_an_image_keeps(monkeypatch):
    monkeypatch.setattr(profile, "bytes_kept_for_backward", lambda step, model: 4 * 10e6)
    monkeypatch.setattr(profile, "free_memory", lambda: 8e9)
    text = profile.describe_largest_batch(*make_fold("cpu"), 10_000)
    assert "estimated: 400 images: each keeps 10.0 MB" in text
    assert "half of the 8.0 GB" in text
    monkeypatch.setattr(profile, "free_memory", lambda: float("inf"))
    assert "does not tell" in profile.describe_largest_batch(*make_fold("cpu"), 10_000)


def test_what_is_kept_for_the_backward_pass_grows_with_the_images_and_leaves_out_weights():
    model = nn.Sequential(nn.Linear(8, 1000), nn.Tanh(), nn.Linear(1000, 1))

    def kept(num_rows):
        inputs = torch.randn(num_rows, 8)
        return bytes_kept_for_backward(lambda: model(inputs).sum().backward(), model)

    assert kept(6) == 6 * (8 + 1000) * 4  # the inputs, and Tanh's outputs, which the next layer shares
    assert kept(12) == 2 * kept(6)


def test_free_memory_is_the_least_of_the_machines_and_its_control_groups(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert free_memory(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 400000\n")
    assert free_memory(meminfo, tmp_path) == 900_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(meminfo, tmp_path) == 4000 * 1024
    assert free_memory(tmp_path / "none", tmp_path) > 1e6  # the physical memory
