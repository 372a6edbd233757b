"""What a part of a page must know of the whole: where the numbers come from, and how the page shows them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sae_vis._params import Ablation, FeatureVisParams
from sae_vis.html_fns import TokenPrinter
from sae_vis.utils_fns import shorten

TEXT_LIMIT = 2000  # characters that a page shows of a note or a reason

ScoreName = Literal["act_size", "act_quantile", "loss_effect", "loss_effect_full"]
SCORE_NAMES: tuple[ScoreName, ...] = ("act_size", "act_quantile", "loss_effect", "loss_effect_full")
LOSS_SCORES: tuple[ScoreName, ...] = ("loss_effect", "loss_effect_full")


@dataclass
class Provenance:
    """What was run on what: enough to tell whether two files belong together, and what a page must say of its numbers.

    ``direct_effect`` is "exact", "direct path" (later computation that reads the hook point is left out) or "none", with
    the reason in ``direct_effect_reason``. ``hook_point_out`` is where the features are written, None where they are read
    (it differs for transcoders). ``first_token_id`` is the token that every row begins with, where there is one
    (a prompt then gets it too). ``ignored_positions`` are places in the row that do not count, ``notes`` are shown on the page.
    """

    model: str
    hook_point: str
    d_in: int
    d_hidden: int
    n_rows: int
    seq_len: int
    n_counted: int
    direct_effect: Literal["exact", "direct path", "none"]
    direct_effect_reason: str = ""
    hook_point_out: str | None = None
    first_token_id: int | None = None
    ignored_token_ids: list[int] = field(default_factory=list)
    ignored_positions: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    map_variance: float | None = (
        None  # the share of that of the decoder directions, along the two axes of the map (PCA)
    )
    map_sample: int | None = None  # how many directions these axes come from, evenly spaced; None: from all of them


@dataclass(frozen=True)
class PageContext:
    """What a part of a page must know of the whole to draw itself; ``get_html`` hands it down.

    ``features`` are those that a link can reach. ``act_max``, the two ``loss_max`` and ``shown_logits`` belong to the feature
    that is being drawn, ``score_name`` and ``seq_pos`` to the prompt-centric view.
    """

    printer: TokenPrinter = field(default_factory=lambda: TokenPrinter({}, {}))
    params: FeatureVisParams = field(default_factory=FeatureVisParams)
    provenance: Provenance | None = None
    features: frozenset[int] = frozenset()
    act_max: float = 0.0
    loss_max: float = 0.0
    full_loss_max: float = 0.0
    shown_logits: Mapping[int, float] = field(default_factory=dict)
    logit_decimals: int = 3
    seq_pos: int | None = None
    score_name: ScoreName = "act_quantile"
    feature_url: str | None = None
    rows: Mapping[int, list[int]] = field(default_factory=dict)

    def ignored(self, token_ids: Sequence[int], start: int = 0) -> list[bool]:
        """Whether each token of a row is left out of every number; the first one stands at position ``start``."""
        ids, places = self._ignored
        if ids.isdisjoint(token_ids) and places.isdisjoint(range(start, start + len(token_ids))):
            return [False] * len(token_ids)
        return [token_id in ids or place in places for place, token_id in enumerate(token_ids, start)]

    @functools.cached_property
    def _ignored(self) -> tuple[frozenset[int], frozenset[int]]:
        told = self.provenance
        if told is None:
            return frozenset(), frozenset()
        return frozenset(told.ignored_token_ids), frozenset(told.ignored_positions)

    @property
    def measured(self) -> tuple[Ablation, ...]:
        """Which effects the data holds, the one that is shown at first before the other."""
        asked = self.params.ablations
        no_direct = self.provenance is not None and self.provenance.direct_effect == "none"
        return tuple(ablation for ablation in asked if ablation != "direct" or not no_direct)

    def loss_how(self, ablation: Ablation) -> str:
        """In a few words, which effect on the loss it is."""
        if ablation == "full":
            return "full ablation"
        if self.provenance is None:
            return "direct effect"
        reason = shorten(self.provenance.direct_effect_reason, TEXT_LIMIT)
        return f"{self.provenance.direct_effect}{f': {reason}' if reason else ''}"
