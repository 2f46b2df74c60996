"""Every random draw is a pure function of whole numbers such as (seed, fold, epoch, sample).

Never of a shared generator: a batch is the same bytes for any number of loader workers, and after a restart.
"""

import hashlib


def seed_of(*parts: int | str) -> int:
    """A seed of 63 bits from the parts; different parts give unrelated seeds (BLAKE2b)."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def batch_seed(seed: int, fold: int, epoch: int, batch: int) -> int:
    """Of everything random in a step of training: mixing, dropout. epoch, batch: from 0."""
    return seed_of(seed, fold, epoch, batch, "batch")
