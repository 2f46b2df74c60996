"""What `make bench` runs: the lines of the plan, each a script with its words, in three sizes and for CPU or GPU.

The sizes aim at 40 minutes on two quiet cores (normal) and at ten (quick), by the speeds that such a machine has shown.
A GPU gets more and larger batches: what takes it milliseconds cannot be timed.
"""

SIZES = ("normal", "quick", "full")  # full: normal, and 100,000 images
WITH_PEERS = ("loader.py", "training.py", "five_folds.py", "start.py")  # scripts that take --peers

QUICK = {
    "1 loader 500x375": "loader.py --count 128 --size 64 --batch 32 --rounds 2",
    "1 loader 2000x1500": "loader.py --width 2000 --height 1500 --count 64 --size 64 --batch 32 --rounds 2",
    "2 training resnet18 64": "training.py --size 64 --batch 16 --count 100 --rounds 2",
    "3 inference 500x375": "inference.py --size 64 --count 32 --batch 16 --rounds 2",
    "4 five folds": "five_folds.py --size 32 --count 200 --epochs 1 --rounds 1",
    "5 second level": "second_level.py --rows 1000 --rounds 2",
    "6 start": "start.py --rounds 1",
    "7 scale": "scale.py --counts 200 1000 --rounds 2",
    "8 merge": "merge.py --rows 100000 --rounds 2",
}
NORMAL = {
    "1 loader 500x375": "loader.py --count 1024 --rounds 3",
    "1 loader 2000x1500": "loader.py --width 2000 --height 1500 --count 256 --rounds 3",
    "2 training resnet18 128": "training.py --count 320 --rounds 3",
    "2 training resnet18 224": "training.py --size 224 --batch 32 --count 120 --rounds 3",
    "2 training efficientnet_b0 128": "training.py --backbone efficientnet_b0 --batch 32 --count 160 --rounds 3",
    "2 training efficientnet_b0 224": (
        "training.py --backbone efficientnet_b0 --size 224 --batch 32 --count 80 --rounds 3"
    ),
    "3 inference 500x375": "inference.py --count 64 --rounds 3",
    "3 inference 2000x1500": "inference.py --width 2000 --height 1500 --count 32 --rounds 3",
    "4 five folds": "five_folds.py --count 300 --epochs 2 --rounds 3",
    "4 five folds, peers in bfloat16": "five_folds.py --count 300 --epochs 2 --rounds 1 --matched",
    "5 second level": "second_level.py --rows 5000 --rounds 3",
    "6 start": "start.py --rounds 3",
    "7 scale": "scale.py --counts 1000 10000 --rounds 3",
    "8 merge": "merge.py --rounds 3",
}
ON_A_GPU = {
    "1 loader 500x375": "loader.py --count 8192 --batch 128 --rounds 5",
    "1 loader 2000x1500": "loader.py --width 2000 --height 1500 --count 1024 --batch 128 --rounds 3",
    **{
        f"2 training {backbone} {size}": (
            f"training.py --backbone {backbone} --size {size} --batch 128 --count 8192 --rounds 3"
        )
        for backbone in ("resnet18", "efficientnet_b0")
        for size in (128, 224)
    },
    "3 inference 500x375": "inference.py --count 2048 --batch 128 --rounds 3",
    "3 inference 2000x1500": "inference.py --width 2000 --height 1500 --count 1024 --batch 128 --rounds 3",
    "4 five folds": "five_folds.py --size 128 --batch 64 --count 4096 --rounds 3",
    "4 five folds, peers in bfloat16": "five_folds.py --size 128 --batch 64 --count 4096 --rounds 3 --matched",
}
FULL = {"7 scale": "scale.py --counts 1000 10000 100000 --rounds 1"}


def make_plan(size: str, has_gpu: bool) -> dict[str, list[str]]:
    """Name of a line -> script and words."""
    lines = QUICK if size == "quick" else {**NORMAL, **(ON_A_GPU if has_gpu else {})}
    return {name: words.split() for name, words in {**lines, **(FULL if size == "full" else {})}.items()}
