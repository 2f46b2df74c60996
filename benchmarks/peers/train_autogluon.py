"""AutoGluon's MultiModalPredictor on one timm network, from random weights: `folds` alone, of common.py's works.

It runs in an environment of its own (requirements-autogluon.txt). Its fit() always fetches pretrained weights by a
network's name (1.6.3, learners/base.py, without asking `pretrained`), but takes a folder of weights as it is: this
script writes one with random weights. Its training cannot be held after each epoch, so that it takes no turns. Beyond
what is named here everything is as AutoGluon presets it: AdamW, layer-wise learning rates, TrivialAugment, validation
twice an epoch, the mean of the best checkpoints.
"""

import json
import tempfile
from pathlib import Path

import pandas as pd
import timm
import torch
from autogluon.multimodal import MultiModalPredictor
from common import options


def main() -> None:
    given = options(__doc__)
    if given.work == "import":
        return
    if given.work != "folds":
        raise SystemExit(f"{given.work}: AutoGluon's training cannot be held after an epoch")
    table = pd.read_csv(given.table)
    table["image"] = [str(given.table.parent.resolve() / name) for name in table["file"]]
    right = 0
    with tempfile.TemporaryDirectory() as name:
        weights = write_random_weights(Path(name) / "weights", given.backbone)
        for fold in sorted(table["fold"].unique()):
            is_held_out = table["fold"] == fold
            right += train(table[~is_held_out], table[is_held_out], weights, Path(name) / f"fold{fold}", given)
    print(json.dumps({"score": right / len(table)}))


def train(table: pd.DataFrame, held_out: pd.DataFrame, weights: Path, folder: Path, given) -> int:
    columns = ["image", "label"]
    predictor = MultiModalPredictor(label="label", problem_type="multiclass", path=str(folder), verbosity=0)
    settings = {
        "model.names": ["timm_image"],
        "model.timm_image.checkpoint_name": str(weights),
        "model.timm_image.image_size": given.size,
        "optim.max_epochs": given.epochs,
        "optim.lr": 3e-4,
        "env.batch_size": given.batch,
        "env.per_gpu_batch_size": given.batch,
        "env.num_workers": given.workers,
        "env.precision": "bf16-mixed" if given.matched else "32",
    }
    predictor.fit(table[columns], tuning_data=held_out[columns], hyperparameters=settings)
    return int((predictor.predict(held_out[columns]) == held_out["label"]).sum())


def write_random_weights(folder: Path, backbone: str) -> Path:
    model = timm.create_model(backbone, pretrained=False, num_classes=0)
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config = {"architecture": backbone, "num_features": model.num_features, "pretrained_cfg": model.default_cfg}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return folder


if __name__ == "__main__":
    main()
