"""Dashboards for the features of sparse autoencoders.

Fetch, look, keep::

    from sae_vis import FeatureVisParams, get_feature_data

    features = get_feature_data(encoder, model, tokens, FeatureVisParams(hook_point="blocks.0.mlp.hook_post"))
    features.save_html("features.html")
    features.save_json("features.json")

Every name is imported when it is first used, so ``import sae_vis`` costs nothing and drawing a saved file needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "1.0.0"

__all__ = [
    "ActivationStore",
    "ActivationsData",
    "AutoEncoder",
    "AutoEncoderConfig",
    "CoactiveData",
    "Column",
    "ComparedFeature",
    "Component",
    "CorrelationData",
    "CounterexamplesData",
    "DirectionData",
    "Encoder",
    "FeatureData",
    "FeatureTablesData",
    "FeatureVisParams",
    "FileFormatError",
    "HeatRow",
    "HistogramData",
    "Html",
    "InputError",
    "Interrupted",
    "Layout",
    "LogitsData",
    "LossShareData",
    "ModelError",
    "MultiFeatureData",
    "MultiPromptData",
    "NearestData",
    "NeighboursData",
    "NeuronAlignmentData",
    "PositionsData",
    "PromptComparisonData",
    "PromptData",
    "Provenance",
    "QuantileKnots",
    "ReconstructionData",
    "SaeVisError",
    "SequenceData",
    "SequenceGroupData",
    "SequenceMultiGroupData",
    "TemplateError",
    "TokenEffect",
    "TokensData",
    "__version__",
    "compare_prompts",
    "fill_template",
    "get_feature_data",
    "get_prompt_data",
    "load_activations",
    "load_demo",
    "load_sae_lens",
    "register_component",
]

if TYPE_CHECKING:
    from sae_vis._demo import load_demo
    from sae_vis._distribution_data import ActivationsData, HistogramData, LogitsData, QuantileKnots
    from sae_vis._errors import FileFormatError, InputError, Interrupted, ModelError, SaeVisError, TemplateError
    from sae_vis._feature_data import FeatureData
    from sae_vis._neighbours_data import CoactiveData, DirectionData, LossShareData, NearestData, NeighboursData
    from sae_vis._page_context import Provenance
    from sae_vis._params import Column, Component, FeatureVisParams, Layout, register_component
    from sae_vis._prompt_comparison import ComparedFeature, PromptComparisonData
    from sae_vis._prompt_data import MultiPromptData, PromptData
    from sae_vis._prompt_panels import HeatRow, ReconstructionData
    from sae_vis._sae_lens import load_sae_lens
    from sae_vis._sequence_data import (
        CounterexamplesData,
        SequenceData,
        SequenceGroupData,
        SequenceMultiGroupData,
        TokenEffect,
    )
    from sae_vis._store import ActivationStore
    from sae_vis._store_file import load_activations
    from sae_vis._table_data import CorrelationData, FeatureTablesData, NeuronAlignmentData
    from sae_vis._templates import Html, fill_template
    from sae_vis._token_data import PositionsData, TokensData
    from sae_vis.data_fetching_fns import compare_prompts, get_feature_data, get_prompt_data
    from sae_vis.data_storing_fns import MultiFeatureData
    from sae_vis.model_fns import AutoEncoder, AutoEncoderConfig, Encoder

# Where each name comes from. A test holds this to the imports above.
_HOMES = {
    "load_demo": "_demo",
    "ActivationsData": "_distribution_data",
    "HistogramData": "_distribution_data",
    "LogitsData": "_distribution_data",
    "QuantileKnots": "_distribution_data",
    "FileFormatError": "_errors",
    "InputError": "_errors",
    "Interrupted": "_errors",
    "ModelError": "_errors",
    "SaeVisError": "_errors",
    "TemplateError": "_errors",
    "FeatureData": "_feature_data",
    "CoactiveData": "_neighbours_data",
    "DirectionData": "_neighbours_data",
    "LossShareData": "_neighbours_data",
    "NearestData": "_neighbours_data",
    "NeighboursData": "_neighbours_data",
    "Provenance": "_page_context",
    "Column": "_params",
    "Component": "_params",
    "FeatureVisParams": "_params",
    "Layout": "_params",
    "register_component": "_params",
    "ComparedFeature": "_prompt_comparison",
    "PromptComparisonData": "_prompt_comparison",
    "MultiPromptData": "_prompt_data",
    "PromptData": "_prompt_data",
    "HeatRow": "_prompt_panels",
    "ReconstructionData": "_prompt_panels",
    "load_sae_lens": "_sae_lens",
    "CounterexamplesData": "_sequence_data",
    "SequenceData": "_sequence_data",
    "SequenceGroupData": "_sequence_data",
    "SequenceMultiGroupData": "_sequence_data",
    "TokenEffect": "_sequence_data",
    "ActivationStore": "_store",
    "load_activations": "_store_file",
    "CorrelationData": "_table_data",
    "FeatureTablesData": "_table_data",
    "NeuronAlignmentData": "_table_data",
    "Html": "_templates",
    "fill_template": "_templates",
    "PositionsData": "_token_data",
    "TokensData": "_token_data",
    "compare_prompts": "data_fetching_fns",
    "get_feature_data": "data_fetching_fns",
    "get_prompt_data": "data_fetching_fns",
    "MultiFeatureData": "data_storing_fns",
    "AutoEncoder": "model_fns",
    "AutoEncoderConfig": "model_fns",
    "Encoder": "model_fns",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    """The public names, imported or not, beside what a module has anyway."""
    return sorted({*globals(), *__all__})
