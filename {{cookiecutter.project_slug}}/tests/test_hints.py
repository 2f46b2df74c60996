"""What a refused setting says of the one that was meant."""

import sys

import pytest
from test_pipeline import prepare

import predict
import train
from kfold.config import Competition, Config, load_config
from kfold.errors import UserError
from kfold.settings import build_settings

FACTS = {"project_name": "x", "task": "multiclass", "target_columns": ["label"]}
MEANT = {  # word -> how its line ends
    "optimizer=AdamW": "not 'AdamW': did you mean adamw?",
    "loss=Focal": "not 'Focal': did you mean focal?",
    "loss=[auto, crossentropy]": ": did you mean cross_entropy?",
    "schedule=one-cycle": ": did you mean one_cycle?",
    "augment=TrivialAugment": ": did you mean trivialaugment?",
    "mixing=mix-up": ": did you mean mixup?",
    "mixing=mixup, cutmix": ": write several as mixing=[mixup,cutmix]",
    "multi_scale=32,40": ": write several as multi_scale=[32,40]",
    "loss=[]": "loss: an empty list, but at least one is needed: leave loss out for [auto]",
    "head=linear,arcface": ": did you mean arcface?",
    "mixup=true": "unknown key 'mixup': did you mean mixing=mixup or mixup_alpha?",
    "ema=0.99": "unknown key 'ema': did you mean select=ema or ema_decay?",
    "size=64": "unknown key 'size': did you mean image_size or batch_size?",
    "schedule=xyzzy": "not 'xyzzy'",
    "mixing=none": "not 'none': to have none, leave mixing out, or write mixing=[]",
    "mixing=": ": to have none, leave mixing out, or write mixing=[]",
    "mixing=false": ": to have none, leave mixing out, or write mixing=[]",
    "multi_scale=off": ": to have none, leave multi_scale out, or write multi_scale=[]",
    "metric=accuracy": "unknown key 'metric': it belongs to competition.yaml: it is the same for all experiments",
    "num_folds=3": "unknown key 'num_folds': it belongs to competition.yaml: it is the same for all experiments",
}


@pytest.mark.parametrize("word", MEANT)
@pytest.mark.parametrize("place", ["file", "words"])
def test_a_wrong_setting_of_an_experiment_says_what_may_be_meant(word, place, tmp_path):
    path = tmp_path / "baseline.yaml"
    path.write_text(word.replace("=", ": ", 1) if place == "file" else "")
    with pytest.raises(UserError) as refusal:
        load_config(path, [word] if place == "words" else [])
    (line,) = refusal.value.problems
    assert line.endswith(MEANT[word])


def test_the_remedy_for_a_list_without_items_works(tmp_path):
    (tmp_path / "x.yaml").write_text("mixing: mixup\n")
    assert load_config(tmp_path / "x.yaml", ["mixing=[]"]).mixing == ()


def test_a_setting_of_experiments_among_the_facts_is_sent_to_its_file():
    with pytest.raises(UserError, match=r"unknown key 'lr': it belongs to configs/<name>.yaml"):
        build_settings(Competition, {**FACTS, "lr": 0.1}, "competition.yaml")
    assert not set(Competition.model_fields) & set(Config.model_fields)


def test_settings_that_wait_for_pseudo_label_are_named_by_the_training_that_does_not_read_them(
    tmp_path, monkeypatch, capsys
):
    root = prepare(tmp_path, "multiclass", 60, 12, pseudo_threshold=0.8)
    monkeypatch.setattr(train, "train_fold", lambda *_: None)
    train.main(fold="0", root=root)
    assert "without pseudo-labels: pseudo_threshold waits for pseudo_label.py --run baseline" in capsys.readouterr().out
    train.main(fold="0", overrides=["pseudo_from=x"], name="other", root=root)
    assert "waits" not in capsys.readouterr().out


# predict.py


@pytest.mark.parametrize("words", [["tta=hflip"], ["--run", "baseline", "tta=hflip", "--overwrite"]])
def test_settings_behind_predict_are_refused_with_the_option_that_is_meant(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["predict.py", *words])
    arguments = predict.parse_arguments()
    assert arguments.run == ["baseline"]
    with pytest.raises(UserError, match=r"^'tta=hflip': settings are given to train.py.*: write --tta hflip$"):
        predict.refuse_settings(arguments.settings)


def test_options_of_predict_are_read_as_before(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["predict.py", "--run", "a", "b", "--tta=hflip", "--weights", "last,ema"])
    arguments = predict.parse_arguments()
    assert (arguments.run, arguments.tta, arguments.weights) == (["a", "b"], "hflip", "last,ema")
    predict.refuse_settings(arguments.settings)
    with pytest.raises(UserError, match="--weights ema"):
        predict.refuse_settings(["select=ema"])
    with pytest.raises(UserError, match="'lr=1'.*leave it out"):
        predict.refuse_settings(["lr=1"])
