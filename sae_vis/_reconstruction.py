"""How well an autoencoder reconstructs a prompt, and what the model predicts with the reconstruction in place.

What the autoencoder writes at a position is ``bias + scale * sum(a * decoder_row)``, over all its features or some of them.
It is put where the model has its own activations, at every counted position; ignored ones (BOS above all, which autoencoders
are not trained on) keep what stands there. The zeros that this is compared with are put at the same positions.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeGuard

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_vis._activations import check_finite, decoder_rows, encode, write_scale
from sae_vis._errors import ModelError
from sae_vis._full_ablation import passes_the_mlp
from sae_vis.model_fns import Change, Encoder, HookPoint, LanguageModel, check_tensor

FEATURES_AT_A_TIME = 8192  # fixed, so that no sum depends on the memory budget
POSITIONS_AT_A_TIME = 64  # whose log-probabilities are there together


class Decoded(NamedTuple):
    """What the autoencoder writes, in float64: with all features, with the chosen ones; and how many are not zero."""

    whole: Float[Tensor, "seq d"]
    chosen: Float[Tensor, "seq d"]
    l0: Int[Tensor, " seq"]


class Reconstruction(NamedTuple):
    """The numbers of ``ReconstructionData``: a None where there is none."""

    error: list[float | None]
    l0: list[int | None]
    loss: list[float | None]
    loss_spliced: list[float | None]
    loss_chosen: list[float | None]
    loss_ablated: list[float | None]
    fvu: float | None
    fvu_chosen: float | None
    kl: list[float | None]


class Decoder(Encoder, Protocol):
    """An encoder that also says what it writes where no feature is active."""

    def decoder_bias(self, x: Tensor) -> Tensor:
        """That, ``[rows, seq, d_out]``, for ``x`` as ``encode`` takes it."""
        ...


def as_decoder(encoder: Encoder) -> Decoder | str:
    """The encoder, if it can be put in the model's place, else why it cannot."""
    if not _says_its_bias(encoder):
        return (
            "the encoder does not say what it writes where no feature is active. Give it decoder_bias(x), as the Encoder "
            "protocol has it."
        )
    told = getattr(encoder, "cannot_reconstruct", None)
    return str(told) if told else encoder


def _says_its_bias(encoder: Encoder) -> TypeGuard[Decoder]:
    return callable(getattr(encoder, "decoder_bias", None))


def decoded(encoder: Decoder, x: Float[Tensor, "1 seq *d"], chosen: Int[Tensor, " n"]) -> Decoded:
    """What the autoencoder makes of ``x``, added up in float64.

    Raises:
        ModelError: if it gives NaN or infinity, or arrays of other shapes.
    """
    seq_len = x.shape[1]
    bias = encoder.decoder_bias(x)
    check_tensor(bias, "The encoder's decoder_bias", (1, seq_len, None))
    whole = bias.detach().flatten(2)[0].cpu().double()
    part, l0 = whole.clone(), torch.zeros(seq_len, dtype=torch.int64)
    given = write_scale(encoder, x)
    scale = torch.ones(seq_len, dtype=torch.float64) if given is None else given[0].double()
    for first in range(0, encoder.d_hidden, FEATURES_AT_A_TIME):
        features = torch.arange(first, min(encoder.d_hidden, first + FEATURES_AT_A_TIME))
        acts = encode(encoder, x, features).detach()[0].cpu()
        check_finite(acts[None], "The encoder's activations", 0)
        active = acts.any(0).nonzero()[:, 0]
        if not len(active):
            continue
        rows = decoder_rows(encoder, features[active]).cpu().double()
        if rows.shape[1] != whole.shape[1]:
            raise ModelError(
                f"The encoder's decoder_bias writes vectors of width {whole.shape[1]}, its decoder_rows of {rows.shape[1]}."
            )
        written = scale[:, None] * acts[:, active].double()
        mine = torch.isin(features[active], chosen)
        whole = whole + written @ rows
        part = part + written[:, mine] @ rows[mine]
        l0 += (acts != 0).sum(1)
    check_finite(whole[None], "What the encoder writes", 0)
    check_finite(part[None], "What the encoder writes", 0)
    return Decoded(whole, part, l0)


class Splicer:
    """Forward passes with something else at the hook point, at some positions of one row."""

    def __init__(
        self,
        model: LanguageModel,
        hook_point: HookPoint,
        tokens: Int[Tensor, "1 seq"],
        own: Float[Tensor, "1 seq *d"] | None = None,
    ) -> None:
        """``own`` is what stands there without a change; None if that is not known yet."""
        self.model, self.hook_point, self.tokens = model, hook_point, tokens
        self.own = model.activations(tokens, hook_point.name) if own is None else own
        # TransformerBridge's hook_resid_mid is what the MLP's norm reads: what goes around the MLP is changed behind it.
        self.behind = hook_point.kind == "hook_resid_mid" and not passes_the_mlp(model, hook_point, tokens)

    def losses(self, put: Float[Tensor, "seq d"], places: Int[Tensor, " k"]) -> list[float | None]:
        """The loss of predicting each token, with ``put`` at some places."""
        return self.losses_of(self.logits(put, places))

    def losses_of(self, logits: Float[Tensor, "seq d_vocab"]) -> list[float | None]:
        """The loss of predicting each token."""
        return _losses(logits, self.tokens[0], self.model.padding_id())

    def divergences(
        self, logits: Float[Tensor, "seq d_vocab"], others: Float[Tensor, "seq d_vocab"]
    ) -> list[float | None]:
        """``KL(p ‖ q)`` of the predictions of each token that has a loss, from two passes."""
        return _divergences(logits, others, self.tokens[0], self.model.padding_id())

    def logits(self, put: Float[Tensor, "seq d"] | None, places: Int[Tensor, " k"]) -> Float[Tensor, "seq d_vocab"]:
        """What the model predicts with ``put`` at some places; None: as it is."""
        changes: dict[str, Change] = {}
        if put is not None:
            new = put[places].reshape(len(places), *self.own.shape[2:])
            changes[self.hook_point.name] = _placing(new, places)
            if self.behind:
                difference = new - self.own[0, places].to(new)
                changes[f"blocks.{self.hook_point.block}.hook_resid_post"] = _adding(difference, places)
        return self.model.logits(self.tokens, changes)[0]


def _placing(new: Tensor, places: Tensor) -> Change:
    def change(value: Tensor) -> Tensor:
        changed = value.clone()
        changed[:, places.to(value.device)] = new.to(value)
        return changed

    return change


def _adding(difference: Tensor, places: Tensor) -> Change:
    def change(value: Tensor) -> Tensor:
        changed = value.clone()
        changed[:, places.to(value.device)] += difference.to(value)
        return changed

    return change


def _losses(logits: Float[Tensor, "seq d_vocab"], ids: Int[Tensor, " seq"], padding: int | None) -> list[float | None]:
    """``-logp`` of each token but the first and padding, predicted one position earlier."""
    losses: list[float | None] = [None]
    for first in range(0, len(ids) - 1, POSITIONS_AT_A_TIME):
        some = logits[first : min(len(ids) - 1, first + POSITIONS_AT_A_TIME)].cpu().double()
        next_ids = ids[first + 1 : first + 1 + len(some)]
        losses += (-torch.log_softmax(some, -1).gather(1, next_ids[:, None])[:, 0]).tolist()
    return [None if token == padding else loss for loss, token in zip(losses, ids.tolist(), strict=True)]


def _divergences(
    logits: Float[Tensor, "seq d_vocab"],
    others: Float[Tensor, "seq d_vocab"],
    ids: Int[Tensor, " seq"],
    padding: int | None,
) -> list[float | None]:
    """``KL(p ‖ q)`` where ``_losses`` has a loss; what rounding leaves below 0 is 0."""
    found: list[float | None] = [None]
    for first in range(0, len(ids) - 1, POSITIONS_AT_A_TIME):
        some = slice(first, min(len(ids) - 1, first + POSITIONS_AT_A_TIME))
        log_p, log_q = (torch.log_softmax(one[some].cpu().double(), -1) for one in (logits, others))
        # A probability of 0 counts nothing, whatever the other pass gives there.
        terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))
        found += terms.sum(-1).clamp_min(0.0).tolist()
    return [None if token == padding else value for value, token in zip(found, ids.tolist(), strict=True)]


def reconstruct(
    splicer: Splicer, encoder: Decoder, x: Float[Tensor, "1 seq *d"], chosen: Tensor, counted: Bool[Tensor, " seq"]
) -> Reconstruction:
    """All the numbers of one prompt, unrounded; ``x`` is what the encoder reads."""
    places = counted.nonzero()[:, 0]
    own = splicer.own.flatten(2)[0].cpu().double()
    made = decoded(encoder, x, chosen)
    if made.whole.shape != own.shape:
        raise ModelError(
            f"The encoder writes vectors of width {made.whole.shape[1]}, but {splicer.hook_point.name!r} takes "
            f"{own.shape[1]}."
        )
    spread = (own - own[places].mean(0)).square().sum(1) if len(places) else own.new_zeros(len(own))
    off, off_chosen = ((own - one).square().sum(1) for one in (made.whole, made.chosen))
    has_spread = counted & (spread > 0)
    error = [float(off[p] / spread[p]) if has_spread[p] else None for p in range(len(own))]
    total = float(spread[places].sum())
    logits, spliced = (splicer.logits(put, places) for put in (None, made.whole))
    return Reconstruction(
        error,
        [int(n) if is_counted else None for n, is_counted in zip(made.l0, counted, strict=True)],
        splicer.losses_of(logits),
        splicer.losses_of(spliced),
        splicer.losses_of(spliced) if torch.equal(made.chosen, made.whole) else splicer.losses(made.chosen, places),
        splicer.losses(torch.zeros_like(own), places),
        float(off[places].sum()) / total if total > 0 else None,
        float(off_chosen[places].sum()) / total if total > 0 else None,
        splicer.divergences(logits, spliced),
    )
