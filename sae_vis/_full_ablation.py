"""What changes in the predictions when a feature is taken out of the model (the full effect).

A forward pass is run in which the feature's contribution is subtracted at the hook point, at every position of the row, and
everything later is computed again. Many pairs of a feature and a row share a pass. Blocks before the hook point's are not
run again, nothing is run behind the last token that is looked at, nor after the last block's attention but for these tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_vis._ablation import Effects, Tail, chunk_size, joined, listed_changes
from sae_vis._ending import Ending
from sae_vis._errors import ModelError
from sae_vis.model_fns import Change, HookPoint, LanguageModel

WHAT_ENTERS_THE_NEXT = ("hook_resid_post", "hook_mlp_out")  # block, mostly
SAME = 1e-4  # relative to the largest value: a shortened pass must give the final residual of the whole one


class RowAblation(NamedTuple):
    """One feature to be taken out of one row, and the predictions to be looked at.

    ``feature`` indexes the directions, ``row`` the rows. ``positions`` and ``contributions``: where the feature is written,
    and how much of its direction. ``predicted``: the tokens whose predictions are compared, as rising positions from 1 on;
    ``listed`` says for which of them the raised and lowered tokens are wanted.
    """

    feature: int
    row: int
    positions: Int[Tensor, " a"]
    contributions: Float[Tensor, " a"]
    predicted: Int[Tensor, " t"]
    listed: Bool[Tensor, " t"]


class _Clean(NamedTuple):
    """Rows as they are: what enters the first block that is run again, and what is kept of what comes out.

    That is what stands where the ending begins; without a tail it is the logits. ``of_next`` has the log-probability of the
    token behind each position, NaN where nobody has asked for it yet: many features may change the same prediction.
    """

    tokens: Int[Tensor, "rows seq"]
    entering: Float[Tensor, "rows seq d_model"] | None
    kept: Float[Tensor, "rows seq d"]
    of_next: Float[Tensor, " rows*seq"]

    @classmethod
    def of(cls, tokens: Int[Tensor, "rows seq"], entering: Tensor | None, kept: Tensor) -> _Clean:
        return cls(tokens, entering, kept, torch.full((tokens.numel(),), torch.nan))


class FullAblation:
    """Forward passes without a feature, for directions ``[n, d]`` that are written at a hook point.

    ``start`` is where they begin; ``tail`` leads from the final residual stream to the logits; without one the whole model
    is run. ``sample`` are a few rows of tokens on which the short cuts are compared with the whole pass.

    Raises:
        ModelError: if the directions do not fit the hook point, or nothing that the logits depend on reads it.
    """

    def __init__(
        self,
        model: LanguageModel,
        hook_point: HookPoint,
        start: Start,
        directions: Float[Tensor, "n d"],
        tail: Tail | None,
        sample: Int[Tensor, "rows seq"],
        rows_a_batch: int,
        n_changes: int,
    ) -> None:
        self.model, self.directions = model, directions
        self.tail = None if hook_point.block is None else tail
        self.rows_a_batch, self.n_changes = rows_a_batch, min(n_changes, model.d_vocab)
        self.start, self.hook_points = start, [start.written]
        if hook_point.kind == "hook_resid_mid" and not passes_the_mlp(model, hook_point, sample):
            self.hook_points.append(f"blocks.{hook_point.block}.hook_resid_post")
        self.ending = Ending(model.final_hook) if self.tail is None else self._ending(sample)
        self._check_that_it_is_read(hook_point.name, sample)

    def effects(
        self,
        tokens: Int[Tensor, "rows seq"],
        work: Iterable[RowAblation],
        entering: Float[Tensor, "rows seq d_model"] | None = None,
    ) -> Iterator[tuple[RowAblation, Effects]]:
        """The effects of each ablation on its predictions; the ablations come in an order of their own.

        ``entering`` is what enters the first block that is run, where it is known.
        """
        clean, most = self._clean(tokens, entering), chunk_size(self.model.d_vocab)
        waiting: list[tuple[RowAblation, Tensor]] = []  # compared together: few rows at a time make a slow product
        n_waiting = 0
        for batch, length in self._passes(work, tokens.shape[1]):
            n_more = sum(len(one.predicted) for one in batch)
            if waiting and n_waiting + n_more > most:
                yield from self._compared(clean, waiting)
                waiting, n_waiting = [], 0
            waiting += zip(batch, self._without(clean, batch, length), strict=True)
            n_waiting += n_more
        if waiting:
            yield from self._compared(clean, waiting)

    def _passes(self, work: Iterable[RowAblation], seq_len: int) -> Iterator[tuple[list[RowAblation], int]]:
        """Ablations whose rows are run together, and how much of their rows."""
        by_length: dict[int, list[RowAblation]] = {}
        for one in sorted(work, key=lambda one: (one.row, one.feature)):
            by_length.setdefault(self._length(one, seq_len), []).append(one)
        for length, ablations in sorted(by_length.items()):
            size = self._rows_a_pass(length)
            for first in range(0, len(ablations), size):
                yield ablations[first : first + size], length

    def _ending(self, sample: Tensor) -> Ending:
        """The last block's MLP, if it begins behind everything that is changed."""
        last, points = self.model.n_layers - 1, [HookPoint.parse(name) for name in self.hook_points]
        is_behind = all(
            point.block is not None and (point.block < last or point.kind == "hook_resid_pre") for point in points
        )
        return Ending.of(self.model, points[0], sample) if is_behind else Ending(self.model.final_hook)

    def _rows_a_pass(self, length: int) -> int:
        """How many rows of this length are run together."""
        size = min(self.rows_a_batch, max(1, chunk_size(self.model.d_vocab) // (length if self.tail is None else 1)))
        return min(size, self.model.rows_a_pass(length))

    def _length(self, one: RowAblation, seq_len: int) -> int:
        """How much of the row is run: the row's own, so that its numbers do not depend on the rest of the batch."""
        return min(seq_len, self.model.padded_length(int(one.predicted[-1]))) if self.model.causal else seq_len

    def _clean(self, tokens: Tensor, entering: Tensor | None = None) -> _Clean:
        if not self.start.block:
            entering = None
        elif entering is None:
            entering = self.model.activations(tokens, self.start.entry)
        size = len(tokens) if self.tail is None else self.model.rows_a_pass(tokens.shape[1])
        kept = []
        for first in range(0, len(tokens), size):
            some = slice(first, first + size)
            kept.append(self._kept(tokens[some], None if entering is None else entering[some]))
        return _Clean.of(tokens, entering, torch.cat(kept) if len(kept) > 1 else kept[0])  # logits may be gigabytes

    def _without(self, clean: _Clean, batch: Sequence[RowAblation], length: int) -> list[Float[Tensor, "t d"]]:
        """What is kept where each ablation's predictions are made: one forward pass of the rows, each without its feature."""
        rows = torch.tensor([one.row for one in batch])
        written = torch.zeros(len(batch), length)
        for index, one in enumerate(batch):
            inside = one.positions < length
            written[index, one.positions[inside]] = one.contributions[inside]
        entering = None if clean.entering is None else clean.entering[rows.to(clean.entering.device), :length]
        directions = self.directions[torch.tensor([one.feature for one in batch], device=self.directions.device)]
        contribution = written.to(directions)[:, :, None] * directions[:, None, :]
        kept = self._kept(clean.tokens[rows, :length], entering, contribution)
        return [of_row[(one.predicted - 1).to(kept.device)] for one, of_row in zip(batch, kept, strict=True)]

    def _kept(
        self, tokens: Tensor, entering: Tensor | None, contribution: Float[Tensor, "rows seq d"] | None = None
    ) -> Tensor:
        """What is kept of the rows, without the contribution if one is given."""
        changes = self.start.changes(entering)
        if contribution is not None:
            for name in self.hook_points:
                changes[name] = _subtracting(contribution, after=changes.get(name))
        with self.start.passing_over(self.model):
            if self.tail is None:
                return self.model.logits(tokens, changes)
            return self.model.capture(tokens, [self.ending.hook], changes)[self.ending.hook]

    def _compared(
        self, clean: _Clean, ablations: Sequence[tuple[RowAblation, Tensor]]
    ) -> Iterator[tuple[RowAblation, Effects]]:
        """The effects at every prediction of some ablations, in chunks of as many as memory holds."""
        batch, without = [one for one, _ in ablations], torch.cat([kept for _, kept in ablations])
        counts = torch.tensor([len(one.predicted) for one in batch])
        row = torch.repeat_interleave(torch.tensor([one.row for one in batch]), counts)
        predicted = torch.cat([one.predicted for one in batch])
        listed = torch.cat([one.listed for one in batch])
        place = row * clean.tokens.shape[1] + predicted - 1
        chunk, device, parts = chunk_size(self.model.d_vocab), without.device, []
        for first in range(0, len(predicted), chunk):
            some = slice(first, first + chunk)
            here, chosen = place[some], listed[some]
            before, of_next = self._as_it_is(clean, here, chosen)
            after = self._log_probs(without[some])
            next_token = clean.tokens.reshape(-1)[here + 1].to(device)
            loss = after.gather(1, next_token[:, None])[:, 0].cpu() - of_next
            parts.append(listed_changes(loss, before.sub_(after[chosen.to(device)]), self.n_changes, chosen))
        split = [torch.split(values, counts.tolist()) for values in joined(parts)]
        yield from zip(batch, (Effects(*columns) for columns in zip(*split, strict=True)), strict=True)

    def _as_it_is(
        self, clean: _Clean, places: Int[Tensor, " k"], listed: Bool[Tensor, " k"]
    ) -> tuple[Float[Tensor, "listed d_vocab"], Float[Tensor, " k"]]:
        """The log-probabilities at the listed places with everything, and that of the next token at all places."""
        needed = torch.unique(places[listed | clean.of_next[places].isnan()])
        log_probs = self._log_probs(clean.kept.flatten(0, 1)[needed.to(clean.kept.device)])
        next_token = clean.tokens.reshape(-1)[needed + 1].to(log_probs.device)
        clean.of_next[needed] = log_probs.gather(1, next_token[:, None])[:, 0].cpu()
        return log_probs[torch.searchsorted(needed, places[listed]).to(log_probs.device)], clean.of_next[places]

    def _log_probs(self, kept: Float[Tensor, "k d"]) -> Float[Tensor, "k d_vocab"]:
        if self.tail is None:
            return torch.log_softmax(kept, dim=-1)
        self.tail.prepare(self.ending.leaving(kept))
        return torch.log_softmax(self.tail.logits(), dim=-1)

    def _check_that_it_is_read(self, name: str, sample: Tensor) -> None:
        value = self.model.activations(sample, name).float().flatten(2)
        if value.shape[2] != self.directions.shape[1]:
            raise ModelError(
                f"The decoder writes vectors of width {self.directions.shape[1]}, but {name!r} takes {value.shape[2]}."
            )
        clean = self._clean(sample)
        if torch.equal(self._kept(sample, clean.entering, value.roll(1, -1) + 1.0), clean.kept):
            raise ModelError(
                f"ablation='full' cannot be measured at {name!r}: a change there changes no logit, so nothing reads it. "
                "Use ablation='direct' or ablation=None, or another hook point."
            )


# --- beginning in the middle ---------------------------------------------------------------------------------------

_Output = Callable[[Tensor], Any]
# What a block gives back, by model: the residual stream, or a tuple of it. Which one is right, the check tells.
_OUTPUTS: tuple[_Output, ...] = (lambda residual: residual, lambda residual: (residual,))
_WRONG_OUTPUT = (TypeError, ValueError, AttributeError, IndexError, RuntimeError)


class Start(NamedTuple):
    """The first block that is run; those before it give back what they get, as ``output`` gives it.

    ``written`` is the hook point at which the features are taken out.
    """

    block: int
    written: str
    output: _Output = _OUTPUTS[0]

    @classmethod
    def find(cls, model: LanguageModel, block: int, written: str, sample: Int[Tensor, "rows seq"]) -> Start:
        """The block itself, if passing over those before it changes nothing on the sample; else the first one."""
        if block == 0:
            return cls(0, written)
        entry = cls(block, written).entry
        clean = model.capture(sample, [entry, model.final_hook])
        for output in _OUTPUTS:
            start = cls(block, written, output)
            try:
                with start.passing_over(model):
                    final = model.capture(sample, [model.final_hook], start.changes(clean[entry]))[model.final_hook]
            except _WRONG_OUTPUT:
                continue
            if _same(final, clean[model.final_hook]):
                return start
        return cls(0, written)

    @classmethod
    def behind(cls, model: LanguageModel, hook_point: HookPoint, sample: Int[Tensor, "rows seq"]) -> Start:
        """The next block, and what enters it, if taking something out there is the same as at the hook point; else its own."""
        block = hook_point.block or 0
        if hook_point.kind in WHAT_ENTERS_THE_NEXT and block + 1 < model.n_layers:
            start = cls.find(model, block + 1, hook_point.name, sample)
            change = _subtracting(model.activations(sample, hook_point.name).float().roll(1, -1) + 1.0)
            if start.block and _same(
                *(
                    model.capture(sample, [model.final_hook], {name: change})[model.final_hook]
                    for name in (hook_point.name, start.entry)
                )
            ):
                return start._replace(written=start.entry)
        return cls.find(model, block, hook_point.name, sample)

    @property
    def entry(self) -> str:
        """The hook point of what enters the block."""
        return f"blocks.{self.block}.hook_resid_pre"

    def changes(self, entering: Tensor | None) -> dict[str, Change]:
        """What puts the residual stream back that the earlier blocks would have made."""
        return {self.entry: _overwriting(entering)} if self.block and entering is not None else {}

    @contextmanager
    def passing_over(self, model: LanguageModel) -> Iterator[None]:
        """The blocks before this one do nothing; afterwards they are as they were."""
        blocks = [model.model.blocks[index] for index in range(self.block)]
        before = [vars(block).get("forward") for block in blocks]

        def give_back(*args: Any, **kwargs: Any) -> Any:
            return self.output(args[0] if args else kwargs["hidden_states"])

        try:
            for block in blocks:
                vars(block)["forward"] = give_back
            yield
        finally:
            for block, own in zip(blocks, before, strict=True):
                if own is None:
                    vars(block).pop("forward", None)
                else:
                    vars(block)["forward"] = own


def passes_the_mlp(model: LanguageModel, hook_point: HookPoint, sample: Int[Tensor, "rows seq"]) -> bool:
    """Whether a change in the middle of a block reaches its end beside the MLP, as in the residual stream it must.

    TransformerBridge's hook point there is what the MLP's norm reads: a change goes into the MLP only.
    """
    mlp, end = f"blocks.{hook_point.block}.hook_mlp_out", f"blocks.{hook_point.block}.hook_resid_post"
    plain = model.capture(sample, [hook_point.name, mlp, end])
    change = plain[hook_point.name].float().roll(1, -1) + 1.0
    changes = {hook_point.name: _subtracting(change), mlp: _overwriting(plain[mlp])}
    moved = model.capture(sample, [end], changes)[end].float() - plain[end].float()
    return bool(moved.norm() > 0.5 * change.norm())


# --- changes at hook points ----------------------------------------------------------------------------------------


def _overwriting(values: Float[Tensor, "rows seq *d"]) -> Change:
    def overwrite(value: Tensor) -> Tensor:
        changed = value.clone()
        changed[: values.shape[0], : values.shape[1]] = values
        return changed

    return overwrite


def _subtracting(contribution: Float[Tensor, "rows seq d"], after: Change | None = None) -> Change:
    """Less the contribution, whose width is that of the value with its heads flattened."""

    def subtract(value: Tensor) -> Tensor:
        changed = value.clone() if after is None else after(value)
        n_rows, seq_len = contribution.shape[:2]
        part = changed[:n_rows, :seq_len]
        changed[:n_rows, :seq_len] = (part.float() - contribution.reshape(part.shape)).to(changed.dtype)
        return changed

    return subtract


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= SAME * b.abs().max())
