"""A long training needs no more memory and open files at its end than after its first epochs."""

import os
from pathlib import Path

import pytest
from reliability import count
from test_pipeline import prepare

import train
from kfold.training.saver import Saver

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="counts in /proc"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # 4 loader processes, on purpose
]
FIRST_EPOCHS = 5  # until caches are filled


def processes() -> list[str]:
    """This process and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [str(os.getpid()), *children]


def memory_and_files() -> tuple[int, int, int]:
    """KiB that belong to these processes (shared pages by their share), open files, and files in shared memory."""
    memory = num_files = 0
    for process in processes():
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        memory += int(rollup.split("Pss:")[1].split()[0])
        num_files += len(os.listdir(f"/proc/{process}/fd"))
    return memory, num_files, len(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else 0


def test_memory_and_open_files_stay_flat_over_a_long_training(tmp_path, monkeypatch, figures):
    epochs, seen, save = count(14, 50), [], Saver.save
    words = {"ema_decay": 0.9, "swa_from_epoch": 2, "schedule": "cosine_cycles", "num_cycles": 2, "workers": 4}
    root = prepare(tmp_path, "multiclass", 120, 20, epochs=epochs, batch_size=16, **words)

    def save_and_look(saver):
        save(saver)
        seen.append(memory_and_files())

    monkeypatch.setattr(Saver, "save", save_and_look)
    train.main(fold="0", root=root)
    assert len(seen) == epochs
    assert len(processes()) < 20
    settled = seen[FIRST_EPOCHS:]
    third = len(settled) // 3
    first, last = (sum(memory for memory, _, _ in part) / len(part) for part in (settled[:third], settled[-third:]))
    growth = last / first - 1
    assert growth < 0.05, seen
    assert len({num_files for _, num_files, _ in settled}) == 1, seen
    assert len({num_shared for _, _, num_shared in settled}) == 1, seen
    figures(
        f"{epochs} epochs with 4 loader processes: memory {100 * growth:+.2f}% from {first / 1024:.0f} MiB, "
        f"open files flat at {settled[-1][1]}"
    )
