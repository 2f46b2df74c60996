"""Contradictory choices are refused at the start, each with its reason: the whole of the three tables."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfold.config import Config, load_config
from kfold.conflicts import CONFLICTS, TASK_CONFLICTS, contradictions, task_contradictions
from kfold.data.augment import eval_transform
from kfold.data.sizes import growing_sizes
from kfold.errors import UserError
from kfold.needs import NEEDS, waiting_keys
from kfold.settings import parse_overrides
from kfold.training.schedules import cycle_ends

CASES = {  # words that contradict each other, and what the line must say; without the last word they go together
    "pretrained_path=w.pth pretrained=false": "drop one of them",
    "zero_gamma=on": "zero_gamma=on would overwrite what pretrained weights learned",
    "norm=group freeze_batch_norm=true": "no BatchNorm is left",
    "sync_batch_norm=true freeze_batch_norm=true": "sync_batch_norm with freeze_batch_norm, whose statistics are fixed",
    "norm=group sync_batch_norm=true": "sync_batch_norm with norm=group: no BatchNorm is left",
    "ema_decay=0.9 consistency_weight=1.0 sync_batch_norm=true": "would keep the others waiting",
    "head=arcface prior_bias=true": "head=arcface: that head has no bias",
    "backbone=torchvision/resnet18 pooling=gem": "networks of torchvision have their own",
    "backbone=torchvision/resnet18 drop_path_rate=0.1": "networks of torchvision have their own",
    "freeze_epochs=1 pretrained=false": "freeze_epochs keeps weights as they are",
    "freeze_stages=1 pretrained=false": "freeze_stages keeps weights as they are",
    "freeze_batch_norm=true pretrained=false": "freeze_batch_norm keeps weights as they are",
    "progressive=[128,160] multi_scale=[128,160]": "both choose the size",
    "head=ordinal loss=binary_cross_entropy": "its logits are log probabilities",
    "progressive=[32,16]": "sizes must grow",
    "progressive=[32]": "one size does not grow",
    "image_size=64 multi_scale=[64,64]": "multi_scale=[64,64] is image_size itself",
    "image_size=32 center_crop=0.99": "cuts off less than a pixel",
    "mixing=[mixup,mixup]": "mixing=[mixup,mixup] names one twice",
    "class_weights=inverse_log prior_bias=true": "other shares than the rows have",
    "triplet_weight=1.0 pseudo_from=a pseudo_targets=soft": "triplet_weight with pseudo_targets=soft",
    "center_weight=1.0 pseudo_from=a pseudo_targets=soft": "center_weight with pseudo_targets=soft",
    "progressive=[8,9,10] epochs=2": "more sizes than epochs=2",
    "mixing=mixup plain_epochs=10": "plain_epochs=10 must be fewer than epochs=10",
    "head=cosface mixing=mixup": "head=cosface with mixing: a margin needs one true class",
    "head=arcface label_smoothing=0.1": "head=arcface with label_smoothing",
    "head=arcface pseudo_from=a pseudo_targets=soft": "head=arcface with pseudo_targets=soft",
    "head=arcface loss=lovasz": "a margin head trains with cross_entropy or focal",
    "loss=lovasz mixing=ricap": "loss=lovasz with mixing",
    "loss=lovasz label_smoothing=0.1": "loss=lovasz with label_smoothing",
    "loss=lovasz pseudo_from=a": "pseudo_from with loss=[lovasz]",
    "loss=soft_fbeta label_smoothing=0.1": "no class would be absent",
    "triplet_weight=1.0 mixing=cutmix": "triplet_weight with mixing",
    "center_weight=0.1 mixing=cutmix": "center_weight with mixing",
    "loss=[mse,mse]": "loss=[mse,mse] names one twice",
    "loss=[auto,focal] loss_weights=[1.0]": "give as many as losses",
    "flooding=0.1 ohem_share=0.5": "flooding with ohem_share",
    "flooding=0.1 loss=focal": "floods nothing",
    "loss=soft_fbeta ohem_share=0.5": "ohem_share with loss=[soft_fbeta]",
    "loss=lovasz class_weights=inverse_log": "class_weights with loss=[lovasz]",
    "sampler=balanced class_weights=inverse_log": "rare classes would count twice",
    "sampler=square_root prior_bias=true": "other shares of classes",
    "batch_size=8 accumulate=5": "fewer than 2 images a part",
    "layer_decay=0.8 backbone_lr=0.5": "both slow the backbone down",
    "freeze_epochs=10": "freeze_epochs=10 must be fewer than epochs=10",
    "schedule=cosine_cycles num_cycles=11": "more cycles than epochs",
    "warmup_epochs=3 schedule=one_cycle": "a rise of its own",
    "epochs=4 early_stopping=4": "can never come to pass",
    "min_lr=1.0": "min_lr=1.0 is above lr=0.0003",
    "flooding=0.1 schedule=plateau": "schedule=plateau with flooding: lr would fall",
    "schedule=plateau progressive=[16,32]": "does not compare between sizes",
    "schedule=cosine_cycles progressive=[16,32]": "never saw the last size",
    "schedule=step": "needs step_epochs",
    "schedule=step step_epochs=[3,2]": "step_epochs=[3,2] must grow",
    "early_stopping=2 swa_from_epoch=2": "early_stopping with swa_from_epoch",
    "early_stopping=2 schedule=cosine_cycles": "early_stopping with schedule=cosine_cycles",
    "mixing=mixup early_stopping=2 plain_epochs=2": "early_stopping with plain_epochs",
    "early_stopping=2 freeze_epochs=1": "early_stopping with freeze_epochs",
    "early_stopping=2 progressive=[64,128]": "early_stopping with progressive",
    "pseudo_from=a early_stopping=2": "early_stopping with pseudo_from: a round",
    "min_lr=1e-4 scale_lr=true": "min_lr=0.0001 is above lr=0.0003 x batch_size=32 / 256",
    "augment=randaugment workers=threads": "draws from the one generator that the step uses",
    "cache_folder=/disk cache=off": "nothing is kept there",
    "swa_from_epoch=11": "comes after the last epoch",
    "select=ema": "select=ema needs ema_decay",
    "select=swa": "select=swa needs swa_from_epoch",
    "select=snapshots": "select=snapshots needs schedule=cosine_cycles",
    "pseudo_from=a cooldown_epochs=10": "cooldown_epochs=10 must be fewer than epochs=10",
    "pseudo_from=../a": "pseudo_from: '../a' is no name of a run",
    "distill_from=[a,a]": "distill_from: a is named twice",
}
OF_TASK = {  # words and a task that they contradict
    ("class_weights=inverse_log", "regression"): "class_weights is for classes",
    ("label_smoothing=0.1", "regression"): "label_smoothing is for classes",
    ("sampler=balanced", "regression"): "sampler=balanced is for classes",
    ("prior_bias=true", "regression"): "prior_bias is for classes",
    ("prior_bias=true loss=binary_cross_entropy", "multiclass"): "shares are of a softmax",
    ("head=arcface", "binary"): "head=arcface needs one of several classes",
    ("head=ordinal", "regression"): "head=ordinal needs one of several classes",
    ("triplet_weight=1.0", "multilabel"): "triplet_weight needs one of several classes",
    ("center_weight=1.0", "regression"): "center_weight needs one of several classes",
}


def problems_of(words: list[str], tmp_path) -> list[str]:
    path = tmp_path / "baseline.yaml"
    path.touch()
    try:
        load_config(path, words)
    except UserError as error:
        return error.problems
    return []


@pytest.mark.parametrize("case", CASES)
def test_a_contradiction_is_refused_with_its_reason_and_goes_with_the_last_word(case, tmp_path):
    words = case.split()
    problems = problems_of(words, tmp_path)
    assert len(problems) == 1
    assert CASES[case] in problems[0]
    assert "/baseline.yaml" in problems[0]
    assert problems_of(words[:-1], tmp_path) == [] or words[:-1] == ["schedule=step"]


def test_every_row_of_the_table_has_a_case():
    unchecked = [Config.model_construct(**{**defaults(), **parse(case)}) for case in CASES]
    never = [text for applies, text in CONFLICTS if not any(applies(config) for config in unchecked)]
    assert never == []


def test_a_choice_that_does_nothing_alone_says_what_it_needs(tmp_path):
    for key, (what, _) in NEEDS.items():
        companion = ["schedule=constant"] if key == "min_lr" else []
        (problem,) = problems_of([f"{key}={another(key)}", *companion], tmp_path)
        assert problem.endswith(f" needs {what}")
        assert f": {key}=" in problem


def test_neighbours_of_what_is_refused_are_not(tmp_path):
    for words in (
        "image_size=64 multi_scale=[48]",  # smaller images in training than in prediction
        "image_size=32 center_crop=0.98",
        "schedule=plateau mixing=mixup plain_epochs=2",
        "schedule=plateau multi_scale=[16,32]",
        "schedule=cosine_cycles num_cycles=1 progressive=[16,32]",  # one cycle, which ends with the run
    ):
        assert problems_of(words.split(), tmp_path) == []


def test_a_center_crop_is_refused_exactly_where_it_leaves_the_image_as_it_is(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    for size, share in itertools.product((8, 31, 60, 224), (0.55, 0.9, 0.95, 0.98, 0.985, 0.99, 0.999)):
        whole, cropped = (eval_transform(size, of)(image=image)["image"] for of in (1.0, share))
        problems = problems_of([f"image_size={size}", f"center_crop={share}"], tmp_path)
        assert bool(problems) == np.array_equal(whole, cropped)


@given(st.integers(2, 60), st.integers(2, 6), st.integers(2, 10))
def test_the_first_of_several_snapshots_of_growing_sizes_never_saw_the_last_one(epochs, num_sizes, num_cycles):
    if num_sizes <= epochs and num_cycles <= epochs:
        size_of = growing_sizes(range(num_sizes), epochs)
        sizes = [size_of(epoch, 0) for epoch in range(cycle_ends(epochs, num_cycles)[0])]
        assert num_sizes - 1 not in sizes


# Pseudo-labels


@pytest.mark.parametrize("word", ["pseudo_threshold=0.8", "pseudo_targets=soft", "pseudo_threshold=0.9"])
def test_a_setting_of_pseudo_labels_is_refused_of_a_training_without_them(word, tmp_path):
    (problem,) = problems_of([word], tmp_path)
    assert f"/baseline.yaml + overrides: {word} needs pseudo_from: give it to pseudo_label.py" in problem
    assert problems_of([word, "pseudo_from=a"], tmp_path) == []


def test_in_a_file_it_waits_for_pseudo_label_which_adds_the_teachers(tmp_path):
    (tmp_path / "x.yaml").write_text("pseudo_threshold: 0.8\npseudo_ratio: 1.0\n")
    assert waiting_keys(load_config(tmp_path / "x.yaml")) == ["pseudo_threshold"]
    student = load_config(tmp_path / "x.yaml", ["pseudo_from=a", "pseudo_targets=soft"])
    assert (student.pseudo_threshold, waiting_keys(student)) == (0.8, [])


def another(key: str) -> str:
    """A valid value of a key that is not its default."""
    default = Config.model_fields[key].default
    if isinstance(default, bool):
        return str(not default).lower()
    if isinstance(default, tuple):
        return "[2]" if key == "step_epochs" else "[a]"
    return str(default + 1) if isinstance(default, int) else str(default / 2 or 0.1)


def test_all_contradictions_are_listed_at_once(tmp_path):
    words = ["head=arcface", "mixing=mixup", "label_smoothing=0.1", "flooding=0.1", "ohem_share=0.5", "focal_gamma=1.0"]
    assert len(problems_of(words, tmp_path)) == 4


def test_the_defaults_contradict_nothing_for_any_task():
    assert contradictions(Config()) == []
    for task in ("multiclass", "binary", "multilabel", "regression"):
        assert task_contradictions(Config(), task) == []


@pytest.mark.parametrize(("words", "task"), OF_TASK)
def test_a_choice_that_makes_no_sense_for_the_task_is_refused(words, task):
    config = Config(**parse(words))
    (problem,) = task_contradictions(config, task)
    assert OF_TASK[words, task] in problem
    assert f"task {task}" in problem
    assert task_contradictions(config, "binary" if task == "multiclass" else "multiclass") == []


def test_every_row_of_the_tasks_table_has_a_case():
    cases = [(Config(**parse(words)), task) for words, task in OF_TASK]
    assert all(any(applies(config, task) for config, task in cases) for applies, _ in TASK_CONFLICTS)


def parse(case: str) -> dict:
    values = parse_overrides(case.split())
    for key, value in values.items():
        if isinstance(Config.model_fields[key].default, tuple):
            values[key] = tuple(value) if isinstance(value, list) else (value,)
    return values


def defaults() -> dict:
    return {key: field.default for key, field in Config.model_fields.items()}
