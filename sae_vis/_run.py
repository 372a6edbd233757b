"""The arguments of a call, checked, and what follows from them for the whole run: where to read, what to record."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_vis import __version__
from sae_vis._ablation import FormulaTail, choose_tail, chunk_size
from sae_vis._activations import check_width, decoder_rows
from sae_vis._ending import Ending
from sae_vis._errors import InputError, ModelError, shown
from sae_vis._full_ablation import FullAblation, Start
from sae_vis._measure import Methods
from sae_vis._measure_direct import NOTHING_KEPT, Corpus, Written
from sae_vis._page_context import Provenance
from sae_vis._params import FeatureVisParams
from sae_vis._sae_adapters import as_encoder
from sae_vis.model_fns import Encoder, FinalNorm, HookPoint, LanguageModel, WritePath, digest_tensors, steady_product

NO_SETTINGS = ("training", "device")  # the same encoder elsewhere, or on the way to another
SAME_TEXT = 1e-2  # relative to the largest activation
CALLER = 4  # of a public function, as a warning counts: past its wrapper, and the function here
CHECKED_POSITIONS = 64  # where the closed form is compared with the model's own logits
MOST_FEATURES = 2**27  # of a dictionary: more would fill the memory before the first activation


class Run(NamedTuple):
    """The checked arguments of one call. ``write_point`` is where the features are written, mostly where they are read."""

    model: LanguageModel
    encoder: Encoder
    encoder_b: Encoder | None
    fvp: FeatureVisParams
    hook_point: HookPoint
    write_point: HookPoint

    @classmethod
    def prepare(cls, encoder: Any, model: Any, fvp: FeatureVisParams, encoder_b: Any) -> Run:
        if not isinstance(fvp, FeatureVisParams):
            raise InputError(f"fvp must be a FeatureVisParams, got {type(fvp).__name__}.")
        wrapped = LanguageModel(model)
        adapted = as_encoder(encoder)
        adapted_b = None if encoder_b is None else as_encoder(encoder_b, "encoder_B")
        for one, called in ((adapted, "encoder"), (adapted_b, "encoder_B")):
            if one is not None:
                check_sizes(one, called)
        name = fvp.hook_point or getattr(adapted, "hook_point", None)
        if not name:
            raise InputError(
                "No hook point: give FeatureVisParams(hook_point='blocks.0.mlp.hook_post') or an encoder that has one."
            )
        elsewhere = getattr(adapted, "hook_point_out", None) or name
        for member, value in (("hook_point", name), ("hook_point_out", elsewhere)):
            if not isinstance(value, str):
                raise ModelError(f"encoder.{member} must be a name, got {shown(value)}.")
        read_at, written_at = wrapped.check_hook_point(name), wrapped.check_hook_point(elsewhere)
        return cls(wrapped, adapted, adapted_b, fvp, read_at, written_at)

    def corpus(
        self,
        tokens: Int[Tensor, "rows seq"],
        ending: Ending | None = None,
        kept: Mapping[str, Float[Tensor, "rows seq d_model"]] = NOTHING_KEPT,
    ) -> Corpus:
        """The tokens, with what is run on them; ``kept`` is what stands at some hook points, where it is known."""
        written = Written(self.encoder, self.hook_point.name)
        ending = Ending(self.model.final_hook) if ending is None else ending
        return Corpus(self.model, tokens, written, self.fvp.minibatch_size_tokens, ending, kept)

    def features(self) -> Tensor:
        """The feature ids asked for, in rising order."""
        if self.fvp.features is None:
            return torch.arange(self.encoder.d_hidden)
        check_features(self.fvp.features, self.encoder)
        return torch.tensor(self.fvp.features, dtype=torch.int64)

    def ignored_ids(self) -> list[int]:
        """The token ids whose positions do not count."""
        return list(self.model.special_token_ids() if self.fvp.ignore_tokens is None else self.fvp.ignore_tokens)

    def counted(self, tokens: Int[Tensor, "rows seq"]) -> Bool[Tensor, "rows seq"]:
        """Which positions count."""
        counted = ~torch.isin(tokens, torch.tensor(self.ignored_ids(), dtype=torch.int64))
        counted[:, [place for place in self.fvp.ignore_positions if place < tokens.shape[1]]] = False
        return counted

    def check_fit(self, tokens: Tensor) -> WritePath:
        """Try the hook point on one row: the widths must fit, and its way to the residual stream is found."""
        self.features()
        x = self.model.activations(tokens[:1], self.hook_point.name)
        check_width(self.encoder, x, self.hook_point.name, "The encoder")
        if self.encoder_b is not None:
            check_width(self.encoder_b, x, self.hook_point.name, "encoder_B")
        return self.model.write_path(self.write_point, tokens)

    def provenance(self, tokens: Tensor, counted: Tensor, path: WritePath) -> Provenance:
        """What was run on what."""
        first = torch.unique(tokens[:, 0])
        digests = {
            "model": self.model.digest(),
            "encoder": _encoder_digest(self.encoder),
            "tokens": hashlib.blake2b(tokens.numpy().tobytes(), digest_size=16).hexdigest(),
        }
        if self.encoder_b is not None:
            digests["encoder_B"] = _encoder_digest(self.encoder_b)
        return Provenance(
            model=self.model.name,
            hook_point=self.hook_point.name,
            hook_point_out=None if self.write_point == self.hook_point else self.write_point.name,
            d_in=self.encoder.d_in,
            d_hidden=self.encoder.d_hidden,
            n_rows=len(tokens),
            seq_len=tokens.shape[1],
            n_counted=int(counted.sum()),
            direct_effect="none" if path.missing_because else "exact" if path.exact else "direct path",
            direct_effect_reason=path.missing_because or "",
            first_token_id=int(first[0]) if len(first) == 1 else None,
            ignored_token_ids=self.ignored_ids(),
            ignored_positions=list(self.fvp.ignore_positions),
            versions=_versions(),
            digests=digests,
        )


_ITS_OWN_VARIANT = "an encoder must be run on the variant of the model that it was trained on."
_CENTRED_NOTE = (
    "The model's writing weights are centred, as TransformerLens leaves them after processing; " + _ITS_OWN_VARIANT
)
_FOLDED_NOTE = (
    "The model's value biases are zero and its attention's output biases are not, as TransformerLens leaves them after "
    "processing; " + _ITS_OWN_VARIANT
)


def warn_of_processed_weights(run: Run, provenance: Provenance) -> None:
    """Processing changes what an encoder reads at some hook points; nobody notices by looking.

    It leaves ``mlp.hook_pre`` as it is, and ``mlp.hook_post`` but for a norm behind the neurons; the rest of the residual
    stream only where the norms centre it, and else only ``attn.hook_z``, from which it takes the value biases.
    """
    kind, model = run.hook_point.kind, run.model
    if kind == "mlp.hook_pre" or (kind == "mlp.hook_post" and not model.neurons_end_in_a_norm()):
        return
    if model.final_norm().centres and model.writes_centred():
        note = _CENTRED_NOTE
    elif kind == "attn.hook_z" and model.value_biases_folded():
        note = _FOLDED_NOTE
    else:
        return
    provenance.notes.append(note)
    warnings.warn(note, UserWarning, stacklevel=CALLER)


def warn_of_padding_in_front(run: Run, tokens: Int[Tensor, "rows seq"], provenance: Provenance) -> None:
    """Most models read the padding that stands before a text, and count its positions; nobody notices by looking."""
    model, padding = run.model, run.model.own_padding_id()
    if padding is None:
        return
    is_text = tokens != padding
    in_front = ~is_text[:, 0] & is_text.any(1)
    if not bool(in_front.any()):
        return
    row = tokens[in_front][:1]
    begins = int((row[0] != padding).int().argmax())
    there = model.activations(row, run.hook_point.name)[0, begins:].float()
    alone = model.activations(row[:, begins:], run.hook_point.name)[0].float()
    if bool((there - alone).abs().max() < SAME_TEXT * alone.abs().max()):
        return  # the model masks it
    note = (
        f"Padding stands before the text in {int(in_front.sum())} of {len(tokens)} rows, and the model reads it, so that "
        "the text has other activations than alone. Pad on the right."
    )
    provenance.notes.append(note)
    warnings.warn(note, UserWarning, stacklevel=CALLER)


def check_sizes(encoder: Encoder, name: str) -> None:
    """Raise ``ModelError`` if the widths of an encoder are none."""
    for size in ("d_in", "d_hidden"):
        value = getattr(encoder, size)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_FEATURES:
            raise ModelError(f"{name}.{size} must be an int from 1 to {MOST_FEATURES}, got {shown(value)}.")


def check_features(features: Sequence[int], encoder: Encoder) -> None:
    """Raise ``InputError`` if a feature is not in the dictionary."""
    wrong = [feature for feature in features if feature >= encoder.d_hidden]
    if wrong:
        raise InputError(
            f"Feature {wrong[0]} is out of range: the encoder has {encoder.d_hidden} (0 to {encoder.d_hidden - 1})."
        )


def check_feature_rows(rows: Tensor, features: Sequence[int], what: str) -> None:
    """Raise ``ModelError`` naming the first feature whose row of ``rows [n, ...]`` holds NaN or infinity."""
    if bool(torch.isfinite(rows.sum())):  # only a finite sum rules both out, and it is quick
        return
    finite = torch.isfinite(rows).all(-1)
    if not bool(finite.all()):
        feature = features[int((~finite).nonzero()[0])]
        raise ModelError(
            f"{what} of feature {feature} hold NaN or infinity. Check W_dec and its number format; "
            "FeatureVisParams(features=...) can leave the feature out."
        )


def _encoder_digest(encoder: Encoder) -> str:
    digest = getattr(encoder, "digest", None)
    if callable(digest):
        return str(digest())
    settings = [(setting, torch.zeros(0)) for setting in _settings(encoder)]
    if isinstance(encoder, torch.nn.Module):
        return digest_tensors([*encoder.named_parameters(), *encoder.named_buffers(), *settings])
    rows = decoder_rows(encoder, torch.linspace(0, encoder.d_hidden - 1, min(64, encoder.d_hidden)).long())
    held = sorted(getattr(encoder, "__dict__", {}).items())
    own = [(name, value) for name, value in held if isinstance(value, Tensor)]
    return digest_tensors([("decoder_rows", rows), *own, *settings])


def _settings(encoder: Any) -> Iterator[str]:
    """The plain values that it holds, itself or in a configuration: the same weights with another ``k`` are another encoder."""
    parts = encoder.named_modules() if isinstance(encoder, torch.nn.Module) else [("", encoder)]
    for part_name, part in parts:
        for name, value in getattr(part, "__dict__", {}).items():
            inside = {"": value}
            if dataclasses.is_dataclass(value):
                inside = {f".{one.name}": getattr(value, one.name, None) for one in dataclasses.fields(value)}
            for inner, plain in inside.items():
                if isinstance(plain, bool | int | float | str) and name[0] != "_" and name not in NO_SETTINGS:
                    yield f"{part_name}.{name}{inner}={plain!r}"


def _versions() -> dict[str, str]:
    found = {"sae_vis": __version__}
    for package in ("torch", "transformer-lens"):
        installed = _installed(package)
        if installed:
            found[package] = installed
    return found


@functools.cache  # a few milliseconds each time
def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # e.g. run from a source checkout of it
        return None


def methods_of(
    run: Run,
    path: WritePath,
    norm: FinalNorm,
    written: Tensor,
    checked: Int[Tensor, "rows seq"],
    start: Start | None = None,
) -> tuple[FormulaTail | None, Methods]:
    """The closed form for these features, and what measures their effects, chosen by a check on some rows.

    The closed form, and with it the direct effect, is None where there is no way to the residual stream. ``start`` is where
    the full ablation begins, where it is known.
    """
    model, asked = run.model, run.fvp.ablations
    rows = written.to(model.device)
    directions = rows.new_zeros(0, model.d_model) if path.missing_because else _directions(run, path, rows)
    formula = FormulaTail(model, norm, directions)
    # Of a large vocabulary, the logits of two rows of a thousand tokens would take gigabytes.
    few = checked[:, : max(1, min(CHECKED_POSITIONS, chunk_size(model.d_vocab)) // len(checked))]
    tail = choose_tail(model, formula, directions, few) if asked else None
    full = None
    if "full" in asked:
        start = Start.behind(model, run.write_point, checked) if start is None else start
        full = FullAblation(
            model, run.write_point, start, rows, tail, checked, run.fvp.minibatch_size_tokens, run.fvp.n_changes
        )
    if path.missing_because:
        return None, Methods(None, full)
    return formula, Methods(tail if "direct" in asked else None, full)


def _directions(run: Run, path: WritePath, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d_model"]:
    """What one unit of each feature adds to the residual stream."""
    expected = run.model.d_model if path.matrix is None else len(path.matrix)
    if rows.shape[1] != expected:
        raise ModelError(
            f"The decoder writes vectors of width {rows.shape[1]}, but {run.write_point.name!r} takes {expected}."
        )
    return rows if path.matrix is None else steady_product(rows, path.matrix)


# --- tokens and prompts ------------------------------------------------------------------------------------------


_IDS, _PROMPT = "integers of shape [rows, seq]", "one text or its token ids"


def _as_array(values: Any, name: str, expected: str) -> Tensor:
    """The values of the argument ``name`` as a tensor that has them all in memory."""
    what = f"{name} must be {expected}"
    try:
        ids = torch.as_tensor(values)
    except Exception as error:  # noqa: BLE001 - torch raises almost anything, and so may the values' own code
        if isinstance(values, Mapping) and "input_ids" in values:
            told = f"got a {type(values).__name__}: pass {name}['input_ids']."
        elif _are_ragged(values):
            told = "but the rows have different lengths: pad them on the right with the tokenizer's padding id."
        else:
            told = f"got {type(values).__name__}, which does not form an array: {shown(str(error), 300)}"
        raise InputError(f"{what}, {told}") from None
    if ids.is_meta or ids.layout != torch.strided:
        raise InputError(f"{what} in a dense tensor, got one with layout {ids.layout} on {ids.device}.")
    return ids


def _are_texts(values: Any) -> bool:
    """Whether they are a text, or a list of texts or of lists of them."""
    if isinstance(values, list | tuple) and values:
        first = values[0][0] if isinstance(values[0], list | tuple) and values[0] else values[0]
        return isinstance(first, str | bytes)
    return isinstance(values, str | bytes)


def _are_ragged(values: Any) -> bool:
    rows = values if isinstance(values, list | tuple) else ()
    arrays = (row for row in rows if isinstance(row, Tensor | np.ndarray) and row.ndim)
    lists = (row for row in rows if isinstance(row, list | tuple))
    return len({len(row) for row in (*arrays, *lists)}) > 1


def _are_ids(ids: Tensor) -> bool:
    return not (ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool)


def check_tokens(tokens: Any, model: LanguageModel) -> Int[Tensor, "rows seq"]:
    """The tokens as int64 on the CPU.

    Raises:
        InputError: if they are not 2-D integers, empty, outside the vocabulary, or longer than the context.
    """
    if _are_texts(tokens):
        raise InputError(
            f"tokens must be {_IDS}, got texts: tokenise them first (model.to_tokens(texts)), padded on the right."
        )
    ids = _as_array(tokens, "tokens", _IDS)
    if ids.ndim != 2 or not _are_ids(ids):
        raise InputError(
            f"tokens must be {_IDS}, got {ids.dtype} of shape {tuple(ids.shape)}."
            + (" For one row, use tokens[None]." if ids.ndim == 1 else "")
        )
    if ids.numel() == 0:
        raise InputError(f"tokens are empty (shape {tuple(ids.shape)}): give at least one row of at least one token.")
    ids = ids.detach().cpu().long()
    if ids.shape[1] > model.n_ctx:
        raise InputError(
            f"Rows of {ids.shape[1]} tokens are longer than the model's context of {model.n_ctx}. Cut them."
        )
    _check_vocabulary(ids, model)
    return ids


def _check_vocabulary(ids: Int[Tensor, "rows seq"], model: LanguageModel, prompt: str | None = None) -> None:
    """Raise ``InputError`` for the first id that the model has not; ``prompt`` is the argument that they came in, if one."""
    wrong = (ids < 0) | (ids >= model.d_vocab)
    if bool(wrong.any()):
        row, position = (int(i) for i in wrong.nonzero()[0])
        place = f"row {row}, position {position}" if prompt is None else f"position {position} of {prompt}"
        raise InputError(
            f"Token id {int(ids[row, position])} at {place} is outside the model's vocabulary "
            f"(0 to {model.d_vocab - 1}). Were the tokens made with another tokenizer?"
        )


def check_same_run(run: Run, provenance: Provenance) -> None:
    """Raise ``InputError`` if features were fetched with another encoder or hook point; warn if with another model."""
    for name, now in (
        ("hook_point", run.hook_point.name),
        ("d_in", run.encoder.d_in),
        ("d_hidden", run.encoder.d_hidden),
    ):
        then = getattr(provenance, name)
        if now != then:
            raise InputError(
                f"The features were fetched with {name} {then!r}, but this call has {now!r}. Fetch them again."
            )
    digest = _encoder_digest(run.encoder)
    if provenance.digests.get("encoder", digest) != digest:
        raise InputError(
            "The features were fetched with another encoder of the same shape: its weights differ from this one's (or their "
            "type does). Pass the encoder that they were fetched with, or fetch them again."
        )
    if provenance_of_prompt(run, provenance) is not provenance:
        warnings.warn(_OTHER_MODEL_NOTE, UserWarning, stacklevel=CALLER)


_OTHER_MODEL_NOTE = (
    "The features were fetched with a model of other weights (or of another number format or class), so quantiles compare this "
    "prompt with what that model does on its tokens."
)


def provenance_of_prompt(run: Run, provenance: Provenance) -> Provenance:
    """That of the features; where the prompt's model has other weights it is named, in a note too."""
    digest = run.model.digest()
    if provenance.digests.get("model", digest) == digest:
        return provenance
    return dataclasses.replace(
        provenance,
        model=run.model.name,
        digests={**provenance.digests, "model": digest},
        notes=[*provenance.notes, _OTHER_MODEL_NOTE],
    )


def prompt_ids(
    prompt: Any, model: LanguageModel, provenance: Provenance, prepend_bos: bool | None, name: str = "prompt"
) -> Tensor:
    """The prompt's token ids ``[1, seq]``, with the token that the corpus rows begin with in front; ``name`` is for errors."""
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise InputError("The model has no tokenizer, so the prompt must be given as token ids.")
        ids = _encoded(prompt, model.tokenizer, name)
    else:
        ids = _prompt_as_ids(prompt, name)
    if not ids:
        raise InputError(f"{name} is empty: give a text or token ids with at least one token.")
    bos = model.bos_id()
    first = provenance.first_token_id if bos is None else bos  # the rows of a corpus of one row begin with any word
    wanted = (bos is not None and provenance.first_token_id == bos) if prepend_bos is None else prepend_bos
    if wanted and first is None:
        raise InputError(
            "prepend_bos=True, but the tokenizer has no BOS token and the rows do not begin with one token."
        )
    if wanted and first is not None and ids[0] != first:
        ids = [first, *ids]
    if len(ids) > model.n_ctx:
        raise InputError(f"{name} has {len(ids)} tokens, the model's context holds {model.n_ctx}. Shorten it.")
    found = _as_array([ids], name, _PROMPT).long()
    _check_vocabulary(found, model, name)
    return found


def _encoded(prompt: str, tokenizer: Any, name: str) -> list[int]:
    """The ids of a text, by the model's own tokenizer."""
    if not prompt.isascii() and any("\ud800" <= character <= "\udfff" for character in prompt):
        raise InputError(f"{name} holds half a surrogate pair, which no tokenizer takes: {shown(prompt)}.")
    if not callable(tokenizer):
        raise ModelError(
            f"The model's tokenizer, {type(tokenizer).__name__}, cannot be called: give the prompt as ids."
        )
    encoding = tokenizer(prompt, add_special_tokens=False)
    try:
        ids = list(encoding["input_ids"])
    except (TypeError, KeyError, IndexError):
        ids = None
    if ids is None or not all(isinstance(token_id, int) for token_id in ids):
        raise ModelError(
            f"The model's tokenizer must give a dict with 'input_ids', a list of ints, got {shown(encoding)} for a text."
        )
    return ids


def _prompt_as_ids(prompt: Any, name: str) -> list[int]:
    if _are_texts(prompt) or _are_ragged(prompt):
        given = "bytes: decode them" if isinstance(prompt, bytes) else f"a list of {len(prompt)}: give one of them"
        raise InputError(f"{name} must be {_PROMPT}, got {given}.")
    ids = _as_array(prompt, name, _PROMPT)
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise InputError(f"{name} must be one sequence of token ids, got shape {tuple(ids.shape)}.")
    if ids.numel() and not _are_ids(ids):
        raise InputError(f"{name} must be {_PROMPT}, got numbers of {ids.dtype}.")
    found: list[int] = ids.detach().long().tolist()
    return found
