"""The same as plain text, for notebooks and terminals that show no HTML: what is most of a feature and of a prompt.

No text can do anything in a terminal: what cannot be printed is named, as on a page. The bold token of an example stands
between « and ».
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sae_vis._errors import InputError, shown
from sae_vis.utils_fns import (
    Piece,
    decimals_for,
    format_fixed,
    format_general,
    format_percent,
    format_signed,
    join_bytes,
    printable,
    printable_bytes,
    shorten,
)

TOKEN_LIMIT = 48  # characters of a token
LABEL_LIMIT = 200
AROUND = 12  # tokens that are shown before and after the bold one
TOKENS = 8  # in a list


class TokenTexts:
    """Token ids as plain text."""

    def __init__(self, vocab: Mapping[int, str], vocab_bytes: Mapping[int, str]) -> None:
        self._vocab, self._bytes = vocab, vocab_bytes

    def one(self, token_id: int) -> str:
        """A token by itself."""
        if token_id in self._bytes:
            return _plain(printable_bytes(bytes.fromhex(self._bytes[token_id])))
        return plain(self._vocab[token_id], TOKEN_LIMIT) if token_id in self._vocab else f"[id {token_id}]"

    def line(self, token_ids: Sequence[int]) -> list[str]:
        """Tokens beside each other: those that make up a character together are that character, on the first of them."""
        joined = join_bytes([bytes.fromhex(self._bytes[i]) if i in self._bytes else None for i in token_ids])
        return [
            self.one(token_id) if text is None else plain(text, TOKEN_LIMIT) if text else ""
            for token_id, text in zip(token_ids, joined, strict=True)
        ]


def plain(text: str, limit: int = LABEL_LIMIT) -> str:
    """A text of somebody else's in one line that can be printed."""
    return _plain(printable(shorten(text, limit))) if text else ""


def _plain(pieces: Iterable[Piece]) -> str:
    return "".join(f"[{piece.text}]" if piece.kind == "code" else piece.text for piece in pieces)


def checked_number(name: str, value: object) -> int:
    """How many of something are told, from 0 on.

    Raises:
        InputError: if it is no such number.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"{name} must be an int >= 0, got {shown(value)}.")
    return value


def summary(feature: Any) -> str:
    """A feature in one line: its id, its label, its density and its maximum. ``feature`` is a FeatureData."""
    acts = feature.activations
    parts = [f"Feature {feature.feature_idx}", plain(feature.label or ""), f"density {format_percent(acts.density)}"]
    if acts.max is None:
        parts.append("never fires")
    else:
        parts.append(f"max {format_general(acts.max, 3)}")
    return " · ".join(part for part in parts if part)


def feature_text(feature: Any, texts: TokenTexts, examples: int) -> str:
    """What matters most of a feature: where it fires, what it promotes and suppresses, its top examples."""
    lines = [summary(feature)]
    groups = feature.sequences.groups
    if groups:
        bold = [sequence.token_ids[sequence.bold_idx] for sequence in groups[0].sequences]
        lines.append(f"  fires on    {_list(map(texts.one, dict.fromkeys(bold)))}")
    logits = feature.logits
    if logits is not None:
        for name, ids, values in (
            ("promotes", logits.top_token_ids, logits.top_logits),
            ("suppresses", logits.bottom_token_ids, logits.bottom_logits),
        ):
            told = [f"{texts.one(i)} {format_signed(value, 2)}" for i, value in zip(ids, values, strict=True)]
            lines.append(f"  {name:<11} {_list(told)}")
    if groups and examples:
        lines += group_lines(groups[0], texts, examples)
    return "\n".join(lines)


def group_lines(group: Any, texts: TokenTexts, examples: int) -> list[str]:
    """The title of a SequenceGroupData and its first examples, each with its activation before it."""
    sequences = group.sequences[:examples]
    acts = [sequence.feat_acts[sequence.bold_idx] for sequence in sequences]
    decimals = decimals_for(max(acts, default=0.0), 3)
    values = [format_fixed(act, decimals) for act in acts]
    width = max(map(len, values), default=0)
    lines = [
        f"    {value:>{width}}  {example(sequence, texts)}" for value, sequence in zip(values, sequences, strict=True)
    ]
    return [f"  {plain(group.title)}", *lines]


def example(sequence: Any, texts: TokenTexts) -> str:
    """A SequenceData in one line, its bold token between « and »."""
    bold = sequence.bold_idx
    start, stop = max(0, bold - AROUND), min(len(sequence.token_ids), bold + AROUND + 1)
    tokens = texts.line(sequence.token_ids)
    tokens[bold] = f"«{tokens[bold]}»"
    before, after = "… " if start else "", " …" if stop < len(tokens) else ""
    return f"{before}{''.join(tokens[start:stop])}{after}"


def prompt_line(position: int, token: str, ranked: Sequence[str], none: str = "–") -> str:
    """A token of a prompt with its features, best first."""
    return f"  {position:>4}  {token:<16}  {', '.join(ranked) or none}"


def pair_line(first: str, other: str, ranked: Sequence[str]) -> str:
    """A token of one prompt and its counterpart in another with the features that differ, largest difference first."""
    return f"  {first:<16}  {other:<16}  {', '.join(ranked) or '–'}"


def _list(items: Iterable[str]) -> str:
    listed = list(items)
    return ", ".join(listed[:TOKENS]) + (", …" if len(listed) > TOKENS else "")
