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
    from sae_vis._errors import FileFormatError, InputError, Interrupted, ModelError, SaeVisError, TemplateError
    from sae_vis._neighbours_data import CoactiveData, LossShareData, NearestData, NeighboursData
    from sae_vis._params import Column, Component, FeatureVisParams, Layout, register_component
    from sae_vis._prompt_comparison import ComparedFeature, PromptComparisonData
    from sae_vis._prompt_panels import HeatRow, ReconstructionData
    from sae_vis._sae_lens import load_sae_lens
    from sae_vis._store import ActivationStore
    from sae_vis._store_file import load_activations
    from sae_vis._templates import Html, fill_template
    from sae_vis._token_data import PositionsData, TokensData
    from sae_vis.data_fetching_fns import compare_prompts, get_feature_data, get_prompt_data
    from sae_vis.data_storing_fns import (
        ActivationsData,
        CorrelationData,
        CounterexamplesData,
        DirectionData,
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
    from sae_vis.model_fns import AutoEncoder, AutoEncoderConfig, Encoder

# Where each name comes from; what is not listed is a dataclass. A test holds this to the imports above.
_HOMES = {
    "FileFormatError": "_errors",
    "InputError": "_errors",
    "Interrupted": "_errors",
    "ModelError": "_errors",
    "SaeVisError": "_errors",
    "TemplateError": "_errors",
    "CoactiveData": "_neighbours_data",
    "LossShareData": "_neighbours_data",
    "NearestData": "_neighbours_data",
    "NeighboursData": "_neighbours_data",
    "Column": "_params",
    "Component": "_params",
    "FeatureVisParams": "_params",
    "Layout": "_params",
    "ComparedFeature": "_prompt_comparison",
    "PromptComparisonData": "_prompt_comparison",
    "HeatRow": "_prompt_panels",
    "ReconstructionData": "_prompt_panels",
    "compare_prompts": "data_fetching_fns",
    "register_component": "_params",
    "Html": "_templates",
    "fill_template": "_templates",
    "get_feature_data": "data_fetching_fns",
    "get_prompt_data": "data_fetching_fns",
    "load_demo": "_demo",
    "load_sae_lens": "_sae_lens",
    "ActivationStore": "_store",
    "PositionsData": "_token_data",
    "TokensData": "_token_data",
    "load_activations": "_store_file",
    "AutoEncoder": "model_fns",
    "AutoEncoderConfig": "model_fns",
    "Encoder": "model_fns",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'data_storing_fns')}"), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    """The public names, imported or not, beside what a module has anyway."""
    return sorted({*globals(), *__all__})
