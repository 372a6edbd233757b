"""Stage ``sae``: sparse autoencoders on the MLP's neurons.

The loss is ``|x - x'|^2 + l1 * sum_i a_i |W_dec[i]|``: the L1 penalty weighted by decoder norms, with ``l1`` warmed up
(Anthropic's update of April 2024), on activations scaled to a mean norm of sqrt(d_in). Features that have stopped
firing are restarted towards inputs that are badly reconstructed. The penalty shrinks activations, so at the end, with
the encoder (and with it the sparsity) fixed, the decoder is fitted again by least squares without the penalty. Then the
scale and the decoder norms are folded into the weights exactly: decoder rows have unit norm and the SAE reads raw
activations.

A few per cent of the features are active on a token, so the gradients are written out by hand with sparse products;
only the encoder is a dense one. On a CPU this is several times faster than automatic differentiation.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .lm import TwinModel, load_twin
from .settings import SaeSettings
from .text import rows

SAVE_EVERY_SECONDS = 120.0
LOG_EVERY_STEPS = 100
SCALE_ROWS = 512  # rows that fix the input scale and the first decoder bias
ROWS_AT_ONCE = 64
REFIT_ROWS = 8_192  # rows of the last fit of the decoder: about a million tokens
REFIT_RIDGE = 100.0
GRAD_CLIP = 1.0
INITIAL_NORM = 0.3
INITIAL_THRESHOLD = 1.5  # standard deviations of a feature's input below which it is silent at first
DEAD_AFTER_TOKENS = 300_000  # a feature silent for this long is restarted
SPARSE_BELOW = 0.06  # share of non-zero activations below which sparse products are quicker
RESAMPLED_ENCODER_NORM = 0.2  # of the mean norm of the live ones


@dataclass
class Sae:
    """``relu((x - b_dec) @ enc.T + b_enc)`` and ``a @ dec + b_dec``; ``enc`` and ``dec`` have a row per feature."""

    enc: Tensor
    b_enc: Tensor
    dec: Tensor
    b_dec: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Return the features' activations."""
        return torch.addmm(self.b_enc - self.enc @ self.b_dec, x, self.enc.T).relu_()

    def decode(self, a: Tensor) -> Tensor:
        """Return the reconstruction."""
        return a @ self.dec + self.b_dec

    def tensors(self) -> dict[str, Tensor]:
        """Return the four parameters by name."""
        return {"enc": self.enc, "b_enc": self.b_enc, "dec": self.dec, "b_dec": self.b_dec}

    def folded(self, scale: float) -> Sae:
        """Return the SAE of unscaled inputs with unit decoder rows that computes the same."""
        norms = self.dec.norm(dim=1)
        return Sae(
            enc=self.enc * norms[:, None], b_enc=self.b_enc * norms / scale,
            dec=self.dec / norms[:, None], b_dec=self.b_dec / scale,
        )  # fmt: skip


class SparseRows:
    """A batch of activations [token, feature] by its non-zero entries, for the products that the gradients need."""

    def __init__(self, dense: Tensor) -> None:
        self.shape = dense.shape
        by_row = dense.to_sparse_csr()
        self.crow, self.col, self.values = by_row.crow_indices(), by_row.col_indices(), by_row.values()
        counts = torch.bincount(self.col, minlength=dense.shape[1])
        self.order = torch.argsort(self.col, stable=True)
        self.feature_start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        token_of = torch.repeat_interleave(torch.arange(dense.shape[0]), self.crow.diff())
        self.token_by_feature = token_of[self.order]

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of entries over tokens, per feature."""
        return torch.zeros(self.shape[1]).index_add_(0, self.col, values)

    def times(self, values: Tensor, right: Tensor) -> Tensor:
        """Return ``values @ right`` for ``right`` [feature, d_in]."""
        product: Tensor = (
            torch.sparse_csr_tensor(self.crow, self.col, values, self.shape, check_invariants=False) @ right
        )
        return product

    def transposed_times(self, values: Tensor, right: Tensor) -> Tensor:
        """Return ``values.T @ right`` for ``right`` [token, d_in]."""
        product: Tensor = torch.sparse_csr_tensor(
            self.feature_start, self.token_by_feature, values[self.order], self.shape[::-1], check_invariants=False
        ) @ right  # fmt: skip
        return product

    def inner(self, left: Tensor, right: Tensor, plus: Tensor) -> Tensor:
        """Return ``left[token] . right[feature] + plus[feature]`` at the non-zero entries."""
        zeros = torch.zeros_like(self.values)
        pattern = torch.sparse_csr_tensor(self.crow, self.col, zeros, self.shape, check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values() + plus[self.col]


class DenseRows:
    """The same products on all entries: quicker while many features are active, at the start of training."""

    def __init__(self, dense: Tensor) -> None:
        self.values = dense

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of entries over tokens, per feature."""
        return values.sum(0)

    def times(self, values: Tensor, right: Tensor) -> Tensor:
        """Return ``values @ right``."""
        return values @ right

    def transposed_times(self, values: Tensor, right: Tensor) -> Tensor:
        """Return ``values.T @ right``."""
        return values.T @ right

    def inner(self, left: Tensor, right: Tensor, plus: Tensor) -> Tensor:
        """Return ``left @ right.T + plus`` where the activation isn't zero, else zero."""
        return torch.addmm(plus, left, right.T).mul_(self.values > 0)


def loss_and_gradients(sae: Sae, x: Tensor, l1: float) -> tuple[dict[str, float], dict[str, Tensor], Tensor, Tensor]:
    """Return the figures, the gradients of the loss's mean over tokens, the features that fired and the residual."""
    n = x.shape[0]
    dense = sae.encode(x)
    n_active = int(torch.count_nonzero(dense))
    a = SparseRows(dense) if n_active < SPARSE_BELOW * dense.numel() else DenseRows(dense)
    error = a.times(a.values, sae.dec) + (sae.b_dec - x)
    norms = sae.dec.norm(dim=1)
    grad_error = error * (2 / n)
    grad_a = a.inner(grad_error, sae.dec, plus=(l1 / n) * norms)
    sums, grad_b_enc = a.sum(a.values), a.sum(grad_a)
    gradients = {
        "enc": a.transposed_times(grad_a, x - sae.b_dec),
        "b_enc": grad_b_enc,
        "dec": a.transposed_times(a.values, grad_error) + (l1 / n) * (sums / norms.clamp_min(1e-8))[:, None] * sae.dec,
        "b_dec": grad_error.sum(0) - grad_b_enc @ sae.enc,
    }
    figures = {"error": error.pow(2).sum().item() / n, "l0": n_active / n, "l1": (sums @ norms).item() / n}
    return figures, gradients, sums > 0, error


def train_sae(work: Path, name: str, settings: SaeSettings, minutes: float | None = None, threads: int = 2) -> None:
    """Train one SAE on the trained model's activations over the training text; goes on from a checkpoint.

    The schedule ends when the token budget is spent, or after ``minutes`` if that is sooner.
    """
    torch.set_num_threads(threads)
    trainer = SaeTrainer(work, name, settings, minutes)
    trainer.run()
    batches = (
        activations(trainer.model, part) * trainer.scale for part in trainer.tokens[-REFIT_ROWS:].split(ROWS_AT_ONCE)
    )
    _save_folded(work, name, refit_decoder(trainer.sae, batches).folded(trainer.scale))
    print(f"{name} done", flush=True)


class SaeTrainer:
    """One SAE in training: its weights, Adam's state, and which features have fallen silent."""

    def __init__(self, work: Path, name: str, settings: SaeSettings, minutes: float | None) -> None:
        self.work, self.name, self.settings, self.minutes = work, name, settings, minutes
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.model = load_twin(work / "lm.safetensors")
        self.tokens = torch.from_numpy(rows(work, "train", seed=100 + settings.seed))
        sample = activations(self.model, self.tokens[:SCALE_ROWS])
        self.scale = math.sqrt(sample.shape[1]) / sample.norm(dim=1).mean().item()
        sample *= self.scale
        self.variance = (sample - sample.mean(0)).pow(2).sum(1).mean().item()
        self.sae = _initial(sample, settings, self.generator)
        parameters = list(self.sae.tensors().values())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)
        self.step, self.seconds, self.silent_for = 0, 0.0, torch.zeros(settings.d_hidden)
        self.n_steps = settings.token_budget // settings.batch_tokens
        if (work / f"{name}.pt").exists():
            self._load()

    @property
    def progress(self) -> float:
        """How much of the schedule is behind us, from 0 to 1."""
        return min(1.0, max(self.step / self.n_steps, self.seconds / (60 * self.minutes) if self.minutes else 0.0))

    def run(self) -> None:
        """Take all steps that are left, printing and saving now and then."""
        first_step, before, began, saved = self.step, self.seconds, time.monotonic(), time.monotonic()
        mean = {"error": 0.0, "l0": 0.0, "l1": 0.0}
        batches = _batches(self.model, self.tokens, self.scale, self.settings, self.generator, skip=self.step)
        while self.progress < 1:
            progress = self.progress
            x = next(batches)
            figures, error = self._learn(x)
            self.seconds = before + time.monotonic() - began
            if any(progress < fraction <= self.progress for fraction in self.settings.resample_fractions):
                self._resample(error)
            mean = {key: value + figures[key] / LOG_EVERY_STEPS for key, value in mean.items()}
            if self.step % LOG_EVERY_STEPS == 0:
                rate = (self.step - first_step) * len(x) / (self.seconds - before)
                print(
                    f"{self.name} step {self.step} progress {self.progress:.3f} "
                    f"explained {1 - mean['error'] / self.variance:.4f} L0 {mean['l0']:.1f} L1 {mean['l1']:.1f} "
                    f"dead {int(self._dead().sum())} {rate:.0f} tokens/s",
                    flush=True,
                )
                mean = dict.fromkeys(mean, 0.0)
            if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                self._save()
                saved = time.monotonic()
        self._save()

    def _learn(self, x: Tensor) -> tuple[dict[str, float], Tensor]:
        """Take one step; return its figures and the batch's residual."""
        s = self.settings
        l1 = s.l1 * min(1.0, self.progress / s.l1_warmup_fraction)
        figures, gradients, fired, error = loss_and_gradients(self.sae, x, l1)
        norm = math.sqrt(sum(g.pow(2).sum().item() for g in gradients.values()))
        for key, parameter in self.sae.tensors().items():
            torch.mul(gradients[key], min(1.0, GRAD_CLIP / norm), out=parameter.grad)
        self.optimizer.param_groups[0]["lr"] = s.learning_rate * min(1.0, (1 - self.progress) / s.lr_decay_fraction)
        self.optimizer.step()
        self.step += 1
        self.silent_for += len(x)
        self.silent_for[fired] = 0
        return figures, error

    def _dead(self) -> Tensor:
        return self.silent_for >= DEAD_AFTER_TOKENS

    def _resample(self, error: Tensor) -> None:
        """Point dead features at inputs of a batch, drawn in proportion to their squared error, and forget Adam's past."""
        dead, sae = self._dead(), self.sae
        index = dead.nonzero()[:, 0]
        print(f"{self.name} step {self.step}: {len(index)} features restarted", flush=True)
        if not len(index):
            return
        weights = error.pow(2).sum(1)
        chosen = torch.multinomial(weights, len(index), replacement=len(index) > len(error), generator=self.generator)
        directions = -error[chosen] / error[chosen].norm(dim=1, keepdim=True)
        sae.enc[index] = directions * sae.enc[~dead].norm(dim=1).mean() * RESAMPLED_ENCODER_NORM
        sae.dec[index] = directions * sae.dec[~dead].norm(dim=1).mean()
        sae.b_enc[index] = 0.0
        for parameter in (sae.enc, sae.dec, sae.b_enc):
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][moment][index] = 0.0
        self.silent_for[index] = 0

    def _load(self) -> None:
        state = torch.load(self.work / f"{self.name}.pt", weights_only=True)
        for key, parameter in self.sae.tensors().items():
            parameter.copy_(state["sae"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.silent_for = state["step"], state["seconds"], state["silent_for"]
        print(f"{self.name}: going on from step {self.step}", flush=True)

    def _save(self) -> None:
        state = {
            "sae": self.sae.tensors(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "silent_for": self.silent_for,
        }
        torch.save(state, self.work / f"{self.name}.pt")
        _save_folded(self.work, self.name, self.sae.folded(self.scale))


def refit_decoder(sae: Sae, batches: Iterator[Tensor]) -> Sae:
    """Return the SAE with the decoder that minimises the squared error, the code of each input as it is.

    A ridge towards the trained decoder, as strong as ``REFIT_RIDGE`` activations of the mean squared size, keeps rare
    features in place. The bias is shared with the encoder and stays.
    """
    n_features = len(sae.b_enc)
    gram = torch.zeros(n_features, n_features, dtype=torch.float64)
    cross = torch.zeros(n_features, sae.dec.shape[1], dtype=torch.float64)
    active = torch.zeros(n_features, dtype=torch.float64)
    for x in batches:
        dense = sae.encode(x)
        a = SparseRows(dense)
        gram += a.transposed_times(a.values, dense)
        cross += a.transposed_times(a.values, x - sae.b_dec)
        active += a.sum(torch.ones_like(a.values))
    ridge = REFIT_RIDGE * gram.diagonal() / active.clamp_min(1) + 1e-6
    dec = torch.linalg.solve(gram + torch.diag(ridge), cross + ridge[:, None] * sae.dec.double())
    return Sae(sae.enc, sae.b_enc, dec.float(), sae.b_dec)


@torch.no_grad()
def activations(model: TwinModel, tokens: Tensor) -> Tensor:
    """Return what the hook point holds at every position but BOS, [token, d_in]."""
    return torch.cat([model.to_hook(part)[1][:, 1:].flatten(0, 1) for part in tokens.split(ROWS_AT_ONCE)])


def load_folded(work: Path, name: str) -> Sae:
    """Return a trained SAE in the form that is exported."""
    return Sae(**load_file(work / f"{name}.safetensors"))


def _initial(sample: Tensor, settings: SaeSettings, generator: torch.Generator) -> Sae:
    """Random decoder directions, the encoder their transpose, the bias such that few are active at first."""
    dec = torch.randn(settings.d_hidden, sample.shape[1], generator=generator)
    dec *= INITIAL_NORM / dec.norm(dim=1, keepdim=True)
    b_dec = sample.mean(0)
    spread = ((sample - b_dec) @ dec.T).std(dim=0)
    return Sae(enc=dec.clone(), b_enc=-INITIAL_THRESHOLD * spread, dec=dec, b_dec=b_dec)


def _batches(
    model: TwinModel, tokens: Tensor, scale: float, settings: SaeSettings, generator: torch.Generator, skip: int
) -> Iterator[Tensor]:
    """Yield shuffled batches of scaled activations, over the rows again and again."""
    per_buffer = settings.buffer_rows * (tokens.shape[1] - 1) // settings.batch_tokens
    n_buffers = len(tokens) // settings.buffer_rows
    for number in itertools.count(skip // per_buffer):
        start = number % n_buffers * settings.buffer_rows
        buffer = activations(model, tokens[start : start + settings.buffer_rows]) * scale
        order = torch.randperm(len(buffer), generator=generator)
        for index in range(per_buffer):
            yield buffer[order[index * settings.batch_tokens : (index + 1) * settings.batch_tokens]]


def _save_folded(work: Path, name: str, sae: Sae) -> None:
    save_file({key: value.contiguous() for key, value in sae.tensors().items()}, work / f"{name}.safetensors")
