"""Write embeddings of all images: what a frozen backbone sees in them, as features for stack.py.

Command  python embed.py --backbone resnet18       or --pretrained-path FILE --image-size 224
Reads    folds.csv, data/ (train and test images; out of cache/ those that lie there in full size), pretrained weights
Writes   embeddings.parquet (id, e0...; training rows, then test rows)

The backbone never learned our labels, so its embeddings are out of fold for every row. Those of the folds' own models
are not used: five models trained apart have five unrelated spaces, in which one row of each fold means nothing to the
others, and a model's embeddings of the rows that it trained on know their labels.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kfold.artifacts import Workspace
from kfold.config import Competition, load_competition
from kfold.data.augment import eval_transform
from kfold.data.folds import read_folds
from kfold.data.images import image_paths
from kfold.data.loader import EpochOrder, Images, make_loader, read_batches
from kfold.data.progress import with_bar
from kfold.data.tables import read_test_ids, shorten
from kfold.data.unreduced import UnreducedReader
from kfold.errors import UserError, run_stage
from kfold.files import atomic_write, file_sha256
from kfold.model.build import build_backbone, input_statistics, refuse_unknown_backbone
from kfold.model.weights import ModelCard
from kfold.numbers import whole
from kfold.predictions import ids_sha256
from kfold.report.tables import aligned
from kfold.seeds import seed_of
from kfold.training.precision import choose_device, choose_precision
from kfold.training.predicting import predict_logits, same

ROOT = Path(__file__).resolve().parent
NEXT = "next: python stack.py --embeddings embeddings.parquet"
BATCH_SIZE = 64  # images; without gradients it fits where training fits
NUM_WORKERS = 2


def main(
    backbone: str = "resnet18",
    pretrained_path: str = "",
    image_size: int = 224,
    random_weights: bool = False,
    overwrite: bool = False,
    root: Path = ROOT,
) -> None:
    """Write embeddings.parquet. Raises UserError for an unreadable training image; a test image's row is then NaN."""
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    train_ids, test_ids = read_ids(workspace, facts)
    request = {
        "backbone": backbone,
        "weights": describe_weights(pretrained_path, random_weights),
        "image_size": str(image_size),
        "ids": ids_sha256([*train_ids, *test_ids]),
    }
    if is_done(workspace.embeddings_path, request, overwrite):
        print(f"{workspace.embeddings_path} is already there, nothing to do (--overwrite makes it anew)")
        print(NEXT)
        return
    model, card = build_frozen(backbone, pretrained_path, image_size, random_weights)
    train_dir, test_dir = (workspace.data_path(facts, name) for name in (facts.train_images, facts.test_images))
    cache_dir = workspace.cache_dir()
    started = time.perf_counter()
    train = embed_images(model, card, train_ids, train_dir, facts.image_suffix, cache_dir)
    halfway = time.perf_counter()
    unreadable: dict[int, str] = {}
    test = embed_images(model, card, test_ids, test_dir, facts.image_suffix, cache_dir, unreadable)
    ended = time.perf_counter()
    test[list(unreadable)] = np.nan
    for line in shorten(
        [f"{reason}: id '{test_ids[row]}' has no embedding (NaN)" for row, reason in unreadable.items()]
    ):
        print(f"warning: {line}", file=sys.stderr)
    write_embeddings(workspace.embeddings_path, [*train_ids, *test_ids], np.concatenate([train, test]), request)
    header = ("images", "rows", "columns", "unreadable", "images/s", "minutes")
    lines = cells("training", train, 0, halfway - started), cells("test", test, len(unreadable), ended - halfway)
    print(aligned([header, *lines]))
    size = workspace.embeddings_path.stat().st_size / 1e6
    print(f"{workspace.embeddings_path}: {len(train)} training and {len(test)} test images, {size:.1f} MB\n{NEXT}")


def read_ids(workspace: Workspace, facts: Competition) -> tuple[list[str], list[str]]:
    """The ids of folds.csv and of the test rows. Raises UserError where an id is in both."""
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    test_csv, sample_csv = (workspace.data_path(facts, name) for name in (facts.test_csv, facts.sample_submission_csv))
    test_ids = read_test_ids(test_csv, sample_csv, facts.id_column)
    both = sorted(set(folds.ids) & set(test_ids))
    if both:
        raise UserError(
            f"{test_csv}: {len(both)} ids are also in {facts.train_csv}, the first is '{both[0]}': "
            f"rename them in one of the two, embeddings are joined by id"
        )
    return list(folds.ids), test_ids


def describe_weights(pretrained_path: str, random_weights: bool) -> str:
    if random_weights and pretrained_path:
        raise UserError("--random-weights and --pretrained-path contradict each other: drop one")
    if random_weights:
        return "random"
    if pretrained_path and not Path(pretrained_path).is_file():
        raise UserError(f"--pretrained-path {pretrained_path}: no such file")
    return f"sha256 {file_sha256(Path(pretrained_path))}" if pretrained_path else "pretrained"


def is_done(path: Path, request: dict[str, str], overwrite: bool) -> bool:
    """Whether the file was made as requested. Raises UserError when it was made otherwise."""
    if overwrite or not path.exists():
        return False
    try:
        found = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        raise UserError(f"{path}: damaged: make it anew with --overwrite") from None
    for key, value in request.items():
        if (other := found.get(f"kfold.{key}".encode(), b"none").decode()) != value:
            raise UserError(f"{path}: made with {key} {other[:70]}, now {value[:70]}: make it anew with --overwrite")
    return True


def build_frozen(
    backbone: str, pretrained_path: str, image_size: int, random_weights: bool
) -> tuple[torch.nn.Module, ModelCard]:
    """The backbone without a head, (B, 3, S, S) -> (B, D), and how to feed it."""
    refuse_unknown_backbone(backbone)
    if not 8 <= image_size <= 4096:
        raise UserError(f"--image-size {image_size}: give pixels from 8 to 4096")
    torch.manual_seed(seed_of("embed", backbone))  # of random weights
    model = build_backbone(backbone, image_size, not random_weights, pretrained_path)
    mean, std = input_statistics(model)
    return model, ModelCard(backbone, image_size, "embedding", (), mean, std, (), ())


def embed_images(
    model: torch.nn.Module,
    card: ModelCard,
    ids: list[str],
    image_dir: Path,
    image_suffix: str,
    cache_dir: Path,
    unreadable: dict[int, str] | None = None,
) -> np.ndarray:
    """Embeddings (N, D) float32. Rows of unreadable images go into `unreadable`; without it they raise UserError."""
    device = choose_device()
    paths, refused = image_paths(image_dir, ids, image_suffix)
    if refused and unreadable is None:
        raise UserError(list(refused.values()))
    read, size = UnreducedReader(paths, cache_dir), card.image_size
    images = Images(paths, np.zeros((len(ids), 0)), eval_transform(size), size, read=read)
    loader = make_loader(images, EpochOrder(len(ids), BATCH_SIZE, False), NUM_WORKERS, device)
    batches = with_bar(read_batches(loader), f"embed {image_dir.name}", len(ids))
    on_problem = None if unreadable is None else unreadable.__setitem__
    precision = choose_precision("auto", device)
    features = predict_logits(model.to(device), batches, [same], card, device, precision, on_problem)[0]
    if features.ndim != 2:
        raise UserError(f"backbone '{card.backbone}': gives features of shape {tuple(features.shape)}: use another one")
    if unreadable is not None:
        unreadable.update(refused)
    return features.numpy()


def cells(name: str, values: np.ndarray, num_unreadable: int, seconds: float) -> tuple[str, ...]:
    """A line of the table: how many rows of how many columns (N, D), and how fast they were made."""
    counts = len(values), values.shape[1], num_unreadable
    return name, *map(str, counts), f"{len(values) / seconds:.1f}", f"{seconds / 60:.2f}"


def write_embeddings(path: Path, ids: list[str], values: np.ndarray, request: dict[str, str]) -> None:
    columns = {"id": pa.array(ids, pa.string())}
    columns |= {f"e{place}": pa.array(values[:, place], pa.float32()) for place in range(values.shape[1])}
    table = pa.table(columns).replace_schema_metadata({f"kfold.{key}": value for key, value in request.items()})
    atomic_write(path, lambda temporary: pq.write_table(table, temporary))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18", help="a timm name, or torchvision/<name> (default: resnet18)")
    parser.add_argument("--pretrained-path", default="", help="local weights in the library's names, not a download")
    parser.add_argument("--image-size", type=whole, default=224, help="pixels (default: 224)")
    parser.add_argument("--random-weights", action="store_true", help="untrained features, to try the stage offline")
    parser.add_argument("--overwrite", action="store_true", help="make embeddings.parquet anew")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    run_stage(lambda: main(**vars(arguments)))
