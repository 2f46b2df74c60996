import pytest
import torch
from torch import nn

from kfold.errors import UserError
from kfold.model.network import Network
from kfold.training.overfit import (
    MAX_STEPS,
    conflicting_labels,
    explain_failure,
    is_all_right,
    learn_batch,
    refuse_frozen,
    refuse_idle_optimizer,
    refuse_odd_targets,
    refuse_wrong_head,
    trained_modules,
)

IDS = tuple("abcdef")


def one_hot(*classes):
    return nn.functional.one_hot(torch.tensor(classes), 3).float()


# Targets and head


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel", "regression"])
def test_targets_that_a_task_may_have_pass(task):
    targets = {"multiclass": one_hot(0, 1, 2), "regression": torch.tensor([[-7.0], [1e6]])}
    refuse_odd_targets(targets.get(task, torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])), IDS, task)


@pytest.mark.parametrize(
    ("value", "task", "words"),
    [
        (float("nan"), "regression", "1 of 3 rows are not finite, the first is id 'b'"),
        (float("inf"), "multiclass", "not finite"),
        (2.0, "multiclass", "outside 0..1"),
        (-1.0, "multilabel", "outside 0..1"),
        (1.0, "multiclass", r"not of sum 1, the first is id 'b' \(1, 1, 0\)"),
    ],
)
def test_targets_out_of_range_are_refused_with_id_and_row(value, task, words):
    targets = one_hot(0, 1, 2)
    targets[1, 0] = value
    with pytest.raises(UserError, match=words):
        refuse_odd_targets(targets, IDS, task)


def test_a_head_of_another_size_is_refused():
    with pytest.raises(UserError, match=r"logits have the shape \(4, 2\), the targets \(4, 3\).*3 outputs"):
        refuse_wrong_head(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(UserError, match="not finite"):
        refuse_wrong_head(torch.full((4, 3), float("inf")), torch.zeros(4, 3))


def test_a_frozen_network_is_refused_and_so_is_an_optimizer_of_other_weights():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(UserError, match="the optimizer has none of the model's weights"):
        refuse_idle_optimizer(model, optimizer)
    with pytest.raises(UserError, match="no weight has requires_grad"):
        refuse_frozen(model.requires_grad_(False))


# Gradients


class Cut(nn.Module):
    def forward(self, inputs):
        return inputs.detach()


class Residual(nn.Module):
    """Its branch starts at zero, as the last BatchNorm of a ResNet's block does."""

    def __init__(self):
        super().__init__()
        self.inner, self.gate, self.unused = nn.Linear(4, 4), nn.Parameter(torch.zeros(())), nn.Linear(1, 1)

    def forward(self, inputs):
        return inputs + self.gate * self.inner(inputs)


def make_network(*layers):
    torch.manual_seed(0)
    return Network(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), *layers), nn.Linear(4, 3))


def make_step(model, lr, targets=None):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(6, 4, generator=generator)
    targets = one_hot(0, 1, 2, 0, 1, 2) if targets is None else targets
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def step():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def test_a_whole_network_learns_and_no_module_is_named():
    model = make_network()
    losses, silent = learn_batch(make_step(model, 0.05), model, 0.01, MAX_STEPS)
    assert losses[-1] < 0.01
    assert min(losses[:-1]) >= 0.01
    assert silent == []


@pytest.mark.parametrize(("depth", "until"), [(1, ""), (2, " and the 1 after it, up to backbone.2")])
def test_a_cut_chain_is_refused_though_the_rest_could_learn_the_batch(depth, until):
    layers = [nn.Linear(4, 4)] * (depth - 1)
    model = make_network(*layers, Cut())
    with pytest.raises(UserError, match=rf"none reaches backbone\.0{until} \(all are zero or None\)"):
        learn_batch(make_step(model, 0.05), model, 0.01, MAX_STEPS)


def test_a_branch_that_starts_at_zero_is_alive_and_a_module_that_is_unused_is_named():
    model = make_network(Residual())
    losses, silent = learn_batch(make_step(model, 0.05), model, 0.01, MAX_STEPS)
    assert losses[-1] < 0.01
    assert silent == ["backbone.2.unused"]
    assert list(trained_modules(model)) == ["backbone.0", "backbone.2", "backbone.2.inner", "backbone.2.unused", "head"]


def test_frozen_modules_are_not_missed():
    model = make_network()
    model.backbone.requires_grad_(False)
    losses, silent = learn_batch(make_step(model, 0.1), model, 0.01, 1000)
    assert (losses[-1] < 0.01, silent) == (True, [])


# Reasons


def explained(lr, targets=None, layers=(), steps=MAX_STEPS):
    model = make_network(*layers)
    losses, silent = learn_batch(make_step(model, lr, targets), model, 0.01, steps)
    assert not losses[-1] < 0.01
    return explain_failure(losses, silent, [], lr)


def test_each_way_to_fail_has_its_own_reason():
    assert "falls, but too slowly" in explained(3e-3)
    assert "falls, but too slowly" in explained(1e-6)
    assert "hardly moves" in explained(1e-12)
    assert "too large" in explained(300.0)
    assert "stopped falling" in explained(0.05, one_hot(0, 1, 2, 0, 1, 2) * 0.6 + 0.4 / 3)
    assert "--find-lr" in explained(1e-12)


def test_a_loss_that_jumped_on_its_way_down_speaks_of_a_rate_that_is_too_large():
    calm = [1.0] * 20 + [0.5] * 180
    assert "stopped falling" in explain_failure(calm, [], [], 0.1)
    assert "rises or jumps" in explain_failure([*calm[:30], 2.1, *calm[31:]], [], [], 0.1)


def test_a_loss_that_is_not_finite_ends_it_at_once_with_the_step():
    losses = iter([2.0, 1.9, float("nan")])
    model = make_network()
    seen, _ = learn_batch(lambda: next(losses), model, 0.01, MAX_STEPS)
    assert "not finite at step 3" in explain_failure(seen, [], [], 0.1)


def test_labels_that_contradict_each_other_are_named_before_the_rate():
    images = torch.arange(4 * 12, dtype=torch.uint8).reshape(4, 2, 2, 3)
    images[3] = images[1]
    assert conflicting_labels(images, one_hot(0, 1, 2, 1), IDS) == []
    conflicts = conflicting_labels(images, one_hot(0, 1, 2, 0), IDS)
    assert conflicts == ["ids 'b' and 'd' are the same image with different labels"]
    assert "ids 'b' and 'd'" in explain_failure([2.0] * 200, [], conflicts, 0.1)


def test_every_label_right_is_told_from_one_that_is_wrong():
    assert is_all_right(one_hot(0, 1, 2) - 0.5, one_hot(0, 1, 2), "multiclass")
    assert not is_all_right(one_hot(0, 1, 1), one_hot(0, 1, 2), "multiclass")
    assert is_all_right(torch.tensor([[-1.0, 2.0]]), torch.tensor([[0.0, 1.0]]), "multilabel")
    assert not is_all_right(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]]), "multilabel")
    assert is_all_right(torch.tensor([[0.05], [1.0]]), torch.tensor([[0.0], [1.1]]), "regression")
    assert not is_all_right(torch.tensor([[0.0], [0.8]]), torch.tensor([[0.0], [1.0]]), "regression")
