"""Test rows in shards for predict.py: which rows a shard has, and the commands that make and join all of them.

A shard is a run of whole batches, so that its models see the very batches that one pass over all rows would show them:
the last digit of a prediction depends on the batch it is in.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kfold.errors import UserError


@dataclass(frozen=True, order=True)
class Shard:
    """number: from 1 to count."""

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def rows(self, num_rows: int, batch_size: int) -> slice:
        """Which of the rows it has: its share of the batches, none where there are more shards than batches."""
        num_batches = -(-num_rows // batch_size)
        first, end = (place * num_batches // self.count for place in (self.number - 1, self.number))
        return slice(min(first * batch_size, num_rows), min(end * batch_size, num_rows))


WHOLE = Shard()


def parse_shard(text: str) -> Shard:
    """`3/16` -> Shard(3, 16). Raises UserError."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", text)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"--shard {text}: write number/count, from 1/16 to 16/16 for 16 shards")
    return Shard(int(match[1]), int(match[2]))


def all_shards(count: int) -> list[Shard]:
    return [Shard(number, count) for number in range(1, count + 1)]


def shard_commands(runs: Sequence[str], count: int) -> list[list[tuple[str, ...]]]:
    """What predicts runs in `count` shards: stages in order, each a list of commands that may run at the same time.

    A command is words for Python in the repository's root. Each can be given again: what is done says so.
    """
    predict = ("predict.py", "--run", *runs)
    shards = [(*predict, "--shard", str(shard)) for shard in all_shards(count)]
    return [[(*predict, "--oof")], shards, [(*predict, "--merge")]]
