"""The checks that look at everything at once agree with plain ones that look at each value by itself."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rendering_fixtures import make_features, make_prompt

from sae_vis import (
    FileFormatError,
    HistogramData,
    InputError,
    MultiFeatureData,
    MultiPromptData,
    QuantileKnots,
    SequenceData,
    TokenEffect,
    _json,
)
from sae_vis._checks import MOST
from sae_vis.data_storing_fns import FullEffects

HUGE = 1.7976931348623157e308  # the sum of two is infinite, though each is finite
NUMBERS = st.sampled_from([0.0, -0.0, 1.5, -2.25, HUGE, -HUGE, math.nan, math.inf, -math.inf, 7]) | st.floats()
MAYBE = NUMBERS | st.none()
INTS = st.integers(-2, 4) | st.sampled_from([MOST, MOST + 1, -MOST, 2**70])


def verdict(make) -> str:
    """What a class says of some values: nothing where they are right."""
    try:
        make()
    except (InputError, TypeError, OverflowError) as error:
        return f"{type(error).__name__} {error}"
    return ""


def wrong_lengths(cls: str, **lists) -> str:
    lengths = {name: len(items) for name, items in lists.items()}
    if len(set(lengths.values())) == 1:
        return ""
    told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
    return f"InputError {cls}: lists of one length expected, but {told}."


def not_finite(cls: str, **lists) -> str:
    for name, items in lists.items():
        for index, item in enumerate(items):
            if item is not None and not math.isfinite(item):
                return f"InputError {cls}: {name}[{index}] is {item!r}, a finite number was expected."
    return ""


def first(*faults: str) -> str:
    return next(filter(None, faults), "")


# --- effects and sequences -----------------------------------------------------------------------------------------


@given(*[st.lists(INTS, max_size=3), st.lists(NUMBERS, max_size=3)] * 2)
@example([1], [math.inf], [1], [-math.inf])
@example([1, 2], [HUGE, HUGE], [1], [-HUGE])
def test_effects(raised_ids, raised, lowered_ids, lowered):
    expected = first(
        wrong_lengths("TokenEffect", raised_token_ids=raised_ids, raised_logprobs=raised),
        wrong_lengths("TokenEffect", lowered_token_ids=lowered_ids, lowered_logprobs=lowered),
        not_finite("TokenEffect", raised_logprobs=raised, lowered_logprobs=lowered),
    )
    assert verdict(lambda: TokenEffect(0, raised_ids, raised, lowered_ids, lowered)) == expected


@st.composite
def sequences(draw) -> dict:
    n = draw(st.integers(0, 3))
    lengths = st.just(n) if draw(st.booleans()) else st.integers(0, 3)
    full = draw(st.none() | st.lists(NUMBERS.filter(math.isfinite) | st.none(), min_size=n, max_size=n + 1))
    values = {
        name: [draw(kind) for _ in range(draw(lengths))]
        for name, kind in (("token_ids", INTS), ("feat_acts", NUMBERS), ("loss_contribution", MAYBE))
    }
    ats = draw(st.lists(st.integers(-1, 3), max_size=3))
    small = st.integers(-1, 3) | st.just(0)
    return {
        "row": draw(small),
        "start": draw(small),
        "bold_idx": draw(small),
        **values,
        "effects": [TokenEffect(at, [], [], [], []) for at in ats],
        "full": None if full is None else FullEffects(full, [TokenEffect(0, [], [], [], [])]),
    }


def fault_of_sequence(row, start, bold_idx, token_ids, feat_acts, loss_contribution, effects, full) -> str:
    n = len(token_ids)
    lists = {"token_ids": token_ids, "feat_acts": feat_acts, "loss_contribution": loss_contribution}
    if full is not None:
        lists["full.loss_contribution"] = full.loss_contribution
        effects = [*effects, *full.effects]
    told = "InputError SequenceData: "
    return first(
        wrong_lengths("SequenceData", **lists),
        "" if n else f"{told}a sequence needs at least one token.",
        "" if bold_idx in range(n) else f"{told}bold_idx must be from 0 to {n - 1}, got {bold_idx!r}.",
        f"{told}row and start must not be negative, got {row}, {start}." if row < 0 or start < 0 else "",
        ""
        if all(effect.at in range(n) for effect in effects)
        else f"{told}an effect lies outside the sequence of {n} tokens.",
        not_finite("SequenceData", feat_acts=feat_acts, loss_contribution=loss_contribution),
    )


@given(sequences())
def test_sequences(values):
    assert verdict(lambda: SequenceData(**values)) == fault_of_sequence(**values)


def test_both_verdicts_on_sequences_are_drawn():
    right = {"row": 1, "start": 0, "bold_idx": 0, "token_ids": [1], "feat_acts": [HUGE], "loss_contribution": [HUGE]}
    assert verdict(lambda: SequenceData(**right)) == ""
    assert "feat_acts[0] is inf" in verdict(lambda: SequenceData(**{**right, "feat_acts": [math.inf]}))


# --- the other lists -------------------------------------------------------------------------------------------------


@given(st.lists(INTS | st.just(math.nan), max_size=4))
def test_counts(heights):
    n = len(heights)
    wrong = next((index for index, value in enumerate(heights) if not 0 <= value <= MOST), None)
    told = verdict(lambda: HistogramData([float(i) for i in range(n + 1)] if n else [], heights, []))
    if wrong is None:
        assert told == ""
    else:
        assert told.startswith(f"InputError HistogramData: bar_heights[{wrong}] must be from 0 to {MOST}, got ")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4), st.lists(st.integers(-1, 5), max_size=4))
def test_knots(values, ranks):
    falls = all(values[i] >= values[i + 1] for i in range(len(values) - 1))
    rise = all(ranks[i] < ranks[i + 1] for i in range(len(ranks) - 1))
    inside = all(1 <= rank <= 4 for rank in ranks)
    right = len(values) == len(ranks) and falls and rise and inside
    assert (verdict(lambda: QuantileKnots(values, ranks, 4)) == "") == right


# --- files -----------------------------------------------------------------------------------------------------------

TINY = {"first_group_size": 1, "n_groups": 1, "other_groups_size": 1, "n_bins": 3, "n_logits": 2, "buffer": (2, 2)}
KINDS = [(MultiFeatureData, make_features(3, dead=(1,), **TINY)), (MultiPromptData, make_prompt(2, 4, n_top=1, **TINY))]
FILES = [(_json._kind(cls), b"".join(_json.document(data))) for cls, data in KINDS]


def assembled(kind, *exact):
    return refused(lambda: _json._assembled(kind, *exact))


def loaded_slowly(kind, data: bytes):
    return refused(lambda: _json._load_any_layout({kind.name: kind}, data))


def refused(load):
    """What was loaded, or why not."""
    try:
        return load()
    except _json._WrongFileError as error:
        return str(error)


@pytest.mark.parametrize(("kind", "data"), FILES, ids=["features", "prompt"])
def test_what_save_writes_is_read_line_by_line(kind, data):
    exact = _json._load_exactly(kind, data)
    assert exact is not None
    assert _json._assembled(kind, *exact) == loaded_slowly(kind, data)


def test_a_file_of_no_features_is_read_line_by_line(feature_data):
    feature_data.feature_data_dict = {}
    data = b"".join(_json.document(feature_data))
    header, values = _json._load_exactly(FILES[0][0], data)
    assert header.vocab == feature_data.vocab
    assert values == []


@pytest.mark.parametrize(("kind", "data"), FILES, ids=["features", "prompt"])
def test_another_layout_is_not_read_line_by_line(kind, data):
    assert _json._load_exactly(kind, json.dumps(json.loads(data)).encode()) is None
    assert _json._load_exactly(kind, data + b"\n") is None
    assert _json._load_exactly(kind, data[:-1]) is None
    assert _json._load_exactly(kind, b"") is None


@given(st.data())
def test_whatever_is_read_line_by_line_is_right(data):
    """Changed bytes: the fast reader leaves them to the slow one, or gives the same."""
    kind, content = data.draw(st.sampled_from(FILES))
    lines = content.count(b"\n")
    start = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):  # near the end of a line, where the layout is
        start = sum(map(len, content.splitlines(keepends=True)[: data.draw(st.integers(1, lines))])) - 3
    stop = start + data.draw(st.integers(0, 5))
    piece = content[start:stop]
    changes = [b"", piece * 2, b"\n", b",\n", b",", b"\n]}\n", b'"x":1,', b"1", b"null", b" ", b"\n]}", piece[::-1]]
    changed = content[:start] + data.draw(st.sampled_from(changes)) + content[stop:]
    fast = _json._load_exactly(kind, changed)
    if fast is not None:
        assert assembled(kind, *fast) == loaded_slowly(kind, changed)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b'"label":null,', b'"label":null,"surplus":1,', "unknown field surplus"),
        (b'"label":null,', b'"label":null,"label":null,', "label is there twice"),
        (b'"vocab_bytes":{', b'"vocab_bytes":{},"vocab_bytes":{', "vocab_bytes is there twice"),
        (b"\n]}\n", b",\n]}\n", "not readable"),
        (b'"n_active":', b'"n_active":-', "n_active"),
    ],
)
def test_faults_in_our_own_layout_are_found(old, new, told, tmp_path):
    _, content = FILES[0]
    assert old in content
    path = tmp_path / "data.json"
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(FileFormatError, match=told):
        MultiFeatureData.load_json(path)
