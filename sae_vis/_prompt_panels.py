"""What the prompt-centric view shows of the whole prompt: a heat map of features × tokens, and how well it is reconstructed.

The numbers only, with their checks, and how they become panels; what computes them is above. The comparison of two prompts
has the same heat map, of differences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sae_vis._checks import check, check_feature_idx, check_finite, check_same_length
from sae_vis._templates import Html, join, template
from sae_vis.html_fns import NOTHING
from sae_vis.utils_fns import decimals_for, format_fixed, format_percent, largest, level

HEAT_ROWS = 50  # of each score; a page offers to show fewer
HEAT_SHOWN = 8  # rows at first, so that the columns below are in sight
QUANTILE_NINES = 5  # of a quantile with as many nines (0.99999), a cell is as strong as can be
LEAST_GAP = 0.01  # nats between the ablated model and the model, for their quotient to mean anything

# --- the heat map --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class HeatRow:
    """A feature's scores on the prompt, at the rising positions at which it has one.

    Of two prompts the positions are those of the list of pairs, and the scores differences.
    """

    feature_idx: int
    positions: list[int]
    scores: list[float]

    def __post_init__(self) -> None:
        check_feature_idx(self, self.feature_idx)
        check_same_length(self, positions=self.positions, scores=self.scores)
        check(len(self.positions) > 0, self, "one position at least is expected.")
        rise = self.positions[0] >= 0 and all(a < b for a, b in itertools.pairwise(self.positions))
        check(rise, self, f"positions must rise from 0 on, got {self.positions[:8]}.")
        check_finite(self, scores=self.scores)


Best = Literal["largest", "lowest", "size"]
_ORDER: dict[Best, Callable[[float], float]] = {
    "largest": lambda score: -score,
    "lowest": lambda score: score,
    "size": lambda score: -abs(score),
}


class HeatMetric(NamedTuple):
    """How the heat map of one score is drawn, and what is said of it.

    ``best`` is the score of a row by which it is ranked; ``nines`` and ``rooted`` say how a colour grows (else evenly).
    """

    best: Best
    about: str  # whose the rows are
    what: str  # what a number is
    nothing: str  # what an empty cell is
    key: tuple[str, str]  # the ends of the colours
    nines: bool = False
    rooted: bool = False  # beside a strong one stand many that are a hundred times weaker

    @property
    def signed(self) -> bool:
        """Whether scores lie on both sides of zero."""
        return self.best != "largest"


_LOSS = HeatMetric(
    "lowest",
    "the features that lower the loss of any token most",
    "loss",
    "no effect",
    ("lowers the loss", "raises it"),
    rooted=True,
)
PROMPT_HEAT: dict[str, HeatMetric] = {
    "act_size": HeatMetric(
        "largest",
        "the features with the largest activation on any token",
        "activation",
        "not active",
        ("weak", "strongest here"),
    ),
    "act_quantile": HeatMetric(
        "largest",
        "the features that are most unusually active on any token",
        "quantile",
        "not active",
        ("usual", "99.999 %"),
        nines=True,
    ),
    "loss_effect": _LOSS,
    "loss_effect_full": _LOSS._replace(about=f"{_LOSS.about} when they are taken out at the hook point"),
}


def difference_metric(what: str, long_name: str, *, rooted: bool) -> HeatMetric:
    """The heat map of the differences of a score between two prompts."""
    about = f"the features whose {long_name} differs most between two aligned tokens"
    return HeatMetric("size", about, what, "no difference", ("lower on the second", "higher"), rooted=rooted)


def heat_rows(ranked: Sequence[Sequence[tuple[int, float]]], size: int, best: Best) -> list[HeatRow]:
    """The ``size`` features with the best score anywhere, the best first; ties go to the lower feature.

    ``ranked[position]`` lists ``(feature, score)``. ``best`` is a feature's largest score, its lowest, or the largest in size.
    """
    found: dict[int, tuple[list[int], list[float]]] = {}
    for position, at in enumerate(ranked):
        for feature, score in at:
            positions, scores = found.setdefault(feature, ([], []))
            positions.append(position)
            scores.append(score)
    own_best = {feature: min(map(_ORDER[best], scores)) for feature, (_, scores) in found.items()}
    order = sorted(found, key=lambda feature: (own_best[feature], feature))
    return [HeatRow(feature, *found[feature]) for feature in order[:size]]


def heat_data(
    rows: Mapping[str, Sequence[HeatRow]],
    metrics: Mapping[str, HeatMetric],
    labels: Mapping[int, str | None],
    text: Callable[[str, int, int, float], str],
    first: int = 0,
) -> dict[str, Any]:
    """What ``js/heat.js`` draws the heat map from: for each score its rows, the cells as strengths (−100 to 100) and texts.

    Args:
        rows: of each score.
        metrics: how each score is drawn.
        labels: of features.
        text: of a cell, from the score's name, the feature, the position and the score itself.
        first: the place in the page's strip of tokens of position 0.
    """
    features = sorted({row.feature_idx for of_score in rows.values() for row in of_score})
    return {
        "labels": {feature: labels[feature] for feature in features if labels.get(feature)},
        "first": first,
        "metrics": {name: _drawn(name, of, metrics[name], text, first) for name, of in rows.items()},
    }


def _drawn(
    name: str, rows: Sequence[HeatRow], metric: HeatMetric, text: Callable[[str, int, int, float], str], first: int
) -> dict[str, Any]:
    scale = largest(score for row in rows for score in row.scores)
    return {
        "about": metric.about,
        "what": metric.what,
        "nothing": metric.nothing,
        "key": metric.key,
        "signed": metric.signed,
        "rows": [
            [
                row.feature_idx,
                [position + first for position in row.positions],
                [_strength(metric, score, scale) for score in row.scores],
                [text(name, row.feature_idx, *cell) for cell in zip(row.positions, row.scores, strict=True)],
                _peak(row, metric.best) + first,
            ]
            for row in rows
        ],
    }


def _peak(row: HeatRow, best: Best) -> int:
    """The position of the best score, the first of them."""
    return row.positions[row.scores.index(min(row.scores, key=_ORDER[best]))]


def _strength(metric: HeatMetric, score: float, scale: float) -> int:
    """How strong a cell's colour is: of a quantile by its nines, else as a share of the largest score of the map, or its root."""
    if metric.nines:
        nines = -math.log10(max(10.0**-QUANTILE_NINES, 1.0 - score))
        return max(1, round(100 * nines / QUANTILE_NINES))
    share = level(score, scale)
    return round(100 * (math.copysign(math.sqrt(abs(share)), share) if metric.rooted else share))


def heat_html() -> Html:
    """The panel that the script fills."""
    return template("prompt_heat.html").fill(
        options=join(_option(size, size == HEAT_SHOWN) for size in (HEAT_SHOWN, 20, HEAT_ROWS))
    )


def _option(size: int, chosen: bool) -> Html:
    return template("heat_option.html").fill(size=size, chosen=Html(" selected") if chosen else NOTHING)


# --- the reconstruction ----------------------------------------------------------------------------------------------


@dataclass
class ReconstructionData:
    """How well the autoencoder reconstructs a prompt, by token, and what that costs the model.

    ``error``: squared distance of the reconstruction from what stands at the hook point, as a share of that of the mean over
    the prompt's counted tokens; ``l0``: how many features of the whole dictionary are not zero. Both None at ignored tokens.
    The losses of predicting each token, in nats (None where there is none): of the model, with the reconstruction in the
    place of what stands at the hook point, with the reconstruction by the ``n_chosen`` features asked for alone, and with
    zeros there. Ignored tokens keep what stands there. ``fvu`` and ``fvu_chosen``: the share of the variance that the
    reconstructions leave out, over all counted tokens. ``kl``: the divergence of the prediction of each token with the
    reconstruction in place from the model's, in nats; empty in older files. Where there is a ``reason`` there are no numbers.
    """

    error: list[float | None] = field(default_factory=list)
    l0: list[int | None] = field(default_factory=list)
    loss: list[float | None] = field(default_factory=list)
    loss_spliced: list[float | None] = field(default_factory=list)
    loss_chosen: list[float | None] = field(default_factory=list)
    loss_ablated: list[float | None] = field(default_factory=list)
    fvu: float | None = None
    fvu_chosen: float | None = None
    n_chosen: int = 0
    ablation: Literal["zero"] = "zero"
    reason: str = ""
    kl: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = (*_LOSSES, "error", "l0", *(["kl"] if self.kl else []))
        lists: dict[str, list[float | None]] = {name: getattr(self, name) for name in names}
        check_same_length(self, **lists)
        check(not (self.reason and self.error), self, "numbers, and a reason why there are none.")
        check_finite(self, **lists, fvu=self.fvu, fvu_chosen=self.fvu_chosen)

    def recovered(self, position: int) -> float | None:
        """The share of the loss that the reconstruction recovers at one token, None where ablation costs next to nothing."""
        loss, spliced, ablated = self.loss[position], self.loss_spliced[position], self.loss_ablated[position]
        if loss is None or spliced is None or ablated is None:
            return None
        return _recovered(loss, spliced, ablated)

    def total(self, name: Literal["loss", "loss_spliced", "loss_chosen", "loss_ablated", "kl"]) -> float | None:
        """The mean of one of the losses, or of the divergence, over the tokens that have one."""
        values: list[float] = [value for value in getattr(self, name) if value is not None]
        return sum(values) / len(values) if values else None

    def total_recovered(self, name: Literal["loss_spliced", "loss_chosen"] = "loss_spliced") -> float | None:
        """The share of the loss that is recovered over the whole prompt, from the means of the losses."""
        loss, spliced, ablated = self.total("loss"), self.total(name), self.total("loss_ablated")
        if loss is None or spliced is None or ablated is None:
            return None
        return _recovered(loss, spliced, ablated)

    def get_html(self, tokens: Sequence[Html], ignored: Sequence[bool], d_hidden: int) -> Html:
        """The panel: the totals in words, and a row for each of the prompt's tokens."""
        if self.reason:
            return template("reconstruction_missing.html").fill(reason=self.reason)
        few = self.n_chosen < d_hidden
        losses = [name for name in _LOSSES if few or name != "loss_chosen"]
        scale = largest(value for name in losses for value in getattr(self, name))
        kl_scale = largest(self.kl)
        heads = [_HEADS[name].format(n=f"{self.n_chosen:,}") for name in [*losses, *(["kl"] if self.kl else [])]]
        rows = [
            template("reconstruction_row.html").fill(
                position=position,
                token=token,
                style=Html(' class="x"') if ignored[position] else NOTHING,
                cells=join(self._cells(position, losses, scale, kl_scale)),
            )
            for position, token in enumerate(tokens)
        ]
        return template("reconstruction.html").fill(
            summary=self.summary(few=few),
            heads=join(template("reconstruction_head.html").fill(text=text) for text in heads),
            rows=join(rows),
        )

    def _cells(self, position: int, losses: Sequence[str], scale: float, kl_scale: float) -> list[Html]:
        l0, error, share = self.l0[position], self.error[position], self.recovered(position)
        cells = [
            _cell("" if l0 is None else f"{l0:,}", None, 0.0),
            _cell("" if error is None else format_percent(error), error, 1.0, "miss"),
        ]
        decimals = min(3, decimals_for(scale))
        for name in losses:
            value = getattr(self, name)[position]
            cells.append(_cell("" if value is None else format_fixed(value, decimals), value, scale))
        if self.kl:
            apart = self.kl[position]
            cells.append(_cell("" if apart is None else format_fixed(apart, 3), apart, kl_scale, "miss"))
        return [*cells, _cell("" if share is None else format_percent(share), None, 0.0)]

    def summary(self, *, few: bool) -> str:
        """The totals in words."""
        parts = []
        counted = [n for n in self.l0 if n is not None]
        if counted:
            parts.append(f"{sum(counted) / len(counted):.1f} features are active on a token, on average.")
        if self.fvu is not None:
            parts.append(f"The reconstruction leaves out {format_percent(self.fvu)} of the variance.")
        loss, spliced, ablated = self.total("loss"), self.total("loss_spliced"), self.total("loss_ablated")
        if loss is not None and spliced is not None and ablated is not None:
            parts.append(
                f"The mean loss is {loss:.3f} nats, {spliced:.3f} with the reconstruction in place and {ablated:.3f} with zeros"
                f"{self._told('loss_spliced')}."
            )
        apart = self.total("kl")
        if apart is not None:
            parts.append(f"With it, predictions are {apart:.3f} nats (KL) from the model’s, on average.")
        if few:
            left = "" if self.fvu_chosen is None else f" leave out {format_percent(self.fvu_chosen)} of the variance"
            chosen = self.total("loss_chosen")
            mean = "" if chosen is None else f"{' and' if left else ''} give a loss of {chosen:.3f}"
            parts.append(
                f"The {self.n_chosen:,} features asked for alone{left}{mean}{self._told('loss_chosen')}."
                if left or mean
                else ""
            )
        return " ".join(filter(None, parts))

    def _told(self, name: Literal["loss_spliced", "loss_chosen"]) -> str:
        share = self.total_recovered(name)
        return "" if share is None else f": {format_percent(share)} of the loss is recovered"


_LOSSES = ("loss", "loss_spliced", "loss_chosen", "loss_ablated")
_HEADS = {
    "loss": "Loss",
    "loss_spliced": "with SAE",
    "loss_chosen": "with {n} features",
    "loss_ablated": "with zeros",
    "kl": "KL",
}


def _recovered(loss: float, spliced: float, ablated: float) -> float | None:
    """The quotient, where ablation costs enough for it to mean something."""
    return (ablated - spliced) / (ablated - loss) if ablated - loss >= LEAST_GAP else None


def _cell(text: str, value: float | None, scale: float, kind: str = "") -> Html:
    """A number with a bar for it behind."""
    attributes = (f' class="{kind}"' if kind else "") + (
        f' style="--v:{level(value, scale):g}"' if value and value > 0 else ""
    )
    return template("reconstruction_cell.html").fill(text=text, attributes=Html(attributes))
