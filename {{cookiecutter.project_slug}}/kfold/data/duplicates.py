"""Copies of an image, exact or near, so that no copy of a validation image is trained on.

Exact: equal sha256 of the files. Near: the 64-bit dHashes differ in at most 3 bits, and the 16 x 16 grey thumbnails
agree: the hash alone also pairs pictures that merely have their light on the same side.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kfold.data.scan import Scan

MAX_BITS = 3  # of 64
MAX_DIFFERENCE = 4.0  # mean over the thumbnail, of 255
MAX_NOISE = 0.25  # root mean square difference, of the standard deviation; unrelated thumbnails have about 1.4
MAX_SHIFT = 32  # neighbours compared in a crowded bucket: 20 s for a million skewed hashes, whose files take 30 min
BAND_BITS = 16


def find_pairs(scans: Sequence[Scan]) -> np.ndarray:
    """Pairs of positions (P, 2) that link all copies of an image, exact and near; bad files have none."""
    usable = np.flatnonzero([not scan.problem for scan in scans])
    if len(usable) < 2:
        return np.zeros((0, 2), np.int64)
    scans = [scans[position] for position in usable]
    hashes = np.array([scan.dhash for scan in scans], np.uint64)
    thumbnails = np.frombuffer(b"".join(scan.thumbnail for scan in scans), np.uint8).reshape(len(scans), -1)
    pairs = np.concatenate([equal_pairs([scan.sha256 for scan in scans]), near_pairs(hashes, thumbnails)])
    return usable[np.unique(pairs, axis=0)]


def equal_pairs(digests: Sequence[bytes]) -> np.ndarray:
    """(first, other) positions for every digest that occurs again."""
    first: dict[bytes, int] = {}
    pairs = [(first.setdefault(digest, position), position) for position, digest in enumerate(digests)]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def near_pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Positions (P, 2), some of them repeated, of near copies among hashes (N,) uint64 and thumbnails (N, 256) uint8.

    Two hashes that differ in 3 bits agree in at least one of four bands of 16 bits (pigeonhole), so only rows that
    share a band are compared: sorted by that band, each with its neighbours.
    """
    found = [np.zeros((0, 2), np.int64)]
    for band in range(64 // BAND_BITS):
        # The band goes to the front, so that within a bucket alike hashes lie side by side.
        turned = np.left_shift(hashes, np.uint64(band * BAND_BITS))
        turned |= np.right_shift(hashes, np.uint64((64 - band * BAND_BITS) % 64)) if band else np.uint64(0)
        order = np.argsort(turned, kind="stable")
        order = order[hashes[order] != 0]  # flat pictures all have hash 0: only sha256 can tell them apart
        buckets = turned[order] >> np.uint64(64 - BAND_BITS)
        left = np.arange(len(order))
        for shift in range(1, MAX_SHIFT + 1):
            left = left[left + shift < len(order)]
            left = left[buckets[left] == buckets[left + shift]]
            if not len(left):
                break
            pairs = np.column_stack([order[left], order[left + shift]])
            near = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]) <= MAX_BITS
            found.append(confirm(pairs[near], thumbnails))
    return np.sort(np.concatenate(found), axis=1)


def confirm(pairs: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """The pairs whose thumbnails agree, the more closely the less contrast they have: night skies all look alike."""
    left, right = thumbnails[pairs[:, 0]].astype(np.int16), thumbnails[pairs[:, 1]].astype(np.int16)
    difference = np.abs(left - right)
    contrast = np.minimum(left.std(axis=1), right.std(axis=1))
    is_near = difference.mean(axis=1) <= MAX_DIFFERENCE
    return pairs[is_near & (np.sqrt((difference**2.0).mean(axis=1)) <= contrast * MAX_NOISE)]


def name_groups(ids: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Per id (N,) the smallest id of the rows that the pairs connect it with; "" for a row without a pair."""
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(ids), len(ids)))
    component = connected_components(links, directed=False)[1]
    names: dict[int, str] = {}
    for position in np.unique(pairs):
        place = int(component[position])
        names[place] = min(names.get(place, ids[position]), ids[position])
    paired = np.zeros(len(ids), bool)
    paired[pairs.ravel()] = True
    return np.array(
        [names[place] if is_paired else "" for place, is_paired in zip(component, paired, strict=True)], object
    )
