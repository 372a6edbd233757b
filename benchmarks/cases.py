"""What is measured: the cases, who runs in each, and the targets that the figures are held against."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from benchmarks import material
from benchmarks.material import Shape

HOUR = 3600.0


@dataclass(frozen=True)
class Target:
    """A bound that one figure of a case is held against: ``figure`` is at most, or at least, ``bound``."""

    figure: str
    bound: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether a figure keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


def at_most(figure: str, bound: float) -> Target:
    """The figure is not to be larger."""
    return Target(figure, bound)


def at_least(figure: str, bound: float) -> Target:
    """The figure is not to be smaller."""
    return Target(figure, bound, at_least=True)


@dataclass(frozen=True)
class Case:
    """One thing to do with one model, dictionary and set of tokens.

    ``features``: how many, from the first; ``options``: of ``FeatureVisParams``; ``folder``: whether the features are
    written to a folder as they are finished; ``peers``: who else does it; ``repeats``: how many at most, for what takes
    long; ``files``: whether rendering and JSON are looked at too; ``grows_from``: the case whose memory this one's is
    compared with.
    """

    name: str
    about: str
    shape: Shape
    features: int
    rows: int
    options: dict[str, Any] = field(default_factory=dict)
    folder: bool = False
    peers: tuple[str, ...] = ()
    repeats: int = 100
    limit_s: float = HOUR
    files: bool = False
    targets: tuple[Target, ...] = ()
    grows_from: str | None = None

    @property
    def title(self) -> str:
        """Its sizes, and what it is about."""
        return f"{self.features:,} features, {self.rows:,} x {self.shape.seq_len} tokens: {self.about}"

    @property
    def ablation(self) -> str:
        """How the effects are measured."""
        return str(self.options.get("ablation", "direct"))

    @property
    def correlates_all(self) -> bool:
        """Whether the whole dictionary has to be encoded."""
        return self.options.get("correlate_features", "all") == "all" or self.features == self.shape.d_hidden


# The activations of the whole dictionary (11 million of 12 bytes on 1,024 rows) are beyond the share of it that they get.
BUDGET = "600MB"

_SIZES = (at_most("html_kb_median_packed", 20), at_most("json_gz_kb_median", 15))

_S = Case(
    "S-all",
    "correlations with the whole dictionary",
    material.GELU_1L,
    features=64,
    rows=256,
    peers=("sae_vis 0.3.7",),
    files=True,
    targets=(
        at_least("times_faster_than sae_vis 0.3.7", 6),
        at_most("times_roofline", 1.4),
        at_most("peak_gb", 1.5),
        *_SIZES,
    ),
)

CASES = (
    _S,
    dataclasses.replace(
        _S,
        name="S-asked",
        about="correlations among these features",
        options={"correlate_features": "asked"},
        peers=("sae_vis 0.3.7", "sae-dashboard 0.8.0"),
        targets=(
            at_least("times_faster_than sae_vis 0.3.7", 20),
            at_least("times_faster_than sae-dashboard 0.8.0", 1.6),
            at_most("times_roofline", 1.4),
            at_most("peak_gb", 1.5),
            *_SIZES,
        ),
    ),
    Case(
        "M",
        "a part of the dictionary",
        material.GELU_1L,
        features=1024,
        rows=1024,
        files=True,
        targets=(
            at_most("times_roofline", 1.4),
            at_least("render_features_per_s_two_processes", 300),
            at_least("json_features_per_s", 500),
        ),
    ),
    Case(
        "D",
        "the whole dictionary, written to a folder",
        material.GELU_1L,
        features=16_384,
        rows=1024,
        folder=True,
        repeats=1,
        limit_s=2 * HOUR,
        targets=(at_most("data_times_roofline", 1.6), at_most("minutes", 15), at_most("peak_gb", 4)),
    ),
    Case(
        "G",
        "the whole dictionary beyond the memory budget, without effects",
        material.GELU_1L,
        features=16_384,
        rows=1024,
        options={"memory_budget": BUDGET, "ablation": None},
        folder=True,
        repeats=1,
        limit_s=2 * HOUR,
    ),
    Case(
        "G2",
        "as G, with twice the tokens",
        material.GELU_1L,
        features=16_384,
        rows=2048,
        options={"memory_budget": BUDGET, "ablation": None},
        folder=True,
        repeats=1,
        limit_s=4 * HOUR,
        grows_from="G",
        targets=(at_most("peak_growth_percent", 10),),
    ),
    Case(
        "L-direct",
        "residual stream in the middle of 4 layers, direct effects",
        material.FOUR_LAYERS,
        features=4096,
        rows=1024,
        repeats=1,
    ),
    Case(
        "L-full",
        "residual stream in the middle of 4 layers, full ablation",
        material.FOUR_LAYERS,
        features=64,
        rows=1024,
        options={"ablation": "full"},
        repeats=1,
        targets=(at_most("data_times_roofline", 1.3),),
    ),
)


def tiny(case: Case) -> Case:
    """The same case on a model of a moment, to try everything out; its targets mean nothing."""
    shape = material.TINY_FOUR_LAYERS if case.shape is material.FOUR_LAYERS else material.TINY_GELU_1L
    features = {64: 6, 1024: 24, 4096: 24}.get(case.features, shape.d_hidden)
    rows = {256: 32, 2048: 128}.get(case.rows, 64)
    return dataclasses.replace(case, shape=shape, features=features, rows=rows, targets=(), limit_s=300.0)


def chosen(names: list[str], *, small: bool = False) -> list[Case]:
    """The cases of these names, or of these letters (``S``: ``S-all`` and ``S-asked``); all without a name.

    Raises:
        ValueError: if there is none of a name.
    """
    found = {name: [case for case in CASES if name in (case.name, case.name.partition("-")[0])] for name in names}
    missing = [name for name, cases in found.items() if not cases]
    if missing:
        raise ValueError(f"There is no case {missing[0]!r}. There are {', '.join(case.name for case in CASES)}.")
    wanted = [case for case in CASES if not names or any(case in cases for cases in found.values())]
    return [tiny(case) for case in wanted] if small else wanted
