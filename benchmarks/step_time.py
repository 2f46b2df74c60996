"""What each switch costs a training step: its time over that of plain cross entropy with a linear head, same run.

Command  python benchmarks/step_time.py            or --backbone resnet50 --size 224 --batch 64 on a GPU
Writes   nothing: the table goes to stdout, and from there into benchmarks/README.md

One process, one batch of noise that lies on the device. A round times a few steps of the plain objective and as many of
every switch, one after the other; a switch's ratio is the median over rounds of its time by that of the plain objective
in the same round, so that a slow moment of the machine falls on both.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(next(Path(__file__).resolve().parents[1].glob("*/kfold")).parent))


NUM_CLASSES = 10
PLAIN = "plain"
SWITCHES = (
    "loss=focal", "loss=lovasz", "loss=soft_fbeta", "label_smoothing=0.1", "class_weights=effective_number",
    "ohem_share=0.7", "flooding=0.1", "triplet_weight=1.0", "center_weight=0.001", "l1_penalty=1e-6",
    "mixing=mixup", "mixing=cutmix", "mixing=ricap",
    "head=arcface", "head=subcenter_arcface", "head=cosface", "head=ordinal",
    "pooling=max", "pooling=avg_max", "pooling=concat", "pooling=gem", "pooling=spp", "neck=bnneck",
    "drop_rate=0.3 multi_sample_dropout=5", "drop_path_rate=0.1", "norm=group", "norm=ibn", "zero_gamma=off",
    "freeze_stages=2", "freeze_batch_norm=true",
    "ema_decay=0.999", "clip_grad=1.0", "layer_decay=0.75", "weight_decay=0.01", "accumulate=2",
    "optimizer=adamw weight_decay=0.01", "optimizer=sgd_nesterov", "optimizer=lamb", "optimizer=lion",
    "optimizer=adabelief", "optimizer=adan", "optimizer=adafactor",
)  # fmt: skip
