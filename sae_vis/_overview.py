"""What the overview of a page shows and searches: small columns of every feature, made while the page is written.

Features are taken one after the other, each looked at once. Kept are a few numbers and token ids of each, and for every token
the places of the features whose examples show it. On the page that is ``overview`` (the columns) and ``examples`` (the
places), both deflated; ``js/overview.js`` and ``js/search.js`` read them. A row is the place of a feature among all.

``examples`` is cut into blocks of some thousand tokens that follow each other, so that a search inflates only the blocks that
it needs. A block is a row of integers (LEB128): for each token the difference to the token before, how many rows show it, and
the difference of each row to the row before.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import operator
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sae_vis import _page
from sae_vis.utils_fns import varint

MOST_ID = 2**31 - 1
MOST_TOKENS = 20  # of a feature's top tokens that are kept
BLOCK_BYTES = 32_000  # of a block before it is deflated, about
FILE_BYTES = 2_000_000  # of blocks in one file of a site, at most about
EXAMPLE_BYTES = 500  # of all blocks for each feature, at most: beyond, only the top examples are searched


# --- the numbers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A column of numbers: what it is called, and how it is read from a feature (None where there is none)."""

    label: str
    value: Callable[[Any], float | None]
    log: bool = False
    digits: int = 4  # significant ones that are kept, at least
    factor: float = 1.0  # what it is shown as


def logit_kurtosis(feature: Any) -> float | None:
    """The kurtosis (not minus 3) of the logit weights: as stored, else from the middles of their histogram's bins."""
    logits = feature.logits
    stored: float | None = getattr(logits, "kurtosis", None)
    if logits is None or stored is not None:
        return stored
    edges, heights = logits.histogram.bar_edges, logits.histogram.bar_heights
    total = sum(heights)
    if not total:
        return None
    low, span = edges[0], edges[-1] - edges[0]  # the kurtosis has no unit: in one of the edges' own, nothing overflows
    middles = [((left - low) / span + (right - low) / span) / 2 for left, right in itertools.pairwise(edges)]
    mean = sum(n * middle for n, middle in zip(heights, middles, strict=True)) / total
    squares = [(middle - mean) ** 2 for middle in middles]
    variance = sum(n * square for n, square in zip(heights, squares, strict=True)) / total
    fourth = sum(n * square * square for n, square in zip(heights, squares, strict=True)) / total
    return fourth / variance**2 if variance and variance**2 else None


TWIN_COSINE = 0.95  # a larger one with another decoder direction makes a duplicate


def nearest_direction(feature: Any) -> tuple[int | None, float | None]:
    """The feature of the whole dictionary with the largest cosine of decoder directions, ties to the lower id, and the cosine."""
    nearest = getattr(getattr(feature, "neighbours", None), "nearest", None)
    return (nearest.indices[0], nearest.cosine[0]) if nearest is not None and nearest.indices else (None, None)


def twin(feature: Any) -> int | None:
    """The feature that this one duplicates, None if there is none."""
    index, cosine = nearest_direction(feature)
    return index if cosine is not None and cosine > TWIN_COSINE else None


NUMBERS: dict[str, Number] = {
    "density": Number("density", lambda feature: feature.activations.density, log=True, factor=100.0),
    "n_active": Number("active", lambda feature: feature.activations.n_active, log=True, digits=17),
    "max": Number("max", lambda feature: feature.activations.max, log=True),
    "mean": Number("mean", lambda feature: feature.activations.mean, log=True),
    "logit_kurtosis": Number("kurtosis of the logit weights", logit_kurtosis, log=True),
    "skewness": Number("skewness", lambda feature: feature.activations.skewness, log=True),
    "kurtosis": Number("kurtosis", lambda feature: feature.activations.kurtosis, log=True),
    "map_x": Number("map x", lambda feature: getattr(feature.direction, "x", None), digits=5),
    "map_y": Number("map y", lambda feature: getattr(feature.direction, "y", None), digits=5),
    "nearest_cosine": Number(
        "cosine of the nearest direction", lambda feature: nearest_direction(feature)[1], digits=5
    ),
    "twin": Number("twin", twin, digits=17),
    "decoder_norm": Number("decoder norm", lambda feature: getattr(feature, "decoder_norm", None)),
}


# --- the tokens ------------------------------------------------------------------------------------------------------


def top_tokens(feature: Any) -> list[int]:
    """The tokens that a feature fires on: of its table of tokens, else the bold ones of its top examples.

    The latter by the sum of their activations, largest first, ties to the lower id.
    """
    known: Sequence[int] | None = getattr(getattr(feature, "tokens", None), "token_ids", None)
    if known is not None:
        return list(known[:MOST_TOKENS])
    totals: dict[int, float] = {}
    top = feature.sequences.top
    for sequence in top.sequences if top else ():
        token = sequence.token_ids[sequence.bold_idx]
        totals[token] = totals.get(token, 0.0) + sequence.feat_acts[sequence.bold_idx]
    return sorted(totals, key=lambda token: (-totals[token], token))[:MOST_TOKENS]


def _promoted(feature: Any) -> Sequence[int]:
    return feature.logits.top_token_ids if feature.logits else ()


def _suppressed(feature: Any) -> Sequence[int]:
    return feature.logits.bottom_token_ids if feature.logits else ()


LISTS: dict[str, Callable[[Any], Sequence[int]]] = {
    "top_tokens": top_tokens,
    "promoted": _promoted,
    "suppressed": _suppressed,
}


class _Lists:
    """A list of token ids for each row, one after the other in one array."""

    def __init__(self) -> None:
        self.lengths = array("q")
        self.ids = array("q")

    def add(self, ids: Sequence[int]) -> None:
        known = [token for token in ids if 0 <= token <= MOST_ID]  # a file may name what no vocabulary can hold
        self.lengths.append(len(known))
        self.ids.extend(known)


class _Postings:
    """For every token the rows that show it, as they come: rising, so that each is told by its step from the one before."""

    def __init__(self) -> None:
        self._rows: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))

    def add(self, row: int, tokens: Iterable[int]) -> None:
        rows = self._rows
        for token in tokens:
            rows[token].append(row)

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """The first token of each block, and the block."""
        block, first, before = bytearray(), 0, 0
        for token in sorted(self._rows):
            if len(block) >= BLOCK_BYTES:
                yield first, bytes(block)
                block = bytearray()
            if not block:
                first = before = token
            rows = self._rows[token]
            steps = map(operator.sub, rows, itertools.chain((0,), rows))
            block += varint(token - before) + varint(len(rows)) + b"".join(map(_step, steps))
            before = token
        if block:
            yield first, bytes(block)


_step = lru_cache(2**14)(varint)


def _packed_blocks(postings: _Postings) -> list[tuple[int, str]]:
    return [(first, _page.pack_bytes(block)) for first, block in postings.blocks()]


# --- the overview ----------------------------------------------------------------------------------------------------


class Overview:
    """Collects what the overview of one page needs, from features in rising order.

    Args:
        extra: other numbers, by name, one for each row; as ``NUMBERS``, they become columns.
        meta: what else the scripts should know, as JSON can hold it.
    """

    def __init__(
        self, extra: Mapping[str, Sequence[float | None]] | None = None, meta: Mapping[str, object] | None = None
    ) -> None:
        self._extra, self._meta = dict(extra or {}), dict(meta or {})
        self._ids = array("q")
        self._labels: dict[int, str] = {}
        self._numbers = {name: array("d") for name in NUMBERS}
        self._lists = {name: _Lists() for name in LISTS}
        self._shown, self._shown_on_top = _Postings(), _Postings()

    def add(self, feature: Any) -> None:
        """Take what is needed of the next feature."""
        row = len(self._ids)
        self._ids.append(feature.feature_idx)
        if feature.label:
            self._labels[feature.feature_idx] = feature.label
        for name, number in NUMBERS.items():
            value = number.value(feature)
            self._numbers[name].append(math.nan if value is None else value)
        for name, ids in LISTS.items():
            self._lists[name].add(ids(feature))
        top = feature.sequences.top
        self._shown.add(row, set[int]().union(*map(_tokens, feature.sequences.groups)))
        if top:
            self._shown_on_top.add(row, _tokens(top))

    def token_ids(self) -> set[int]:
        """The tokens whose text the table needs."""
        return set[int]().union(*(lists.ids for lists in self._lists.values()))

    def assets(self, texts: Mapping[int, str]) -> dict[str, str]:
        """The packed data by name: ``overview``, and ``examples0``, ``examples1``, … of some blocks each.

        ``texts`` comes from ``texts_apart``.
        """
        scope, blocks = self._packed_blocks()
        files: list[list[str]] = []
        starts: list[int] = []
        size = FILE_BYTES
        for place, (_, text) in enumerate(blocks):
            if size + len(text) > FILE_BYTES:
                files.append([])
                starts.append(place)
                size = 0
            files[-1].append(text)
            size += len(text) + 1
        examples = {"scope": scope, "blocks": [first for first, _ in blocks], "files": starts}
        packed = _page.pack_bytes(_json_text(self._columns(texts, examples)))
        return {"overview": packed, **{f"examples{n}": " ".join(file) for n, file in enumerate(files)}}

    def _packed_blocks(self) -> tuple[str, list[tuple[int, str]]]:
        """Of all examples, or of the top ones, if there are any, where that would be too much."""
        blocks = _packed_blocks(self._shown)
        room = EXAMPLE_BYTES * len(self._ids) + BLOCK_BYTES
        top = _packed_blocks(self._shown_on_top) if sum(len(text) for _, text in blocks) > room else []
        return ("top", top) if top else ("all", blocks)

    def _columns(self, texts: Mapping[int, str], examples: object) -> dict[str, object]:
        columns: dict[str, Sequence[float | None]] = {**self._numbers, **self._extra}
        known = {name: NUMBERS.get(name, Number(name, lambda _: None)) for name in columns}
        numbers = {name: [_shortened(value, known[name]) for value in columns[name]] for name in columns}
        kept = [name for name in numbers if any(value is not None for value in numbers[name])]
        told = {
            name: {"label": known[name].label, "log": known[name].log, "digits": known[name].digits} for name in kept
        }
        given: Any = self._meta.get("numbers", {})
        return {
            "ids": list(self._ids),
            "labels": self._labels,
            "numbers": {name: numbers[name] for name in kept},
            "lists": {name: [list(lists.lengths), list(lists.ids)] for name, lists in self._lists.items()},
            "texts": texts,
            "examples": examples,
            "meta": {**self._meta, "numbers": {**told, **given}},
        }


def _json_text(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _tokens(group: Any) -> set[int]:
    return set[int]().union(*[sequence.token_ids for sequence in group.sequences])


SHOWN_DIGITS = 3


def _shortened(value: float | None, number: Number) -> float | int | None:
    """A number with few digits, which is shown as the whole one is; whole ones without a point, which is shorter."""
    if value is None or not math.isfinite(value):
        return None
    few = (float(f"{value:.{digits}g}") for digits in range(number.digits, 17))
    shown = f"{number.factor * value:.{SHOWN_DIGITS}g}"
    # To round what is rounded may be to round to another number. The largest ones are rounded to infinity.
    rounded = next((one for one in few if f"{number.factor * one:.{SHOWN_DIGITS}g}" == shown), float(value))
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded


def texts_apart(
    ids: Iterable[int], shown: Iterable[str], vocab: Mapping[int, str], vocab_bytes: Mapping[int, str]
) -> dict[int, str]:
    r"""The texts of tokens that their HTML does not tell, so that only those are stored: about one of ten.

    A token that is only part of a character is given as ``\0`` and its bytes in hex, and so is a text that begins with ``\0``.
    ``js/search.js`` reads the others from the HTML: what has no element is text, with a space before it after the mark of a
    space.
    """
    apart = {}
    for token, fragment in zip(ids, shown, strict=True):
        if token in vocab_bytes:
            apart[token] = f"\0{vocab_bytes[token]}"
        elif token in vocab:
            plain = fragment.removeprefix("<i>·</i>")
            text = " " * (len(plain) < len(fragment)) + html.unescape(plain)
            if "<" in plain or text != vocab[token]:
                own = vocab[token]
                apart[token] = f"\0{own.encode('utf-8', 'surrogatepass').hex()}" if own.startswith("\0") else own
    return apart
