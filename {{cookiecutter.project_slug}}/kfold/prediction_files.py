"""What predict.py leaves in a fold's folder: predictions, whole or in shards, and a manifest that vouches for them."""

import sys
from collections.abc import Mapping

import numpy as np

from kfold import artifacts
from kfold.artifacts import ALL_DATA
from kfold.inference import Pending, fold_predictions, mix
from kfold.merging import write_merged
from kfold.prediction_job import way_of
from kfold.predictions import Predictions, write_predictions
from kfold.shards import Shard

Facts = dict[str, object]  # of a manifest


def write_fold(fold: Pending, test: np.ndarray, unreadable: Mapping[int, str]) -> None:
    """The fold's oof.parquet (not of the full-data fit) and test.parquet, and its manifest.

    test: (N, C) of all test rows, those of `unreadable` images (row -> reason) included.
    """
    job, path = fold.job, fold.job.workspace.predictions_path(fold.job.run, fold.number, "test")
    put_priors(fold, test, unreadable)
    facts, files, names = write_oof(fold)
    write_predictions(path, Predictions(job.test_ids, test, job.targets.names, stamps_of_fold(fold)))
    facts |= facts_of_test(fold, [str(job.test_ids[row]) for row in unreadable])
    artifacts.write_manifest(path.parent, facts, [path.name, *names], files)
    artifacts.delete_shards(path.parent)  # of an earlier plan


def write_plan(fold: Pending) -> None:
    """The fold's oof.parquet, and in its manifest what the shards of its test rows are to be predicted with."""
    folder = fold.job.workspace.fold_dir(fold.job.run, fold.number)
    facts, files, names = write_oof(fold)
    plan = {"request": dict(fold.request), "predicted_as": way_in_words(fold)}
    artifacts.write_manifest(folder, facts | {"planned": plan}, names, files)


def write_shard(fold: Pending, test: np.ndarray, unreadable: Mapping[int, str]) -> None:
    """A shard's test.parquet, and its manifest, which repeats the plan. test: (n, C), unreadable: of its rows."""
    job, shard = fold.job, fold.job.shard
    folder, ids = job.workspace.shard_dir(job.run, fold.number, shard), job.ids_to_predict
    put_priors(fold, test, unreadable)
    (folder / "manifest.json").unlink(missing_ok=True)
    stamps = stamps_of_fold(fold) | {"shard": str(shard)}
    write_predictions(folder / "test.parquet", Predictions(ids, test, job.targets.names, stamps))
    facts = {
        "run": job.run,
        "shard": str(shard),
        "planned": artifacts.plan_of(job.manifests[fold.number]),
        "unreadable_test_ids": [str(ids[row]) for row in unreadable],
    }
    artifacts.write_manifest(folder, facts, ["test.parquet"])


def merge_fold(fold: Pending, shards: Mapping[Shard, Mapping]) -> None:
    """The fold's test.parquet from its shards, checked before (shard -> manifest), and its manifest.

    The shards go, unless an image could not be read: once it is mended, its shard alone is to be predicted again.
    """
    job, path = fold.job, fold.job.workspace.predictions_path(fold.job.run, fold.number, "test")
    paths = {shard: job.workspace.shard_dir(job.run, fold.number, shard) / path.name for shard in sorted(shards)}
    unreadable = [name for shard in paths for name in shards[shard]["unreadable_test_ids"]]
    facts = dict(job.manifests[fold.number])
    facts.pop("planned", None)
    files = {name: entry for name, entry in facts.pop("files").items() if name != path.name}
    write_merged(path, paths, stamps_of_fold(fold))
    artifacts.write_manifest(path.parent, facts | facts_of_test(fold, unreadable), [path.name], files)
    if not unreadable:
        artifacts.delete_shards(path.parent)


# Parts


def write_oof(fold: Pending) -> tuple[Facts, Mapping, list[str]]:
    """oof.parquet, but of the full-data fit. Returns the manifest's facts, the entries of files that stay, new names.

    What the manifest said of earlier predictions is taken back first: a kill leaves them "not done".
    """
    job, number = fold.job, fold.number
    folder, valid, manifest = job.workspace.fold_dir(job.run, number), job.folds.fold == number, job.manifests[number]
    facts, names = artifacts.forget_predictions(folder, manifest), []
    files = facts.pop("files")
    if number != ALL_DATA:
        path = job.workspace.predictions_path(job.run, number, "oof")
        values = mix([fold_predictions(job, number, name, fold.view)[0] for name in fold.shares], fold.shares)
        fold_column = np.full(len(values), number)
        stamps = stamps_of_fold(fold)
        write_predictions(path, Predictions(job.folds.ids[valid], values, job.targets.names, stamps, fold_column))
        names.append(path.name)
        facts["score"] = job.metric.function(job.targets.values[valid], values)
    facts |= {
        "kind": fold.kind,
        "weights": dict(fold.shares),
        "weights_sha256": artifacts.mix_sha256(fold.shares, manifest["files"]),
        "fitted_on_oof": fold.kind == "climbed",
    }
    return facts, files, names


def facts_of_test(fold: Pending, unreadable_ids: list[str]) -> Facts:
    return {
        "predicted": dict(fold.request),
        "predicted_as": way_in_words(fold),
        "unreadable_test_ids": unreadable_ids,
    }


def way_in_words(fold: Pending) -> str:
    """How this machine predicts the fold."""
    return str(way_of(fold.job, fold.number, fold.job.inference))


def stamps_of_fold(fold: Pending) -> dict[str, str]:
    job = fold.job
    weights_sha256 = artifacts.mix_sha256(fold.shares, job.manifests[fold.number]["files"])
    return artifacts.stamps(job.folds.stamp, job.config, job.facts.task, weights_sha256, fold.kind, fold.view)


def put_priors(fold: Pending, test: np.ndarray, unreadable: Mapping[int, str]) -> None:
    """Rows of `test` whose image cannot be read get the prior of the fold's training rows: none may be missing."""
    job = fold.job
    for row, reason in unreadable.items():
        test[row] = job.targets.values[job.folds.fold != fold.number].mean(axis=0)
        name = job.ids_to_predict[row]
        print(f"warning: {reason}: id '{name}' gets the prior prediction", file=sys.stderr)
