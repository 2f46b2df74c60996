"""Shards of a fold's test rows joined to one file: each id once, all made alike; few rows in memory at a time."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kfold.errors import UserError, list_problems
from kfold.files import atomic_write
from kfold.predictions import PREFIX, ROW_GROUP, metadata_of, stamps_of
from kfold.shards import Shard, all_shards

Paths = Mapping[Shard, Path]  # a shard's test.parquet, in order


def find_problems(
    paths: Paths, ids: pa.Array, batch_size: int, stamps: Mapping[str, str], names: tuple[str, ...]
) -> list[str]:
    """What keeps the shards from being one prediction of all ids, in order of the shards; none where they are.

    stamps, names: what each of them must have, but for its number and the versions.
    """
    problems = []
    for shard, path in paths.items():
        try:
            problems += [f"shard {shard}: {problem}" for problem in odd_file(path, shard, stamps, names)]
        except (OSError, pa.ArrowException) as error:
            problems.append(f"shard {shard}: damaged ({str(error).splitlines()[0]}): predict it again")
    return problems or id_problems({shard: read_ids(path) for shard, path in paths.items()}, ids, batch_size)


def odd_file(path: Path, shard: Shard, stamps: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
    schema, wanted = pq.read_schema(path), {**stamps, "shard": str(shard)}
    found = stamps_of(schema)
    problems = [
        f"its {key} is '{found.get(key, 'none')[:40]}', not '{value[:40]}': predict it again"
        for key, value in wanted.items()
        if key != "versions" and found.get(key) != value
    ]
    if schema.names != ["id", *(PREFIX + name for name in names)]:
        problems.append("its columns are not those of the targets: predict it again")
    return problems


def read_ids(path: Path) -> pa.ChunkedArray:
    return pq.read_table(path, columns=["id"])["id"]


def id_problems(found: Mapping[Shard, pa.ChunkedArray], ids: pa.Array, batch_size: int) -> list[str]:
    """Ids that are missing, there twice or foreign, with their shards; none where each of `ids` is there once.

    Where every shard has the ids of its place, which is the rule, they are compared as they lie; else by an index.
    """
    if all(part.equals(place_of(shard, ids, batch_size)) for shard, part in found.items()) and (
        sorted(found) == all_shards(len(found))
    ):
        return []

    def owner(row: int) -> Shard:
        """The shard whose place it is."""
        shards = all_shards(max(shard.count for shard in found))
        return next(shard for shard in shards if row < shard.rows(len(ids), batch_size).stop)

    rows = pd.DataFrame(
        {
            "id": np.concatenate([part.to_numpy() for part in found.values()]),
            "shard": np.repeat([str(shard) for shard in found], [len(part) for part in found.values()]),
        }
    )
    expected = pd.Index(ids.to_numpy(zero_copy_only=False))
    is_known = rows["id"].isin(expected)
    double = rows[is_known & rows.duplicated("id", keep=False)].groupby("id", sort=False)["shard"].agg(list)
    foreign = rows[~is_known]
    missing = np.flatnonzero(~expected.isin(rows["id"]))
    return [
        *list_problems(missing, lambda row: f"id '{expected[row]}' is in no shard (a gap): predict {owner(row)} again"),
        *list_problems(
            list(double.items()),
            lambda one: f"id '{one[0]}' is in shards {' and '.join(one[1])} (an overlap): predict them again",
        ),
        *list_problems(
            foreign.to_numpy().tolist(), lambda one: f"id '{one[0]}' of shard {one[1]} is foreign: predict it again"
        ),
    ]


def place_of(shard: Shard, ids: pa.Array, batch_size: int) -> pa.ChunkedArray:
    rows = shard.rows(len(ids), batch_size)
    return pa.chunked_array([ids[rows.start : rows.stop]])


def write_merged(path: Path, paths: Paths, stamps: Mapping[str, str]) -> None:
    """The rows of all shards in one prediction file, as `write_predictions` writes them.

    stamps: as they are written, but the versions of the shards where these agree. Raises UserError for a prediction
    that is not finite.
    """
    atomic_write(path, partial(write_groups, paths=paths, stamps=stamps))


def write_groups(path: Path, paths: Paths, stamps: Mapping[str, str]) -> None:
    versions = {stamps_of(pq.read_schema(one))["versions"] for one in paths.values()}
    if len(versions) > 1:
        print(f"{path.parent}: its shards were predicted with {len(versions)} sets of versions: last digits may differ")
    stamps = {**stamps, "versions": min(versions)}
    schema = pq.read_schema(next(iter(paths.values()))).with_metadata(metadata_of(stamps))
    with pq.ParquetWriter(path, schema) as writer:
        for group in row_groups(finite_tables(paths)):
            writer.write_table(group.replace_schema_metadata(schema.metadata), ROW_GROUP)


def finite_tables(paths: Paths) -> Iterator[pa.Table]:
    """The table of each shard in turn. Raises UserError where a prediction is not finite."""
    for path in paths.values():
        table = pq.read_table(path)
        for name in table.column_names[1:]:
            finite = pc.all(pc.is_finite(table[name]), skip_nulls=False).as_py()
            if len(table) and not finite:
                row = np.flatnonzero(~np.isfinite(table[name].to_numpy()))[0]
                raise UserError(
                    f"{path}: id '{table['id'][row]}' has a prediction that is not finite: predict it again"
                )
        yield table


def row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of all tables, ROW_GROUP at a time."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= ROW_GROUP:
            joined = pa.concat_tables(waiting)
            yield joined[:ROW_GROUP]
            waiting = [joined[ROW_GROUP:]]
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting)
