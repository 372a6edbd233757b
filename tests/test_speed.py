"""Loading, saving and drawing stay fast: Python calls are counted, and CPU times compared with the bare decoder's."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import msgspec
import pytest
from rendering_fixtures import make_features

from sae_vis import MultiFeatureData, _json

N = 16


@pytest.fixture(scope="module")
def data() -> MultiFeatureData:
    """Features of the usual size: some 70 sequences of 11 tokens each."""
    return make_features(N, dead=())


@pytest.fixture(scope="module")
def document(data) -> bytes:
    return b"".join(_json.document(data))


def calls(work) -> int:
    """How many Python functions are called."""
    count = 0

    def profile(frame, event, _):
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def cpu_time(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def times_as_long(work, as_this) -> float:
    """The median of some ratios, each of two times beside each other: a machine may be twice as fast a second later."""
    return statistics.median(cpu_time(work) / cpu_time(as_this) for _ in range(11))


def sequences(data):
    return [sequence for feature in data.values() for sequence in feature._shown_sequences()]


def draw(data) -> None:
    page = data._context()
    for feature in data.feature_data_dict.values():
        feature.get_html(page)


def test_checking_an_effect_or_a_sequence_is_one_call(data, document):
    shown = sequences(data)
    objects = len(shown) + sum(len(sequence.effects) for sequence in shown)
    assert objects > 100 * N
    _json.loads(MultiFeatureData, document)
    assert calls(lambda: _json.loads(MultiFeatureData, document)) < 1.1 * objects + 300 * N


def test_a_token_that_is_not_coloured_is_no_call(data):
    shown = sequences(data)
    tokens = sum(len(sequence.token_ids) for sequence in shown)
    coloured = sum(bool(a or b) for s in shown for a, b in zip(s.feat_acts, s.loss_contribution, strict=True))
    assert tokens > 2 * coloured
    draw(data)
    assert calls(lambda: draw(data)) < 2 * coloured + 12 * len(shown) + 2500 * N


@pytest.mark.timed
def test_cpu_times(data, document, tmp_path: Path):
    """As multiples of decoding and encoding without any check: 1.0, 0.5 and 2.9 here, each with room for other machines."""
    path = tmp_path / "data.json"
    path.write_bytes(document)
    draw(data)  # once, for what is kept from then on

    def bare() -> None:
        msgspec.json.encode(msgspec.json.decode(document))

    assert times_as_long(lambda: _json.load(MultiFeatureData, path), bare) < 1.8
    assert times_as_long(lambda: _json.save(data, path), bare) < 1.2
    assert times_as_long(lambda: draw(data), bare) < 4.5
