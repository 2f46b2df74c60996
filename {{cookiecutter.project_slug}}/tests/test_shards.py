"""Test rows predicted in shards and merged are the files of one pass, byte for byte; what is not whole is named."""

import itertools
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import thin_out, write_settings

import demo_data
import make_folds
import predict
import train
from kfold import artifacts, inference, merging, prediction_files, predictions
from kfold.artifacts import ALL_DATA, Workspace
from kfold.engines.inference import Inference
from kfold.errors import UserError
from kfold.files import locked
from kfold.merging import find_problems, id_problems, write_merged
from kfold.predictions import Predictions, read_predictions, write_predictions
from kfold.shards import Shard, all_shards, parse_shard, shard_commands

NUM_TEST, BATCH = 13, 4  # test rows, in batches of twice the batch size of training
FOLDS = (0, 1, ALL_DATA)
STAMPS = {"fold_stamp": "f", "config_hash": "c", "weights_sha256": "w", "task": "multiclass", "weights": "last",
          "tta": "none", "versions": "{}"}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two folds and the full-data fit with snapshots, trained and not predicted."""
    root = tmp_path_factory.mktemp("shards")
    settings_of_run = {"epochs": 2, "batch_size": BATCH // 2, "schedule": "cosine_cycles", "num_cycles": 2}
    write_settings(root, "multiclass", cache="off", **settings_of_run)
    facts = root / "competition.yaml"
    facts.write_text(facts.read_text().replace("num_folds: 3", "num_folds: 2"))
    demo_data.main(root=root)
    thin_out(root, 40, NUM_TEST)
    make_folds.main(root=root)
    train.main(root=root)
    train.main(fold="all-data", root=root)
    return root


@pytest.fixture(scope="module")
def in_one_pass(trained, tmp_path_factory):
    """What predict.py leaves without shards, everything chosen out of fold."""
    root = duplicate(trained, tmp_path_factory.mktemp("one-pass"))
    predict.main(weights="last,climbed", tta="none,hflip", root=root)
    return files_of(root)


@pytest.fixture
def root(trained, tmp_path):
    return duplicate(trained, tmp_path)


@pytest.fixture(scope="module")
def planned_once(trained, tmp_path_factory):
    root = duplicate(trained, tmp_path_factory.mktemp("planned"))
    predict.main(weights="last,climbed", tta="none,hflip", root=root, only_oof=True)
    return root


@pytest.fixture
def planned(planned_once, tmp_path):
    return duplicate(planned_once, tmp_path)


@pytest.fixture(scope="module")
def sharded_once(planned_once, tmp_path_factory):
    """All three shards are there."""
    root = duplicate(planned_once, tmp_path_factory.mktemp("sharded"))
    predict_shards(root, all_shards(3))
    return root


@pytest.fixture
def sharded(sharded_once, tmp_path):
    return duplicate(sharded_once, tmp_path)


def duplicate(root: Path, folder: Path) -> Path:
    copy = Path(shutil.copytree(root, folder / "copy", ignore=shutil.ignore_patterns("data")))
    (copy / "data").symlink_to((root / "data").resolve())
    return copy


def files_of(root: Path) -> dict[str, bytes]:
    """Every file of the folds, in folders of the run."""
    run = root / "runs" / "baseline"
    found = [path for path in run.rglob("*") if path.is_file() and path.parent != run]
    return {str(path.relative_to(run)): path.read_bytes() for path in found if not path.name.startswith(".")}


def predict_shards(root: Path, shards) -> None:
    for shard in shards:
        predict.predict_shard("baseline", shard, root=root)


def problems_of(root: Path) -> list[str]:
    with pytest.raises(UserError) as refusal:
        predict.merge_shards("baseline", root=root)
    assert all("\n" not in problem for problem in refusal.value.problems)
    return refusal.value.problems


def shard_dir(root: Path, shard: Shard, number: int = 0) -> Path:
    return Workspace(root).shard_dir("baseline", number, shard)


# Which rows


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 50))
def test_shards_are_whole_batches_and_each_row_is_in_one(num_rows, batch_size, count):
    rows = [shard.rows(num_rows, batch_size) for shard in all_shards(count)]
    assert [row for part in rows for row in range(num_rows)[part]] == list(range(num_rows))
    assert all(part.start % batch_size == 0 or part.start == num_rows for part in rows)
    num_batches = [-(-len(range(num_rows)[part]) // batch_size) for part in rows]
    assert max(num_batches) - min(num_batches) <= 1


@pytest.mark.parametrize("text", ["", "0/3", "4/3", "3", "a/b", "-1/3", "1/0", "1/3/5", "01/3", " 1/3", "1/9999999"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="write number/count"):
        parse_shard(text)


def test_the_commands_are_those_that_predict_py_understands(monkeypatch):
    stages = shard_commands(["baseline", "other"], 12)
    assert [len(stage) for stage in stages] == [1, 12, 1]
    for command in itertools.chain(*stages):
        monkeypatch.setattr(sys, "argv", list(command))
        arguments = predict.parse_arguments()
        assert arguments.run == ["baseline", "other"]
        assert [arguments.oof, bool(arguments.shard), arguments.merge].count(True) == 1
        assert not arguments.shard or parse_shard(arguments.shard) in all_shards(12)


# The whole way


@pytest.mark.parametrize("count", [1, 3, 7])
def test_merged_shards_are_the_bytes_of_one_pass(count, planned, in_one_pass, capsys):
    """Also with more shards (7) than batches (4), and made in any order."""
    shards = all_shards(count)
    random.Random(count).shuffle(shards)
    predict_shards(planned, shards)
    make_folds.verify(["baseline"], planned)
    assert f"{NUM_TEST} ids" not in capsys.readouterr().out
    predict.merge_shards("baseline", root=planned)
    assert f"{count} shards merged, {NUM_TEST} ids" in capsys.readouterr().out
    assert files_of(planned) == in_one_pass
    make_folds.verify(["baseline"], planned)


def test_held_out_rows_are_predicted_once_and_shards_read_their_own_images_alone(root, monkeypatch):
    seen = []
    predict_rows = inference.predict_rows

    def counted(wanted, ids, folder, *rest, **options):
        seen.append((folder, tuple(ids)))
        return predict_rows(wanted, ids, folder, *rest, **options)

    monkeypatch.setattr(inference, "predict_rows", counted)
    predict.main(root=root, only_oof=True)
    assert [folder for folder, _ in seen] == ["train_images"] * 2
    seen.clear()
    predict_shards(root, all_shards(3))
    predict.merge_shards("baseline", root=root)
    assert {folder for folder, _ in seen} == {"test_images"}
    names = [name for _, ids in seen for name in ids]
    assert len(names) == len(set(names)) == NUM_TEST


def test_what_is_done_says_so_and_is_not_done_again(sharded, capsys, monkeypatch):
    monkeypatch.setattr(inference, "predict_rows", None)
    predict.main(root=sharded, only_oof=True)
    predict_shards(sharded, [Shard(2, 3)])
    output = capsys.readouterr().out
    assert "predicted before with weights=" in output
    assert "shard 2/3 is predicted already" in output
    predict.merge_shards("baseline", root=sharded)
    before = files_of(sharded)
    predict.merge_shards("baseline", root=sharded)
    predict_shards(sharded, [Shard(1, 3), Shard(1, 5)])
    predict.main(root=sharded)
    output = capsys.readouterr().out
    assert output.count("nothing to merge") == len(FOLDS)
    assert output.count("is predicted already") == 2
    assert "predicted before" in output
    assert files_of(sharded) == before


def test_a_merge_that_was_killed_before_it_deleted_the_shards_is_done(sharded, in_one_pass, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "delete_shards", lambda folder: None)
        predict.merge_shards("baseline", root=sharded)
    shutil.rmtree(shard_dir(sharded, Shard(2, 3)))
    predict.merge_shards("baseline", root=sharded)
    assert files_of(sharded) == in_one_pass


def test_a_test_image_that_cannot_be_read_keeps_its_shards_until_it_is_mended(planned, in_one_pass, capsys):
    target = (planned / "data").resolve()
    (planned / "data").unlink()
    shutil.copytree(target, planned / "data")
    image = sorted((planned / "data" / "test_images").iterdir())[0]
    content = image.read_bytes()
    image.write_bytes(b"no image")
    predict_shards(planned, all_shards(3))
    predict.merge_shards("baseline", root=planned)
    assert "gets the prior prediction" in capsys.readouterr().err
    manifest = artifacts.read_manifest(Workspace(planned).fold_dir("baseline", 0))
    assert manifest["unreadable_test_ids"] == [image.stem]
    image.write_bytes(content)
    predict_shards(planned, all_shards(3))
    assert capsys.readouterr().out.count("is predicted already") == 2  # the one with the image is made again
    predict.merge_shards("baseline", root=planned)
    assert files_of(planned) == in_one_pass


def test_shards_of_one_fold_can_be_made_at_the_same_time(planned):
    with locked(shard_dir(planned, Shard(1, 3))):
        predict_shards(planned, [Shard(2, 3)])
        with pytest.raises(UserError, match="shard-1-of-3: in use by"):
            predict_shards(planned, [Shard(1, 3)])


# What is refused


def test_without_a_choice_shards_wait_for_it(root):
    for call in (lambda: predict_shards(root, [Shard(1, 3)]), lambda: predict.merge_shards("baseline", root=root)):
        with pytest.raises(UserError, match="predict.py --run baseline --oof first"):
            call()


def test_choices_that_are_given_to_a_shard_are_refused(monkeypatch):
    for words in (["--shard", "1/3", "--tta", "flips"], ["--merge", "--weights", "auto"]):
        monkeypatch.setattr(sys, "argv", ["predict.py", *words])
        with pytest.raises(UserError, match="give it to predict.py --oof"):
            predict.refuse_choices(predict.parse_arguments())


def test_a_missing_shard_is_named_with_its_first_id_and_its_command(sharded):
    ids = read_ids(sharded)
    shutil.rmtree(shard_dir(sharded, Shard(2, 3)))
    (problem,) = problems_of(sharded)
    assert f"fold0: shard 2/3 is missing (its first id is '{ids[BATCH]}')" in problem
    assert "predict.py --run baseline --shard 2/3" in problem


def read_ids(root: Path) -> list[str]:
    lines = (root / "data" / "test.csv").read_text().split()
    return [line.split(",")[0] for line in lines[1:]]


def rewrite(folder: Path, change) -> None:
    """A shard with other rows, and a manifest that vouches for it."""
    path, manifest = folder / "test.parquet", artifacts.read_manifest(folder)
    found = read_predictions(path, predictions.stamps_of(pa.parquet.read_schema(path))["fold_stamp"])
    write_predictions(path, change(found))
    artifacts.write_manifest(folder, manifest, [path.name], manifest["files"])


def with_rows(rows):
    return lambda found: Predictions(found.ids[rows], found.values[rows], found.names, found.stamps)


def with_stamp(**stamps):
    return lambda found: Predictions(found.ids, found.values, found.names, {**found.stamps, **stamps})


def with_ids(change):
    return lambda found: Predictions(change(found.ids), found.values, found.names, found.stamps)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (with_rows([0, 1, 3]), "id '{6}' is in no shard (a gap): predict 2/3 again"),
        (with_rows([0, 1, 2, 3, 3]), "id '{7}' is in shards 2/3 and 2/3 (an overlap)"),
        (with_ids(lambda ids: np.array([*ids[:-1], "foreign"], object)), "id 'foreign' of shard 2/3 is foreign"),
        (with_stamp(fold_stamp="0"), "shard 2/3: its fold_stamp is '0', not"),
        (with_stamp(weights_sha256="0"), "shard 2/3: its weights_sha256 is '0'"),
        (with_stamp(tta="d4"), "shard 2/3: its tta is 'd4'"),
        (with_stamp(weights="swa"), "shard 2/3: its weights is 'swa'"),
        (with_stamp(shard="3/3"), "shard 2/3: its shard is '3/3'"),
        (lambda found: Predictions(found.ids, found.values[:, ::-1], found.names[::-1], found.stamps), "its columns"),
    ],
    ids=["gap", "overlap", "foreign", "fold stamp", "weights", "views", "kind", "number", "columns"],
)
def test_a_shard_that_does_not_fit_its_neighbours_is_named(change, problem, sharded):
    before = files_of(sharded)
    rewrite(shard_dir(sharded, Shard(2, 3)), change)
    ids = dict(enumerate(read_ids(sharded)))
    for row in (6, 7):
        problem = problem.replace("{" + str(row) + "}", ids[row])
    found = problems_of(sharded)
    assert any(problem in line for line in found), found
    assert all("fold0: " in line for line in found)
    assert {name for name in files_of(sharded) if "shard" not in name} == {
        name for name in before if "shard" not in name
    }


def test_the_rows_of_a_neighbour_are_an_overlap_and_a_gap(sharded):
    first, second = (shard_dir(sharded, Shard(number, 3)) for number in (1, 2))
    other = read_predictions(
        first / "test.parquet", artifacts.read_manifest(Workspace(sharded).fold_dir("baseline", 0))["fold_stamp"]
    )
    rewrite(second, lambda found: Predictions(other.ids, other.values, found.names, found.stamps))
    found = problems_of(sharded)
    assert sum("(a gap): predict 2/3 again" in line for line in found) == BATCH
    assert sum("in shards 1/3 and 2/3 (an overlap)" in line for line in found) == BATCH


def test_a_prediction_that_is_not_finite_is_named_and_nothing_is_written(sharded, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(np, "isfinite", lambda values: np.ones(np.shape(values), bool))
        rewrite(
            shard_dir(sharded, Shard(3, 3)),
            lambda found: Predictions(found.ids, found.values * np.nan, found.names, found.stamps),
        )
    (problem,) = problems_of(sharded)
    assert f"shard-3-of-3/test.parquet: id '{read_ids(sharded)[8]}' has a prediction that is not finite" in problem
    assert not Workspace(sharded).predictions_path("baseline", 0, "test").exists()


def test_a_damaged_shard_is_named(sharded):
    path = shard_dir(sharded, Shard(1, 3)) / "test.parquet"
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    for problems in (problems_of(sharded), verify_problems(sharded)):
        (problem,) = problems
        assert f"{path}: damaged" in problem


@pytest.mark.parametrize("name", ["test.parquet", "manifest.json"])
def test_a_damaged_shard_can_be_made_again_as_its_message_says(name, sharded, in_one_pass):
    path = shard_dir(sharded, Shard(1, 3)) / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="--overwrite"):
        predict_shards(sharded, [Shard(1, 3)])
    predict.predict_shard("baseline", Shard(1, 3), overwrite=True, root=sharded)
    predict.merge_shards("baseline", root=sharded)
    assert files_of(sharded) == in_one_pass


def verify_problems(root: Path) -> list[str]:
    with pytest.raises(UserError) as refusal:
        make_folds.verify(["baseline"], root)
    return refusal.value.problems


def test_shards_of_another_number_are_refused_and_taken_away_on_request(sharded):
    with pytest.raises(UserError, match="has shards of 3, not of 2"):
        predict_shards(sharded, [Shard(1, 2)])
    assert len(Workspace(sharded).shards("baseline", 0)) == 3
    predict.predict_shard("baseline", Shard(1, 2), overwrite=True, root=sharded)
    assert Workspace(sharded).shards("baseline", 0) == [Shard(1, 2)]


def test_shards_of_two_numbers_are_not_merged(sharded):
    shutil.copytree(shard_dir(sharded, Shard(1, 3)), shard_dir(sharded, Shard(1, 2)))
    assert "has shards of 2 and of 3" in problems_of(sharded)[0]


def test_a_shard_of_an_earlier_choice_is_predicted_again_and_never_merged(sharded, capsys):
    predict.main(weights="last", tta="flips", root=sharded, only_oof=True)
    for number in FOLDS:
        assert Workspace(sharded).shards("baseline", number) == all_shards(3)
    assert len(problems_of(sharded)) == 3 * len(FOLDS)
    assert "predicted with other weights, views or another way" in problems_of(sharded)[0]
    capsys.readouterr()
    predict_shards(sharded, all_shards(3))
    assert "already" not in capsys.readouterr().out
    predict.merge_shards("baseline", root=sharded)


def test_another_way_than_that_of_the_held_out_rows_is_refused(sharded, monkeypatch):
    other = Inference("bfloat16", channels_last=True)
    monkeypatch.setattr(prediction_files, "way_of", lambda job, number, way: other)
    for call in (
        lambda: predict_shards(sharded, [Shard(1, 3)]),
        lambda: predict.merge_shards("baseline", root=sharded),
    ):
        with pytest.raises(UserError, match="this machine predicts as bfloat16, channels last, its held-out rows"):
            call()


def test_other_test_ids_than_planned_are_refused(sharded):
    data = (sharded / "data").resolve()
    (sharded / "data").unlink()
    shutil.copytree(data, sharded / "data")
    path = sharded / "data" / "test.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert "the test ids are others than when it was planned" in problems_of(sharded)[0]


def test_the_same_ids_in_another_order_are_joined_by_id(sharded, in_one_pass):
    """A prediction file is read by id: what matters is that each is there once."""
    data = (sharded / "data").resolve()
    (sharded / "data").unlink()
    shutil.copytree(data, sharded / "data")
    path = sharded / "data" / "test.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *lines[::-1]]) + "\n")
    predict.merge_shards("baseline", root=sharded)
    assert files_of(sharded) == in_one_pass


def test_training_again_takes_the_shards_away(sharded):
    artifacts.forget_fold(Workspace(sharded), "baseline", 0)
    assert Workspace(sharded).shards("baseline", 0) == []
    assert len(Workspace(sharded).shards("baseline", 1)) == 3


# Any rows, any shards


def write_parts(folder: Path, ids: list[str], count: int, batch_size: int) -> tuple[dict[Shard, Path], np.ndarray]:
    values = np.random.default_rng(len(ids)).random((len(ids), 2), np.float32)
    paths = {}
    for shard in all_shards(count):
        rows = shard.rows(len(ids), batch_size)
        paths[shard] = folder / f"{shard.number}.parquet"
        part = Predictions(np.array(ids[rows], object), values[rows], ("a", "b"), {**STAMPS, "shard": str(shard)})
        write_predictions(paths[shard], part)
    return paths, values


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 9), st.integers(1, 20), st.randoms())
def test_any_cut_is_merged_to_the_bytes_of_one_write(tmp_path_factory, num_rows, batch_size, count, row_group, order):
    folder, ids = tmp_path_factory.mktemp("cut"), [f"id{row}" for row in range(num_rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "ROW_GROUP", row_group)
        patch.setattr(predictions, "ROW_GROUP", row_group)
        paths, values = write_parts(folder, ids, count, batch_size)
        shuffled = order.sample(list(paths.items()), len(paths))
        assert find_problems(dict(shuffled), pa.array(ids), batch_size, STAMPS, ("a", "b")) == []
        write_merged(folder / "merged.parquet", paths, STAMPS)
        write_predictions(folder / "whole.parquet", Predictions(np.array(ids, object), values, ("a", "b"), STAMPS))
    assert (folder / "merged.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()


@given(st.data())
def test_whatever_happens_to_the_ids_of_shards_is_named(data):
    ids = [f"id{row}" for row in range(data.draw(st.integers(1, 30)))]
    count, batch_size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    parts = {shard: ids[shard.rows(len(ids), batch_size)] for shard in all_shards(count)}
    shard = data.draw(st.sampled_from(list(parts)))
    added = data.draw(st.lists(st.sampled_from([*ids, "odd"]), max_size=2))
    dropped = data.draw(st.integers(0, len(parts[shard])))
    parts[shard] = data.draw(st.permutations(parts[shard][dropped:] + added))
    lines = id_problems(
        {one: pa.chunked_array([pa.array(part, pa.string())]) for one, part in parts.items()}, pa.array(ids), batch_size
    )
    every = [name for part in parts.values() for name in part]
    wrong = {name for name in [*ids, "odd"] if every.count(name) != (name in ids)}
    assert {line.split("'")[1] for line in lines if not line.startswith("...")} <= wrong
    assert bool(lines) == bool(wrong)
    for name in sorted(wrong)[:1] if len(wrong) < 10 else []:
        assert any(f"'{name}'" in line for line in lines)


def test_shards_of_other_versions_are_said_and_merged(tmp_path, capsys):
    paths, _ = write_parts(tmp_path, ["a", "b", "c"], 3, 1)
    part = read_predictions(paths[Shard(2, 3)], "f")
    write_predictions(paths[Shard(2, 3)], with_stamp(versions='{"torch": "0"}')(part))
    assert find_problems(paths, pa.array(["a", "b", "c"]), 1, STAMPS, ("a", "b")) == []
    write_merged(tmp_path / "merged.parquet", paths, STAMPS)
    assert "predicted with 2 sets of versions" in capsys.readouterr().out
