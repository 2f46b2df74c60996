"""For test_distributed.py: `torchrun ranks.py ROOT/NAME ...` trains these runs, one after the other, on all processes;
so does `python ranks.py 2 ROOT/NAME ... + 4 ROOT/NAME ...` on 2, and then on 4.

Each process notes the rows that it trains on, in ROOT/rows/<run>.<process>.txt. Also imported, for runs of one process.
"""

import json
import os
import shutil
import socket
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
os.fsync = lambda handle: None  # as in conftest.py

from interrupted import StopAfter  # noqa: E402

import train  # noqa: E402
from kfold.distributed import by_first, rank, share, together  # noqa: E402
from kfold.errors import Interrupted, UserError  # noqa: E402
from kfold.setup import speed_measure  # noqa: E402
from kfold.stopping import Stop  # noqa: E402
from kfold.training import loop  # noqa: E402

VIT = ["backbone=test_vit", "optimizer=sgd"]  # no BatchNorm; Adam would make much of a last digit
RUNS = {  # of fold 0: 50 rows to train on, 25 to validate
    "plain": [*VIT, "lr=0.05", "ema_decay=0.9", "select=ema"],
    "mixed": [
        *VIT, "lr=0.05", "batch_size=15", "accumulate=2", "mixing=[mixup,cutmix,ricap]", "label_smoothing=0.1",
        "class_weights=effective_number", "l1_penalty=1e-5", "clip_grad=1", "swa_from_epoch=1",
        "schedule=cosine_cycles", "num_cycles=2", "select=snapshots",
    ],
    "frozen": [*VIT, "lr=0.05", "freeze_epochs=1", "pretrained=true"],
    "statistics": ["lr=1e-7", "min_lr=1e-8"],
    "skipped": [*VIT, "lr=1e-9", "min_lr=1e-9", "epochs=4", "early_stopping=1"],
    "unreadable": [*VIT],
    "measured": ["speed=auto", "workers=auto"],
    "resumed": ["epochs=3", "ema_decay=0.9", "drop_rate=0.2", "augment=medium", "save_batches=2"],
    "killed": ["epochs=8", "save_batches=1", "swa_from_epoch=7", "select=swa"],
}  # fmt: skip
RUNS["interrupted"] = RUNS["resumed"]


def words_of(root: Path, run: str) -> list[str]:
    return [*RUNS[run], *([f"pretrained_path={root / 'vit.safetensors'}"] if run == "frozen" else [])]


@contextmanager
def noted(root: Path, run: str):
    """Note the rows of each step; make the third batch of some runs bad, for the last process alone."""
    take_step, refuse_unreadable, count = loop.take_step, loop.refuse_unreadable, []
    is_last = rank() == share()[1] - 1
    folder = root / "rows"
    folder.mkdir(exist_ok=True)

    def step(training, card, objective, batch, *others):
        rows = batch.indices[batch.own].tolist()
        with (folder / f"{run}.{rank()}.txt").open("a") as file:
            file.write(json.dumps([training.epoch, training.batch, rows]) + "\n")
        if run == "skipped" and is_last and training.batch == 2:
            batch = batch._replace(weights=batch.weights * float("nan"))
        take_step(training, card, objective, batch, *others)

    def refuse(batch):
        count.append(1)
        if run == "unreadable" and is_last and len(count) == 3:
            raise UserError("x.png: is empty")
        refuse_unreadable(batch)

    with (
        mock.patch.object(loop, "take_step", step),
        mock.patch.object(loop, "refuse_unreadable", refuse),
        mock.patch.object(speed_measure, "SHORTEST", 0.0),  # seconds of a training that is worth a measurement
    ):
        yield


def train_run(root: Path, run: str, stop: Stop | None = None) -> None:
    name = "resumed" if run == "interrupted" else run
    with noted(root, name):
        train.main(fold="0", overrides=words_of(root, run), name=name, root=root, stop=stop)


def main(places: list[Path]) -> None:
    for root, run in ((place.parent, place.name) for place in places):
        if run == "interrupted":
            stop = StopAfter(6) if rank() else Stop()  # not the first one's: all have to know
            try:
                train_run(root, run, stop)
            except Interrupted as reason:
                by_first(hand_over, root)
                print(f"interrupted: {reason}")
        elif run == "unreadable":
            try:
                train_run(root, run)
            except UserError as error:
                (root / "rows" / f"unreadable.{rank()}.txt").write_text(str(error))
        else:
            train_run(root, run)


def hand_over(root: Path) -> None:
    """The unfinished run to the repositories beside this one, and what was trained on so far."""
    for name in ("one", "four"):
        shutil.copytree(root / "runs" / "resumed", root.with_name(name) / "runs" / "resumed")
    shutil.copytree(root / "rows", root.with_name("stopped") / "rows")


def together_on(places: list[Path]) -> None:
    with together():
        main(places)


def fork(num_processes: int, places: list[Path]) -> bool:
    """Train on so many processes, as torchrun would start them, but the imports (6 s) are made once; did it go well?"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)})
    children = []
    for number in range(num_processes):
        child = os.fork()
        if not child:
            os.environ.update({"RANK": str(number), "LOCAL_RANK": str(number)})
            code = 1
            try:
                together_on(places)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    return not any(os.waitpid(child, 0)[1] for child in children)


if __name__ == "__main__":
    if "RANK" in os.environ:
        together_on([Path(word) for word in sys.argv[1:]])
    else:
        for words in " ".join(sys.argv[1:]).split(" + "):
            number, *names = words.split()
            if not fork(int(number), [Path(name) for name in names]):
                sys.exit(1)
