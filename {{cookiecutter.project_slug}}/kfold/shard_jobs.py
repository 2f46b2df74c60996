"""Shards of a run's test rows, for predict.py: what each is predicted with, and what keeps them from being merged."""

from collections.abc import Mapping

import pyarrow as pa

from kfold import artifacts
from kfold.artifacts import is_predicted
from kfold.engines.inference import Inference
from kfold.errors import UserError
from kfold.inference import Pending
from kfold.inference_choice import runs_here
from kfold.merging import find_problems
from kfold.prediction_files import stamps_of_fold, way_in_words
from kfold.prediction_job import Job
from kfold.predictions import ids_sha256
from kfold.shards import Shard, all_shards

PLAN_AGAIN = "run predict.py --oof --overwrite here, then all shards"


def planned_folds(job: Job) -> list[Pending]:
    """Each fold with the weights and views that its held-out rows were predicted with; sets the job's way.

    Raises UserError where that is not decided, or was decided for other test ids, or for another kind of machine.
    """
    plans = {number: artifacts.plan_of(manifest) for number, manifest in job.manifests.items()}
    requests = [plan.get("request") for plan in plans.values()]
    if not all(requests) or any(request != requests[0] for request in requests):
        raise UserError(f"run {job.run}: run python predict.py --run {job.run} --oof first: it chooses for all shards")
    request = requests[0]
    if request["test_ids"] != ids_sha256(job.test_ids):
        raise UserError(f"run {job.run}: the test ids are others than when it was planned: {PLAN_AGAIN}")
    job.inference = Inference(**request["inference"])
    folds = []
    for number, plan in plans.items():
        fold = Pending(job, number, request["weights"], request["tta"], job.manifests[number]["weights"], request)
        if way_in_words(fold) != plan["predicted_as"]:
            raise UserError(
                f"{fold.folder}: this machine predicts as {way_in_words(fold)}, its held-out rows were predicted as "
                f"{plan['predicted_as']}: {PLAN_AGAIN}"
            )
        folds.append(fold)
    return folds


def shards_to_predict(job: Job, overwrite: bool) -> list[Pending]:
    """The folds whose shard is to be predicted; none where it is done, or all shards are merged."""
    todo = []
    for fold in planned_folds(job):
        refuse_other_count(fold, overwrite)
        # Asked in this order: `overwrite` also mends a shard that is damaged, which is_shard_done refuses.
        if overwrite or not (is_predicted(job.manifests[fold.number], fold.request) or is_shard_done(fold)):
            todo.append(fold)
    if not todo:
        print(f"run {job.run}: shard {job.shard} is predicted already (--overwrite does it again)")
    elif not (job.inference.is_plain or runs_here(job, job.inference, [todo[0].kind])):
        raise UserError(f"run {job.run}: this machine cannot predict as {job.inference}, as --oof chose: {PLAN_AGAIN}")
    return todo


def refuse_other_count(fold: Pending, overwrite: bool) -> None:
    """Raise UserError where the fold has shards of another number of them; `overwrite` deletes those."""
    counts = {shard.count for shard in fold.job.workspace.shards(fold.job.run, fold.number)} - {fold.job.shard.count}
    if counts and not overwrite:
        remedy = "go on with those, or start anew with --overwrite"
        raise UserError(f"{fold.folder}: has shards of {min(counts)}, not of {fold.job.shard.count}: {remedy}")
    if counts:
        artifacts.delete_shards(fold.folder, but=fold.job.shard.count)


def is_shard_done(fold: Pending) -> bool:
    """Raises UserError where its file is damaged."""
    job = fold.job
    folder = job.workspace.shard_dir(job.run, fold.number, job.shard)
    manifest = artifacts.read_manifest(folder)
    if manifest is None:
        return False
    artifacts.verify_files(folder, manifest)
    is_of_plan = manifest["planned"] == artifacts.plan_of(job.manifests[fold.number])
    return is_of_plan and not manifest["unreadable_test_ids"]


# Merge


def find_shards(fold: Pending) -> dict[Shard, dict]:
    """The manifest of each shard that is done, in order."""
    job = fold.job
    there = job.workspace.shards(job.run, fold.number)
    return {shard: artifacts.read_manifest(job.workspace.shard_dir(job.run, fold.number, shard)) for shard in there}


def shard_problems(fold: Pending, shards: Mapping[Shard, Mapping], ids: pa.Array) -> list[str]:
    """What keeps the shards of a fold from being merged; a line names the shard, and the id where it is about one."""
    counts = sorted({shard.count for shard in shards})
    if not counts:
        return [f"{fold.folder}: has no shards: run python predict.py --run {fold.job.run} --shard 1/16, and so on"]
    if len(counts) > 1:
        return [f"{fold.folder}: has shards of {counts[0]} and of {counts[1]}: delete the folders of one of the two"]
    problems = [
        problem
        for shard in all_shards(counts[0])
        for problem in (odd_shard(fold, shard, shards[shard]) if shard in shards else [missing_shard(fold, shard, ids)])
    ]
    paths = {shard: fold.job.workspace.shard_dir(fold.job.run, fold.number, shard) / "test.parquet" for shard in shards}
    return problems or [
        f"{fold.folder}: {problem}"
        for problem in find_problems(paths, ids, fold.job.batch_size, stamps_of_fold(fold), fold.job.targets.names)
    ]


def missing_shard(fold: Pending, shard: Shard, ids: pa.Array) -> str:
    rows = shard.rows(len(ids), fold.job.batch_size)
    first = f" (its first id is '{ids[rows.start]}')" if rows.start < rows.stop else ""
    again = f"run python predict.py --run {fold.job.run} --shard {shard}"
    return f"{fold.folder}: shard {shard} is missing{first}: {again}"


def odd_shard(fold: Pending, shard: Shard, manifest: Mapping) -> list[str]:
    """Why a shard cannot be trusted, or is none of this plan."""
    folder = fold.job.workspace.shard_dir(fold.job.run, fold.number, shard)
    again = f"run python predict.py --run {fold.job.run} --shard {shard} --overwrite"
    plan = artifacts.plan_of(fold.job.manifests[fold.number])
    if (manifest.get("run"), manifest.get("planned")) != (fold.job.run, plan):
        return [f"{folder}: predicted with other weights, views or another way than the held-out rows: {again}"]
    try:
        artifacts.verify_files(folder, manifest)
    except UserError as error:
        return error.problems
    return []
