"""The text of token ids, as the tokenizer means it: no `Ġ`, no `▁`, and bytes where a token is only part of a character."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_META_SPACE = "▁"


class TokenTexts(NamedTuple):
    """``text[id]`` of each token; ``partial[id]``, in hex, of those that are only part of a character."""

    text: dict[int, str]
    partial: dict[int, str]


def token_texts(tokenizer: Any, ids: Iterable[int]) -> TokenTexts:
    """The texts of these ids; the ids themselves where there is no tokenizer or it does not know one."""
    texts, partial = {}, {}
    decode = _decoder(tokenizer)
    for token_id in sorted(set(ids)):
        piece = decode(token_id)
        if isinstance(piece, bytes):
            try:
                texts[token_id] = piece.decode("utf-8")
            except UnicodeDecodeError:
                partial[token_id] = piece.hex()
                texts[token_id] = "".join(f"<0x{byte:02X}>" for byte in piece)
        else:
            texts[token_id] = f"<{token_id}>" if piece is None else piece
    return TokenTexts(texts, partial)


def _decoder(tokenizer: Any) -> Any:
    """A function from an id to its bytes, its text, or None."""
    if tokenizer is None:
        return lambda token_id: None
    special = {i for name in ("all_special_ids", "added_tokens_decoder") for i in _listed(getattr(tokenizer, name, ()))}
    kinds = _decoder_kinds(tokenizer)
    table = _bytes_of_characters()

    def decode(token_id: int) -> str | bytes | None:
        try:
            token = tokenizer.convert_ids_to_tokens(token_id) if hasattr(tokenizer, "convert_ids_to_tokens") else None
        except (IndexError, KeyError, OverflowError):
            token = None
        if not isinstance(token, str):
            return token if isinstance(token, bytes) else None
        if token_id in special:
            return token
        if "ByteLevel" in kinds and all(character in table for character in token):
            return bytes(table[character] for character in token)
        byte = _BYTE_TOKEN.fullmatch(token) if "ByteFallback" in kinds else None
        if byte:
            return bytes.fromhex(byte[1])
        return token.replace(_META_SPACE, " ") if kinds & {"Metaspace", "ByteFallback", "Replace"} else token

    return decode


def _listed(ids: Any) -> list[int]:
    """The ints of a collection; nothing of anything else that a tokenizer of one's own may have there."""
    return [i for i in ids if isinstance(i, int)] if isinstance(ids, Iterable) else []


def _decoder_kinds(tokenizer: Any) -> set[str]:
    """The kinds of steps in a fast tokenizer's decoder, e.g. ``{"ByteLevel"}``."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a slow tokenizer: guess from the alphabet of its vocabulary
        vocabulary: Any = getattr(tokenizer, "get_vocab", dict)()
        if not isinstance(vocabulary, Mapping):
            return set()
        return {"ByteLevel"} if "Ġ" in vocabulary else {"Metaspace"} if _META_SPACE in vocabulary else set()
    try:
        # As it would be pickled, which is JSON: the backend itself tells it only together with the whole vocabulary.
        decoder = json.loads(backend.decoder.__getstate__())
        return {str(step.get("type", "")) for step in decoder.get("decoders", [decoder])}
    except Exception:  # noqa: BLE001 - no decoder, one written in Python, or not the backend of a fast tokenizer
        return set()


@functools.cache
def _bytes_of_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (the table of GPT-2's encoder)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
