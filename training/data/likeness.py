"""Groups of near-duplicates, by perceptual hash, so that no picture has one in another split."""

from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

from worker.pixels import Pixels

BITS = 64
SIDE = 32  # side of the picture that is transformed, pixels
KEPT = 8  # lowest frequencies that the hash uses in each direction
ALIKE = 6  # differing bits at most, of 64: the same photograph, saved, resized or brightened again
BANDS = 8  # bands of 8 bits; two hashes that differ in at most 7 bits agree in at least one band


def perceptual_hash(picture: Pixels) -> int:
    """Return a hash of 64 bits of `picture`, uint8 RGB [h, w, 3].

    A bit is set if the amplitude of its frequency is above the median of the low frequencies.
    """
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:KEPT, :KEPT].reshape(-1)
    bits = low > np.median(low[1:])  # without the first, the mean brightness
    return int(np.packbits(bits).tobytes().hex(), 16)


def groups(hashes: Sequence[int]) -> list[list[int]]:
    """Return the indices of `hashes` in groups of pictures that look alike.

    A group also contains pictures that look alike through others. The groups are sorted, and so are
    the indices in each.
    """
    parent = list(range(len(hashes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    values = np.array(hashes, np.uint64)
    for band in range(BANDS):
        buckets: dict[int, list[int]] = defaultdict(list)
        for i, value in enumerate(hashes):
            buckets[value >> (band * BITS // BANDS) & 0xFF].append(i)
        for bucket in buckets.values():
            members = np.array(bucket)
            for position, i in enumerate(bucket[:-1]):
                others = members[position + 1 :]
                near = np.bitwise_count(values[others] ^ values[i]) <= ALIKE
                for j in others[near].tolist():
                    first, second = sorted((root(i), root(j)))
                    parent[second] = first
    found: dict[int, list[int]] = defaultdict(list)
    for i in range(len(hashes)):
        found[root(i)].append(i)
    return sorted(found.values())
