"""--find-lr, --overfit-batch and --profile as a person calls them, beside runs of every kind."""

import os
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from interrupted import StopAfter
from safetensors.torch import save_file
from test_pipeline import prepare

import make_folds
import train
from kfold.config import Config
from kfold.errors import Interrupted, UserError
from kfold.files import locked
from kfold.model.heads import OrdinalHead
from kfold.rehearsal import assembled, find_lr, overfit_batch, profile
from kfold.rehearsal.overfit_batch import PLAIN
from kfold.setup import start
from kfold.stopping import Stop
from kfold.training.lr_finder import growing_rates

REHEARSALS = ("find_lr", "overfit_batch", "profile")
WRITTEN = {
    "find_lr": {"lr_range_fold0.csv", "lr_range_fold0.png"},
    "overfit_batch": set(),
    "profile": {"profile.csv", "profile.png"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("base"), "multiclass", 60, 12, epochs=2, batch_size=10)


@pytest.fixture
def root(base, tmp_path):
    """A copy; the images are shared."""
    shutil.copytree(base, tmp_path / "copy", ignore=shutil.ignore_patterns("data"))
    os.symlink(base / "data", tmp_path / "copy" / "data")
    return tmp_path / "copy"


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch):
    rates = [*growing_rates(1e-8, 1e-7, 20), *growing_rates(1e-4, 1, 18)]
    monkeypatch.setattr(find_lr, "growing_rates", lambda: rates)
    monkeypatch.setattr(overfit_batch, "MAX_STEPS", 64)
    monkeypatch.setattr(profile, "TIMED_STEPS", 2)


def rehearse(root, kind, *words, **options):
    train.main(fold="0", overrides=words, root=root, rehearsal=kind, **options)


def content(root: Path) -> dict[str, bytes]:
    """Every file of runs/ but for seals, which list what a rehearsal writes, and locks."""
    paths = [path for path in (root / "runs").rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(root / "runs")): path.read_bytes() for path in paths if path.name != "SHA256SUMS"}


# Runs


def test_before_a_run_nothing_is_registered_so_that_other_settings_may_follow(root, capsys):
    written = set()
    for kind in REHEARSALS:
        rehearse(root, kind, "lr=0.02")
        written |= {f"baseline/{name}" for name in WRITTEN[kind]}
        assert set(content(root)) == written
    train.main(fold="0", overrides=["lr=0.01", "epochs=1"], root=root)
    make_folds.verify(["baseline"], root=root)
    assert "no stage vouches for it" not in capsys.readouterr().out


def test_a_run_that_is_done_begun_or_being_trained_stays_as_it_is(root, capsys):
    train.main(fold="0", overrides=["epochs=1"], name="done", root=root)
    with pytest.raises(Interrupted):
        train.main(fold="0", name="begun", root=root, stop=StopAfter(5))
    before = content(root)
    assert "begun/fold0/state.pt" in before
    for run, kinds in (("done", REHEARSALS), ("begun", ["find_lr"])):
        with locked(root / "runs" / run / "fold0"):
            for kind in kinds:
                rehearse(root, kind, "lr=0.02", name=run)
    after = content(root)
    assert {name: after[name] for name in before} == before
    new = {f"done/{name}" for name in set().union(*WRITTEN.values())} | {f"begun/{name}" for name in WRITTEN["find_lr"]}
    assert set(after) - set(before) == new
    capsys.readouterr()
    train.main(fold="0", overrides=["epochs=1"], name="done", root=root)
    train.main(fold="0", name="begun", root=root)
    output = capsys.readouterr().out
    assert "done before" in output
    assert "goes on from epoch" in output


class Soon(Stop):
    """Due when it is asked the third time."""

    asked = 0

    @property
    def is_due(self) -> bool:
        self.asked += 1
        self.reason = "enough"
        return self.asked == 3


@pytest.mark.parametrize("kind", REHEARSALS)
def test_a_stop_between_two_steps_ends_it_and_writes_nothing(root, kind):
    with pytest.raises(Interrupted):
        rehearse(root, kind, stop=Soon())
    assert not (root / "runs").exists()


def test_what_makes_no_sense_with_it_is_refused(root, monkeypatch, capsys):
    with pytest.raises(UserError, match="--find-lr changes no run: leave out --overwrite"):
        rehearse(root, "find_lr", overwrite=True)
    with pytest.raises(UserError, match="--profile changes no run"):
        rehearse(root, "profile", resume_from=root)
    monkeypatch.setattr(sys, "argv", ["train.py", "--find-lr", "--profile"])
    with pytest.raises(SystemExit):
        train.parse_arguments()
    assert "not allowed with" in capsys.readouterr().err
    for kind in REHEARSALS:
        monkeypatch.setattr(sys, "argv", ["train.py", "lr=1", "--" + kind.replace("_", "-"), "epochs=3"])
        assert (train.parse_arguments().rehearsal, train.parse_arguments().overrides) == (kind, ["lr=1", "epochs=3"])
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert train.parse_arguments().rehearsal == ""


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (
            [
                "optimizer=radam",
                "lr=0.02",
                "backbone_lr=0.5",
                "clip_grad=1",
                "multi_scale=[24,32]",
                "class_weights=inverse_log",
            ],
            REHEARSALS,
        ),
        (
            [
                "optimizer=sgd",
                "lr=0.05",
                "accumulate=2",
                "mixing=[mixup,cutmix]",
                "precision=bfloat16",
                "workers=1",
            ],
            ["overfit_batch", "profile"],
        ),
        (["precision=bfloat16", "accumulate=2", "workers=1"], REHEARSALS),  # mixing hides the fall of so few steps
        (
            [
                "ema_decay=0.9",
                "consistency_weight=1.0",
                "progressive=[16,40]",
                "clean_labels=0.1",
                "clean_labels_from=none",
                "precision=float16",
                "batch_size=4",
            ],
            ["overfit_batch", "profile"],
        ),
    ],
)
def test_they_work_with_number_formats_parts_averages_and_terms(root, words, kinds, capsys):
    for kind in kinds:
        rehearse(root, kind, *words)
    output = capsys.readouterr().out
    assert output.count("<- take this one") == ("find_lr" in kinds)
    assert "learned: loss" in output
    assert "the whole run: " in output


# --find-lr


def test_the_curve_and_both_rates_are_shown_and_training_at_the_suggested_one_works(root, capsys):
    rehearse(root, "find_lr")
    output = capsys.readouterr().out
    largest, careful = [float(line.split("lr=")[1].split()[0]) for line in output.splitlines() if "lr=" in line]
    assert careful == pytest.approx(largest / 10, rel=0.1)
    table = pd.read_csv(root / "runs" / "baseline" / "lr_range_fold0.csv")
    assert list(table.columns) == ["learning_rate", "batch_loss", "smoothed_loss"]
    lowest = table["smoothed_loss"][20:].idxmin()
    assert float(f"{table['learning_rate'][lowest]:.1e}") == largest
    rehearse(root, "find_lr")
    assert capsys.readouterr().out == output  # the same seed, the same curve


def test_with_scale_lr_the_suggested_rate_is_the_one_that_is_scaled(root, capsys):
    """The same curve of rates as they act; what is shown is what `lr` must be for them."""
    rates, curves = [], []
    for words in ([], ["scale_lr=true"]):
        rehearse(root, "find_lr", *words)
        lines = capsys.readouterr().out.splitlines()
        rates.append([float(line.split("lr=")[1].split()[0]) for line in lines if "lr=" in line])
        curves.append((root / "runs" / "baseline" / "lr_range_fold0.csv").read_bytes())
    assert curves[0] == curves[1]
    plain, for_256 = np.array(rates)
    assert for_256 * 10 / 256 == pytest.approx(plain, rel=0.05)  # batches of 10; two digits are shown


def test_the_test_puts_model_optimizer_and_generators_back(root, monkeypatch):
    made = []
    assemble = assembled.assemble

    def remember(*arguments):
        made.append(assemble(*arguments))
        made.append({name: value.clone() for name, value in made[0].training.model.state_dict().items()})
        made.append((torch.get_rng_state(), np.random.get_state()[1].tolist()))
        return made[0]

    monkeypatch.setattr(find_lr, "assemble", remember)
    rehearse(root, "find_lr", "ema_decay=0.9")
    players, weights, generators = made
    assert all(torch.equal(value, weights[name]) for name, value in players.training.model.state_dict().items())
    assert not players.training.optimizer.state
    assert players.training.averages.ema.n_averaged == 0
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.random.get_state()[1].tolist() == generators[1]


def test_a_curve_that_suggests_nothing_is_an_error_and_there_to_look_at(root, monkeypatch):
    monkeypatch.setattr(find_lr, "growing_rates", lambda: growing_rates(1e-12, 1e-11, 25))
    with pytest.raises(UserError, match="no rate can be suggested"):
        rehearse(root, "find_lr")
    assert {path.name for path in (root / "runs" / "baseline").iterdir()} >= WRITTEN["find_lr"]


# --overfit-batch: each part broken in turn


def plant(monkeypatch, name, change):
    """Let the function make something that is broken."""
    place = start if hasattr(start, name) else assembled  # the module that calls it
    whole = getattr(place, name)

    def broken(*arguments, **options):
        made = whole(*arguments, **options)
        return change(made) or made

    monkeypatch.setattr(place, name, broken)


def refused(root, *words):
    with pytest.raises(UserError) as caught:
        rehearse(root, "overfit_batch", *words)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_a_profile_finds_memory_for_the_largest_size(root, monkeypatch):
    seen = []

    def note(fold, batch, most):
        seen.append((batch.images.shape[1:], batch.images.dtype))
        return ""

    monkeypatch.setattr(profile, "describe_largest_batch", note)
    rehearse(root, "profile", "progressive=[16,24,40]", "epochs=3")
    assert seen == [((40, 40, 3), torch.uint8)]


def test_a_sound_fold_is_learned_whatever_softens_its_labels(root, capsys):
    rehearse(
        root, "overfit_batch", "label_smoothing=0.3", "flooding=0.2", "drop_rate=0.6", "augment=heavy", "batch_size=6"
    )
    assert "learned: loss" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["lr=0.003"], ["lr=0.001"], ["loss=focal", "class_weights=inverse_log"]])
def test_the_ordinal_heads_scores_are_learned_though_its_thresholds_move_slowly(root, capsys, words):
    rehearse(root, "overfit_batch", "head=ordinal", *words)
    assert "learned: loss (above the least that the thresholds of head=ordinal allow)" in capsys.readouterr().out


def test_scores_of_the_ordinal_head_that_are_not_learned_are_no_success(root, monkeypatch):
    monkeypatch.setattr(assembled, "make_batches", with_equal_images(assembled.make_batches))
    assert "labels contradict each other" in refused(root, "head=ordinal")
    assert "loss 0.5" in refused(root, "head=ordinal", "lr=1e-6")


def test_an_ordinal_score_is_right_between_its_own_thresholds(monkeypatch):
    head, classes = OrdinalHead(8, 6), torch.arange(6)  # so near each other that the ends are likelier than the midst
    fold = SimpleNamespace(training=SimpleNamespace(model=SimpleNamespace(head=head)))
    for found, is_right in ((classes, True), (classes.roll(1), False), (torch.tensor([0, 1, 2, 3, 4, 4]), False)):
        logits = head.surest(found).detach()
        monkeypatch.setattr(overfit_batch, "logits_of", lambda *_, logits=logits: logits)
        batch = SimpleNamespace(targets=torch.eye(6))
        assert overfit_batch.is_learned(fold, batch, "multiclass") == is_right
    assert not torch.equal(head.surest(classes).argmax(dim=1), classes)


def test_the_whole_batch_is_learned_whatever_share_of_hard_rows_is_asked_for(root, monkeypatch):
    made, whole = [], assembled.make_objective
    monkeypatch.setattr(assembled, "make_objective", lambda *given: made.append(whole(*given)) or made[-1])
    rehearse(root, "overfit_batch", "ohem_share=0.2")
    assert [objective.ohem_share for objective in made] == [1.0]


def test_what_is_not_cleaned_is_said(root, capsys):
    rehearse(root, "find_lr", "clean_labels=0.1", "clean_labels_from=none")
    assert "clean_labels=0.1 is not applied here" in capsys.readouterr().out
    rehearse(root, "overfit_batch", "clean_labels=0.1", "clean_labels_from=none")  # says what it leaves out by itself
    assert "clean_labels" not in capsys.readouterr().out


@pytest.mark.parametrize(("option", "said"), [("--find-lr", "it begins anew"), ("", "finished parts are kept")])
def test_an_interrupted_command_says_what_the_next_start_finds(root, monkeypatch, capsys, option, said):
    shutil.copy(Path(train.__file__), root)
    monkeypatch.setattr(sys, "argv", ["train.py", "--fold", "0", "--time-limit", "0s", *option.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(root / "train.py"), run_name="__main__")
    assert ended.value.code == 75
    assert f"the time limit of 0s is over: run the same command again, {said}" in capsys.readouterr().err


def test_a_cut_chain_is_named(root, monkeypatch):
    def cut(model):
        model.backbone.layer2.register_forward_hook(lambda module, inputs, outputs: outputs.detach())

    plant(monkeypatch, "make_model", cut)
    words = refused(root)
    assert "gradients: none reaches backbone.conv1" in words
    assert "up to backbone.layer2" in words


def test_a_head_of_the_wrong_size_is_named(root, monkeypatch):
    plant(monkeypatch, "make_model", lambda model: setattr(model, "head", torch.nn.Linear(model.head.in_features, 7)))
    assert "head: its logits have the shape (10, 7), the targets (10, 10)" in refused(root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values * 2, "outside 0..1"),
        (lambda values: values * 0.5, "not of sum 1"),
        (lambda values: np.where(values == 0, np.nan, values), "not finite"),
    ],
)
def test_targets_out_of_range_are_named(root, monkeypatch, change, words):
    decode = train.competition.decode_targets

    def broken(*arguments):
        targets = decode(*arguments)
        return replace(targets, values=change(targets.values).astype(np.float32))

    monkeypatch.setattr(train.competition, "decode_targets", broken)
    assert words in refused(root)


def test_everything_frozen_is_named(root, monkeypatch):
    plant(monkeypatch, "make_model", lambda model: model.requires_grad_(False))
    assert "everything is frozen" in refused(root)


def test_a_loss_that_is_not_finite_is_named(root, monkeypatch):
    def spoil(objective):
        whole = objective.loss_function
        return replace(objective, loss_function=lambda logits, targets: whole(logits, targets).log() * float("inf"))

    plant(monkeypatch, "make_objective", spoil)
    assert "the loss is not finite at step 1" in refused(root)


def test_a_rate_that_is_too_small_is_named(root):
    assert "falls, but too slowly" in refused(root, "lr=3e-5")


def test_equal_images_with_different_labels_are_named(root, monkeypatch):
    monkeypatch.setattr(assembled, "make_batches", with_equal_images(assembled.make_batches))
    words = refused(root)
    assert "labels contradict each other: ids '" in words
    assert "are the same image with different labels" in words


def with_equal_images(make_batches):
    def equal(rows, *others):
        return make_batches(replace(rows, train_paths=np.full_like(rows.train_paths, rows.train_paths[0])), *others)

    return equal


def test_what_is_left_out_for_one_batch_are_settings_that_exist_and_fit_each_other():
    assert set(PLAIN) <= set(Config.model_fields)
    Config(**PLAIN)


# --profile


def test_a_trial_of_few_rows_tells_of_the_whole_run(root, capsys):
    rehearse(root, "profile", "limit=12", "batch_size=4")
    output = capsys.readouterr().out
    assert "for 3 folds of 2 epochs on 60 rows" in output
    assert "40 images (as many as a fold has rows)" in output
    table = pd.read_csv(root / "runs" / "baseline-limit12" / "profile.csv")
    assert list(table["part"]) == ["data", "forward", "backward", "optimizer"]
    assert (table["seconds_per_step"] > 0).all()


def test_a_run_is_told_with_the_pseudo_labelled_images_that_come_to_each_real_one(root, monkeypatch):
    gather, told = assembled.gather_rows, []
    monkeypatch.setattr(assembled, "gather_rows", lambda *arguments: replace(gather(*arguments), num_real=20))  # of 40
    monkeypatch.setattr(profile, "describe_run", lambda *arguments: told.append(arguments[3]) or "")
    rehearse(root, "profile")
    assert told == [2.0]


@pytest.mark.parametrize("kind", REHEARSALS)
def test_frozen_stages_stay_frozen_and_the_rest_learns_though_the_first_epoch_is_the_heads(root, kind, monkeypatch):
    seen, step = set(), assembled.trial_step

    def watch(training, *others):
        loss, backbone = step(training, *others), training.model.backbone
        seen.add(
            (backbone.conv1[0].weight.grad is None, backbone.bn1.training, backbone.layer3[0].conv1.weight.grad is None)
        )
        return loss

    monkeypatch.setattr(assembled, "trial_step", watch)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), root / "weights.safetensors")
    words = ["pretrained=true", f"pretrained_path={root}/weights.safetensors", "freeze_stages=1", "freeze_epochs=1"]
    rehearse(root, kind, *words, "lr=0.02")
    assert seen == {(True, False, False)}
