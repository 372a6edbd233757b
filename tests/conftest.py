"""Shared by all tests: small data that is made by hand, and settings that keep the tests steady on a busy machine."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # there is a process for each core: threads of these would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from sae_vis.data_storing_fns import (
    ActivationsData,
    CorrelationData,
    FeatureData,
    FeatureTablesData,
    HistogramData,
    LogitsData,
    MultiFeatureData,
    MultiPromptData,
    NeuronAlignmentData,
    PromptData,
    Provenance,
    QuantileKnots,
    SequenceData,
    SequenceGroupData,
    SequenceMultiGroupData,
    TokenEffect,
)

pytest_plugins = ["taking_turns"]

# No deadline: a slow moment of the machine is no fault of ours. Derandomized: a failure can be seen again by anyone.
settings.register_profile("sae_vis", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sae_vis")


def small_sequence(row: int = 3) -> SequenceData:
    return SequenceData(
        row=row,
        start=4,
        bold_idx=1,
        token_ids=[5, 6, 7],
        feat_acts=[0.0, 1.25, 0.5],
        loss_contribution=[None, -0.125, 1e-7],
        effects=[TokenEffect(2, [5, 6], [0.25, 0.125], [7], [-0.5])],
    )


def small_feature(index: int = 8) -> FeatureData:
    histogram = HistogramData([0.0, 0.5, 1.25], [3, 1], [0.0, 1.0])
    correlated = CorrelationData([1, 2], [0.75, 0.5], [0.8, 0.6])
    return FeatureData(
        feature_idx=index,
        feature_tables=FeatureTablesData(
            NeuronAlignmentData([0, 9], [0.5, -0.25], [0.02, 0.01]), correlated, correlated
        ),
        activations=ActivationsData(0.01, 4, 1.25, 0.01, 0.001, 12.5, 180.0, histogram),
        logits=LogitsData(
            [5], [1.5], [6], [-1.5], {5: 1.5, 6: -1.5, 7: 0.0}, HistogramData([-2.0, 0.0, 2.0], [50, 50], [0.0])
        ),
        sequences=SequenceMultiGroupData(
            [
                SequenceGroupData("TOP ACTIVATIONS", 0.0, 1.25, None, [small_sequence()]),
                SequenceGroupData("INTERVAL 0.6 - 1.25", 0.625, 1.25, 0.0025, [small_sequence(row=5)]),
            ]
        ),
        quantiles=QuantileKnots([1.25, 0.5], [1, 3], 400),
        label=None,
    )


def small_provenance() -> Provenance:
    return Provenance("toy", "blocks.0.mlp.hook_post", 16, 64, 10, 40, 400, "exact", versions={"sae_vis": "1.0.0"})


@pytest.fixture
def feature_data() -> MultiFeatureData:
    """Two features, in every table something."""
    from sae_vis import FeatureVisParams

    return MultiFeatureData(
        feature_data_dict={8: small_feature(8), 2: small_feature(2)},
        vocab={5: " the", 6: "</script>", 7: "é\u2028\x00"},
        vocab_bytes={6: "e282"},
        rows={3: [5, 6, 7, 5], 5: [7]},
        params=FeatureVisParams(hook_point="blocks.0.mlp.hook_post", features=(2, 8)),
        provenance=small_provenance(),
    )


@pytest.fixture
def prompt_data() -> MultiPromptData:
    """One feature on a prompt of three tokens."""
    from sae_vis import FeatureVisParams

    feature = small_feature(8)
    column = PromptData(8, small_sequence(), feature.activations, feature.logits, feature.sequences.groups[0])
    return MultiPromptData(
        prompt_token_ids=[5, 6, 7],
        n_active=[0, 1, 1],
        vocab={5: " the", 6: "x", 7: "y"},
        vocab_bytes={},
        prompt_data_dict={8: column},
        params=FeatureVisParams(hook_point="blocks.0.mlp.hook_post"),
        provenance=small_provenance(),
        scores={
            "act_size": [[], [(8, 1.25)], [(8, 0.5)]],
            "act_quantile": [[], [(8, 0.99)], [(8, 0.98)]],
            "loss_effect": [[], [], [(8, -0.125)]],
        },
    )


# --- a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    """A real Chromium, one for each module that asks for it."""
    import browser  # and Playwright, which few environments have

    yield from browser.launched()


@pytest.fixture
def show(chromium, tmp_path):
    """A function that opens documents in Chromium, and fails the test if a page complains or asks for anything."""
    import browser

    with browser.opener(chromium, tmp_path) as show:
        yield show
