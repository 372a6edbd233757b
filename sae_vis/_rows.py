"""Whole rows for a page, each once: packed, and chosen where a page cannot hold them all.

A row is a list of token ids. Packed, the ids are places in a list of all ids that occur, the most frequent first, and each
place is a varint (7 bits a byte, the lowest first, the top bit says that more follow): on real text a token is then about
one byte and a third of deflated base64. ``js/rows.js`` is the inverse.
"""

from __future__ import annotations

import base64
import itertools
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sae_vis.utils_fns import varint

BYTES_A_FEATURE = 512  # of a page, for rows
LEAST_BYTES = 196_608  # whatever the number of features: about 1,100 rows of 128 tokens
BYTES_PER_TOKEN = 1.4  # packed, about
TOKENS_A_FILE = 131_072  # of a site: about 180 KB
_COMPRESSION = 9


def packed(rows: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    """The rows as JSON: ``rows`` holds the steps from one number to the next, ``lengths`` one number if all are alike."""
    numbers = sorted(rows)
    lengths = [len(rows[number]) for number in numbers]
    counts = Counter(itertools.chain.from_iterable(rows[number] for number in numbers))
    ids = sorted(counts, key=lambda token: (-counts[token], token))
    codes = {token: varint(place) for place, token in enumerate(ids)}
    data = b"".join(codes[token] for number in numbers for token in rows[number])
    return {
        "rows": [number - before for before, number in itertools.pairwise((0, *numbers))],
        "lengths": lengths[:1] if len(set(lengths)) < 2 else lengths,
        "ids": ids,
        "packed": base64.b64encode(zlib.compress(data, _COMPRESSION)).decode(),
    }


def chosen(rows: Mapping[int, Sequence[int]], examples: Sequence[Sequence[int]]) -> dict[int, Sequence[int]]:
    """The rows that a page holds: those of the examples, the first of every feature before the second of any.

    Args:
        rows: by their numbers.
        examples: of each feature on the page the rows of its examples, the strongest first.
    """
    left = max(LEAST_BYTES, BYTES_A_FEATURE * len(examples)) / BYTES_PER_TOKEN
    taken: dict[int, Sequence[int]] = {}
    for number in itertools.chain.from_iterable(itertools.zip_longest(*examples)):
        if number is None or number in taken or number not in rows:
            continue
        row = rows[number]
        left -= len(row)
        if left < 0:
            break
        taken[number] = row
    return taken


def files(rows: Mapping[int, Sequence[int]]) -> Iterator[dict[int, Sequence[int]]]:
    """All rows, cut into as many as a file of a site should hold, in order of their numbers."""
    part: dict[int, Sequence[int]] = {}
    size = 0
    for number in sorted(rows):
        row = rows[number]
        if part and size + len(row) > TOKENS_A_FILE:
            yield part
            part, size = {}, 0
        part[number] = row
        size += len(row)
    if part:
        yield part


def token_ids(rows: Iterable[Sequence[int]]) -> set[int]:
    """Every token that occurs."""
    return set(itertools.chain.from_iterable(rows))
