"""The order of the rows: a new permutation in every epoch, as a pure function of seed and step.

The permutation is a small block cipher on row numbers: four rounds of Simon (Beaulieu et al. 2013,
eprint.iacr.org/2013/404), applied again until the result is a row (cycle walking, Black and Rogaway
2002). `grain`, which older versions used, computes the same permutation (except for 65,537 rows,
of which it repeats one), so their runs resume with the rows that come next.
"""

import functools
from collections.abc import Callable

import numpy as np

_ROUNDS = 4


def batch_order(rows: int, batch: int, seed: int) -> Callable[[int], np.ndarray]:
    """step -> the rows [batch] of that step.

    Epochs follow each other without a gap: a batch may hold the end of one and the start of the
    next. A resumed run gets the same rows.
    """
    first = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])

    @functools.lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        return _permutation(rows, (first + epoch) % 2**32)

    def rows_of(step: int) -> np.ndarray:
        epochs, places = np.divmod(np.arange(step * batch, (step + 1) * batch), rows)
        parts = [permutation(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(parts)

    return rows_of


def _permutation(rows: int, seed: int) -> np.ndarray:
    width = max(8, ((rows - 1).bit_length() + 1) // 2)  # bits of half a block
    mask = (1 << width) - 1
    block = np.arange(1 << 2 * width)
    left, right = block >> width, block & mask
    for key in _seed_words(seed, _ROUNDS):
        rotated = {n: (right << n | right >> width - n) & mask for n in (1, 2, 8)}
        left, right = right, left ^ (rotated[1] & rotated[8] ^ rotated[2]) ^ (key & mask)
    image = left << width | right
    # Walks all cycles at once: `jump` takes 1, 2, 4, ... steps and stops at the first row.
    found, jump = image[:rows], np.where(block < rows, block, image)
    while (found >= rows).any():
        found, jump = jump[found], jump[jump]
    return found


def _seed_words(seed: int, count: int) -> list[int]:
    """32-bit words from a seed, as std::seed_seq of C++ makes them."""
    middle = (count - 1) // 2  # for fewer than 7 words
    near, far = (count - middle) // 2, (count - middle) // 2 + middle
    words = [0x8B8B8B8B] * count
    for k in range(2 * count):
        here, there, before = k % count, (k + near) % count, (k - 1) % count
        if k < count:
            mixed = words[here] ^ words[there] ^ words[before]
            first = 1664525 * (mixed ^ mixed >> 27)
            second = first + here + {0: 1, 1: seed}.get(k, 0)
            words[there] += first
            words[(k + far) % count] += second
        else:
            mixed = (words[here] + words[there] + words[before]) % 2**32
            first = 1566083941 * (mixed ^ mixed >> 27) % 2**32
            second = (first - here) % 2**32
            words[there] ^= first
            words[(k + far) % count] ^= second
        words[here] = second
        words = [word % 2**32 for word in words]
    return words
