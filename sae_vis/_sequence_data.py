"""The examples of a feature: pieces of rows with the numbers of their tokens, in groups; checked and drawn. No computation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_vis import _page, html_fns
from sae_vis._checks import check, check_counts, check_finite, check_same_length, short_int
from sae_vis._neighbours_data import LossShareData
from sae_vis._page_context import TEXT_LIMIT, PageContext
from sae_vis._templates import Html, join
from sae_vis.html_fns import NOTHING
from sae_vis.utils_fns import count, decimals_for, format_fixed, format_percent, level, shorten

_flat = itertools.chain.from_iterable

# Files hold hundreds of the following two classes for each feature. Their checks look at all at once, which a right one
# passes; only what is not seen to be right so goes through the checks one by one, which say what is wrong.
_UNSEEN = (TypeError, OverflowError, AttributeError)  # what looking at values of wrong types may raise


@dataclass(slots=True)
class TokenEffect:
    """The tokens whose log-probability the feature raises and lowers most, at the predicted token ``at`` of a sequence.

    The log-probabilities are differences, with the feature minus without it, of the prediction made one token earlier.
    """

    at: int
    raised_token_ids: list[int]
    raised_logprobs: list[float]
    lowered_token_ids: list[int]
    lowered_logprobs: list[float]

    def __post_init__(self) -> None:
        raised, lowered = self.raised_logprobs, self.lowered_logprobs
        try:
            # Only a finite sum has no NaN and no infinity in it.
            if (
                len(self.raised_token_ids) == len(raised)
                and len(self.lowered_token_ids) == len(lowered)
                and math.isfinite(sum(raised) + sum(lowered))
            ):
                return
        except _UNSEEN:
            pass
        self._check_each()

    def _check_each(self) -> None:
        check_same_length(self, raised_token_ids=self.raised_token_ids, raised_logprobs=self.raised_logprobs)
        check_same_length(self, lowered_token_ids=self.lowered_token_ids, lowered_logprobs=self.lowered_logprobs)
        check_finite(self, raised_logprobs=self.raised_logprobs, lowered_logprobs=self.lowered_logprobs)


@dataclass(slots=True)
class FullEffects:
    """The effects of the full ablation on a sequence, where those of the direct one are stored too."""

    loss_contribution: list[float | None]
    effects: list[TokenEffect] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_finite(self, loss_contribution=self.loss_contribution)


@dataclass(slots=True)
class SequenceData:
    """A shown piece of a row: tokens ``start .. start + len(token_ids)`` of ``row``, token ``bold_idx`` of them bold.

    ``feat_acts`` are the feature's activations on each token, ``loss_contribution`` the change of the loss on each token
    that the feature causes, in nats (negative: it helps), None where there is none. With ``ablation=("direct", "full")``
    these are the direct effects, and ``full`` holds the others.
    """

    row: int
    start: int
    bold_idx: int
    token_ids: list[int]
    feat_acts: list[float]
    loss_contribution: list[float | None]
    effects: list[TokenEffect] = field(default_factory=list)
    full: FullEffects | None = None

    def __post_init__(self) -> None:
        try:
            n_tokens, full = len(self.token_ids), self.full
            if (
                n_tokens == len(self.feat_acts) == len(self.loss_contribution)
                and (full is None or n_tokens == len(full.loss_contribution))
                and 0 <= self.bold_idx < n_tokens
                and self.row >= 0 <= self.start
                and math.isfinite(sum(self.feat_acts) + sum(filter(None, self.loss_contribution)))
            ):
                for effect in self.effects if full is None else self.all_effects():
                    if not 0 <= effect.at < n_tokens:
                        break
                else:
                    return
        except _UNSEEN:
            pass
        self._check_each()

    def _check_each(self) -> None:
        check_same_length(
            self,
            token_ids=self.token_ids,
            feat_acts=self.feat_acts,
            loss_contribution=self.loss_contribution,
            **({"full.loss_contribution": self.full.loss_contribution} if self.full else {}),
        )
        n_tokens = len(self.token_ids)
        check(n_tokens > 0, self, "a sequence needs at least one token.")
        check(0 <= self.bold_idx < n_tokens, self, f"bold_idx must be from 0 to {n_tokens - 1}, got {self.bold_idx!r}.")
        check(
            self.row >= 0 and self.start >= 0,
            self,
            f"row and start must not be negative, got {self.row}, {self.start}.",
        )
        check(
            all(0 <= effect.at < n_tokens for effect in self.all_effects()),
            self,
            f"an effect lies outside the sequence of {n_tokens} tokens.",
        )
        check_finite(self, feat_acts=self.feat_acts, loss_contribution=self.loss_contribution)

    def get_html(self, page: PageContext | None = None, *, bold_idx: int | None = None) -> Html:
        """The tokens in a line, coloured by activation and underlined by effect on the loss."""
        page = page or PageContext(act_max=max(self.feat_acts))
        bold_idx = self.bold_idx if bold_idx is None else bold_idx
        act_max, loss_max, full_max = page.act_max, page.loss_max, page.full_loss_max
        texts, drawn = page.printer.sequence(self.token_ids), html_fns.token_attributes
        attributes = [NOTHING] * len(texts)  # most have none
        grey = page.ignored(self.token_ids, self.start)
        full_losses = self.full_losses() or [None] * len(texts)
        shown = zip(self.feat_acts, self.loss_contribution, full_losses, grey, strict=True)
        for index, (act, loss, full, is_grey) in enumerate(shown):
            if act or loss or full or is_grey or index == bold_idx:
                attributes[index] = drawn(
                    level(act, act_max) if act else 0.0,
                    level(loss, loss_max) if loss else 0.0,
                    index == bold_idx,
                    is_grey,
                    level(full, full_max) if full else 0.0,
                )
        act, decimals = self.feat_acts[bold_idx], decimals_for(act_max, 3)
        if 0 < act < 0.5 * 10.0**-decimals:  # three digits would make it a zero; a fourth tells it from one
            decimals = decimals_for(act_max)
        return html_fns.sequence(texts, attributes, format_fixed(act, decimals))

    def full_losses(self) -> list[float | None]:
        """The loss contributions of the full ablation, where both are stored."""
        return self.full.loss_contribution if self.full else []

    def all_effects(self) -> list[TokenEffect]:
        """The effects of every ablation that is stored."""
        return [*self.effects, *self.full.effects] if self.full else self.effects


@dataclass(slots=True)
class SequenceGroupData:
    """Examples of one kind: the top activations (``share`` None), or random ones with activations in (lower, upper].

    ``share_of_activation`` is an interval's share of the sum of the feature's activations, ``n_positions`` how many of them it
    holds, ``share_of_loss`` its share of the feature's effect. ``near_duplicates`` are the indices of those sequences that
    nearly repeat an earlier one of the feature.
    """

    title: str
    lower: float
    upper: float
    share: float | None
    sequences: list[SequenceData]
    share_of_activation: float | None = None
    n_positions: int | None = None
    share_of_loss: LossShareData | None = None
    near_duplicates: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_finite(self, lower=self.lower, upper=self.upper)
        check(self.share is None or 0.0 <= self.share <= 1.0, self, f"share must be from 0 to 1, got {self.share!r}.")
        share = self.share_of_activation
        check(share is None or 0.0 <= share <= 1.0, self, f"share_of_activation must be from 0 to 1, got {share!r}.")
        check_counts(self, n_positions=[self.n_positions or 0], near_duplicates=self.near_duplicates)

    def get_html(self, page: PageContext | None = None, *, examples: int | None = None) -> Html:
        """The title and at most so many examples."""
        page = page or PageContext(act_max=self.upper)
        if self.share is None:
            detail = f"max {format_fixed(self.upper, decimals_for(page.act_max, 3))}"
        else:
            detail = f"{format_percent(self.share)} of tokens"
        sequences = [sequence.get_html(page) for sequence in self.sequences[:examples]]
        repeats = self.repeats(examples)
        for at in repeats:
            sequences[at] = html_fns.near_duplicate(sequences[at])
        if repeats:
            detail += f", {count(len(repeats), 'near-duplicate')}"
        somewhere = self.upper if self.share is None else self.share
        nothing = "No example shown." if somewhere else "No example."
        return html_fns.sequence_group(
            self.title, detail, [self._shares_html(), *(sequences or [html_fns.empty(nothing)])]
        )

    def repeats(self, examples: int | None = None) -> list[int]:
        """Which of the first so many examples nearly repeat an earlier one."""
        n = len(self.sequences[:examples])
        return [at for at in self.near_duplicates if at < n]

    def _shares_html(self) -> Html:
        """What the interval holds of all activation, and of the effect on the loss, where that is known."""
        if self.share_of_activation is None:
            return NOTHING
        bars = [("act", "activation", self.share_of_activation, "")]
        if (loss := self.share_of_loss) is not None:
            about = "" if loss.exact else "≈ "
            bars += [("low", "loss lowered", loss.lowered, about), ("high", "raised", loss.raised, about)]
        kinds, names, shares, signs = zip(*bars, strict=True)
        # Whole numbers: estimates of a few examples have no more digits, and pages stay small.
        texts = [
            f"{sign}{share:.0%}" if share >= 0.005 or not share else "< 1%"
            for sign, share in zip(signs, shares, strict=True)
        ]
        texts = [text.replace("%", " %") for text in texts]
        return html_fns.shares(kinds, names, [level(share, 1.0) for share in shares], texts)


@dataclass(slots=True)
class SequenceMultiGroupData:
    """All groups of examples of a feature: the top activations, then the intervals from the top down."""

    groups: list[SequenceGroupData]

    @property
    def top(self) -> SequenceGroupData | None:
        """The group of top activations; None where none were asked for, or the feature is active nowhere."""
        return next((group for group in self.groups if group.share is None), None)

    def get_html(self, page: PageContext | None = None, *, examples: int | None = None) -> Html:
        """All groups with at most so many examples each, the legend, and the numbers for the hover text."""
        page = page or PageContext(act_max=max((group.upper for group in self.groups), default=0.0))
        shown = [sequence for group in self.groups for sequence in group.sequences[:examples]]
        if not self.groups:
            asked = page.params.first_group_size or page.params.n_groups
            nothing = "No examples: the feature is active nowhere." if asked else "No examples were asked for."
            return html_fns.sequence_multi_group(NOTHING, [html_fns.empty(nothing)], NOTHING)
        key = html_fns.legend(format_fixed(page.act_max, decimals_for(page.act_max, 3)), loss_key_of(page))
        repeats = sum(len(group.repeats(examples)) for group in self.groups)
        legend = join([key, html_fns.near_duplicates_switch(repeats)])
        groups = [group.get_html(page, examples=examples) for group in self.groups]
        return html_fns.sequence_multi_group(legend, groups, hover_of(shown, page))


@dataclass(slots=True)
class CounterexamplesData:
    """Random examples where a feature does not fire on the bold token, though it fires somewhere.

    ``near_misses`` have one of its top tokens there (``n_near_misses`` positions do), ``negatives`` any. Both are empty if
    the feature never fires.
    """

    near_misses: list[SequenceData]
    n_near_misses: int
    negatives: list[SequenceData]

    def __post_init__(self) -> None:
        check_counts(self, n_near_misses=[self.n_near_misses])
        check(
            len(self.near_misses) <= self.n_near_misses,
            self,
            f"{len(self.near_misses)} near misses are shown, but n_near_misses is {short_int(self.n_near_misses)}.",
        )

    def sequences(self) -> list[SequenceData]:
        """The examples of both groups."""
        return [*self.near_misses, *self.negatives]

    def get_html(self, page: PageContext | None = None, *, examples: int | None = None) -> Html:
        """Both groups with at most so many examples each; nothing where there are none at all."""
        page = page or PageContext()
        if not self.near_misses and not self.negatives:
            return NOTHING
        n, groups = self.n_near_misses, list[Html]()
        for title, detail, sequences, nothing in (
            (
                "NEAR MISSES",
                f"{count(n, 'place')} with a top token where it does not fire",
                self.near_misses,
                "It fires wherever one of its top tokens stands.",
            ),
            ("RANDOM NEGATIVES", "places where it does not fire", self.negatives, "It fires on every token."),
        ):
            drawn = [sequence.get_html(page) for sequence in sequences[:examples]]
            reason = html_fns.empty("No example shown." if sequences else nothing)
            groups.append(html_fns.sequence_group(title, detail if drawn else "", drawn or [reason]))
        shown = [*self.near_misses[:examples], *self.negatives[:examples]]
        return html_fns.counterexamples(groups, hover_of(shown, page) if shown else NOTHING)


def loss_key_of(page: PageContext) -> Html:
    """What the underlines show, and a choice where there are two effects."""
    if not page.measured:
        reason = shorten(page.provenance.direct_effect_reason, TEXT_LIMIT) if page.provenance else ""
        return join([f"Loss contribution not measured{f': {reason}' if reason and page.params.ablations else ''}"])
    hows = [page.loss_how(ablation) for ablation in page.measured]
    return html_fns.loss_key(list(page.measured), hows)


def hover_of(sequences: Sequence[SequenceData], page: PageContext) -> Html:
    """The numbers behind some sequences, for the hover text."""
    ids = list(_flat(sequence.token_ids for sequence in sequences))
    distinct = dict.fromkeys(ids) if page.shown_logits else ()
    numbers = _page.hover_numbers(
        rows=[sequence.row for sequence in sequences],
        starts=[sequence.start for sequence in sequences],
        lengths=[len(sequence.token_ids) for sequence in sequences],
        ids=ids,
        acts=list(_flat(sequence.feat_acts for sequence in sequences)),
        losses=list(_flat(sequence.loss_contribution for sequence in sequences)),
        full_losses=list(_flat(sequence.full_losses() for sequence in sequences)),
        logits=list(map(page.shown_logits.get, distinct)),
        effects=_hover_effects(sequences, [sequence.effects for sequence in sequences]),
        full_effects=_hover_effects(sequences, [s.full.effects if s.full else [] for s in sequences]),
        only=page.measured[0] if page.measured else "direct",
        act_decimals=decimals_for(page.act_max),
        logit_decimals=page.logit_decimals,
    )
    return html_fns.hover_data(numbers)


def _hover_effects(sequences: Sequence[SequenceData], effects: Sequence[list[TokenEffect]]) -> dict[str, Any]:
    """All effects, their places counted through all sequences."""
    at: list[int] = []
    ids: list[list[int]] = []
    logprobs: list[list[float]] = []
    before = 0
    for sequence, of_sequence in zip(sequences, effects, strict=True):
        for effect in of_sequence:
            at.append(before + effect.at)
            ids += (effect.raised_token_ids, effect.lowered_token_ids)
            logprobs += (effect.raised_logprobs, effect.lowered_logprobs)
        before += len(sequence.token_ids)
    return _page.effect_numbers(at, ids, logprobs)


def token_ids_of(sequences: Iterable[SequenceData]) -> set[int]:
    ids: set[int] = set()
    for sequence in sequences:
        ids.update(sequence.token_ids)
        for effect in sequence.all_effects():
            ids.update(effect.raised_token_ids, effect.lowered_token_ids)
    return ids
