"""Stage ``lm``: a one-layer transformer, trained as plain PyTorch and loaded into TransformerLens by name.

``TwinModel`` computes what TransformerLens' native model computes and names its parameters alike, without the hooks;
``export`` renames them for a ``TransformerBridge`` and compares the logits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .settings import MODEL, ModelSettings
from .text import rows

SAVE_EVERY_SECONDS = 120.0
LOG_EVERY_STEPS = 50
EVAL_EVERY_STEPS = 500
EVAL_ROWS = 256
LOSS_CHUNK = 512  # predictions whose logits are held at once: small enough for the CPU's cache


class Attention(nn.Module):
    """Causal self-attention with separate q, k, v and o, all with biases."""

    def __init__(self, s: ModelSettings) -> None:
        super().__init__()
        self.n_heads = s.n_heads
        width = s.n_heads * s.d_head
        self.q, self.k, self.v = (nn.Linear(s.d_model, width) for _ in range(3))
        self.o = nn.Linear(width, s.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention output for ``x`` [row, position, d_model]."""
        n_rows, length, _ = x.shape
        q, k, v = (f(x).view(n_rows, length, self.n_heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o(z.transpose(1, 2).reshape(n_rows, length, -1))
        return out


class Mlp(nn.Module):
    """The MLP; ``post`` is what the SAEs read."""

    def __init__(self, s: ModelSettings) -> None:
        super().__init__()
        self.fc_in = nn.Linear(s.d_model, s.d_mlp)
        self.fc_out = nn.Linear(s.d_mlp, s.d_model)

    def post(self, x: Tensor) -> Tensor:
        """Return the neurons' activations."""
        return F.gelu(self.fc_in(x))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, s: ModelSettings) -> None:
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(s.d_model, eps=s.eps), Attention(s)
        self.ln2, self.mlp = nn.LayerNorm(s.d_model, eps=s.eps), Mlp(s)


class TwinModel(nn.Module):
    """The one-layer transformer, in two halves that meet at ``blocks.0.mlp.hook_post``."""

    def __init__(self, s: ModelSettings) -> None:
        super().__init__()
        self.tok_embed = nn.Embedding(s.d_vocab, s.d_model)
        self.pos = nn.Embedding(s.n_ctx, s.d_model)
        self.layers = nn.ModuleList([Block(s)])
        self.ln_out = nn.LayerNorm(s.d_model, eps=s.eps)
        self.head = nn.Linear(s.d_model, s.d_vocab, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "ln" not in name:
                nn.init.normal_(
                    parameter, std=s.init_std / (math.sqrt(2) if name.endswith(("o.weight", "out.weight")) else 1)
                )

    def to_hook(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return (residual stream before the MLP is added, the MLP's neurons)."""
        block = self.layers[0]
        resid = self.tok_embed(tokens) + self.pos.weight[: tokens.shape[1]]
        resid = resid + block.attn(block.ln1(resid))
        return resid, block.mlp.post(block.ln2(resid))

    def from_hook(self, resid: Tensor, post: Tensor) -> Tensor:
        """Return the normalised final residual stream."""
        out: Tensor = self.ln_out(resid + self.layers[0].mlp.fc_out(post))
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.from_hook(*self.to_hook(tokens)))
        return logits


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear head; gradients are made chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of ``hidden @ weight.T`` against ``targets``."""
        n = hidden.shape[0]
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        total = hidden.new_zeros(())
        for start in range(0, n, LOSS_CHUNK):
            part, target = hidden[start : start + LOSS_CHUNK], targets[start : start + LOSS_CHUNK, None]
            log_probs = F.log_softmax(part @ weight.T, dim=-1)
            total -= log_probs.gather(1, target).sum()
            grad = log_probs.exp_()
            grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
            torch.mm(grad, weight, out=grad_hidden[start : start + LOSS_CHUNK])
            grad_weight.addmm_(grad.T, part)
        ctx.save_for_backward(grad_hidden.div_(n), grad_weight.div_(n))
        return total / n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """Return the gradients made in the forward pass."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], None


def loss_of(model: TwinModel, tokens: Tensor) -> Tensor:
    """Return the mean next-token loss of rows of tokens."""
    hidden = model.from_hook(*model.to_hook(tokens))[:, :-1].flatten(0, 1)
    loss: Tensor = ChunkedCrossEntropy.apply(hidden, model.head.weight, tokens[:, 1:].flatten())  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def held_out_loss(model: TwinModel, tokens: Tensor) -> float:
    """Return the mean next-token loss over rows, in small batches."""
    return float(np.mean([loss_of(model, batch).item() for batch in tokens.split(32)]))


def train_lm(work: Path, minutes: float | None = None, settings: ModelSettings = MODEL, threads: int = 2) -> None:
    """Train until the token budget is spent, or reach the schedule's end after ``minutes`` if that is sooner."""
    torch.set_num_threads(threads)
    torch.manual_seed(settings.seed)
    model = TwinModel(settings)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate, betas=settings.betas, fused=True,
    )  # fmt: skip
    step, spent = 0, 0.0
    if (work / "lm.pt").exists():
        state = torch.load(work / "lm.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
        print(f"going on from step {step}", flush=True)
    n_steps = settings.token_budget // (settings.rows_per_step * settings.n_ctx)
    held_out = torch.from_numpy(rows(work, "held_out", seed=0)[:EVAL_ROWS])
    began, saved, running = time.monotonic() - spent, time.monotonic(), 0.0
    for batch in _batches(work, settings, skip=step):
        spent = time.monotonic() - began
        progress = max(step / n_steps, spent / (60 * minutes) if minutes else 0.0)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, progress, settings)
        loss = loss_of(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        step += 1
        running += loss.item()
        if step % LOG_EVERY_STEPS == 0:
            rate = step * batch.numel() / spent
            print(
                f"step {step} loss {running / LOG_EVERY_STEPS:.4f} {rate:.0f} tokens/s {spent:.0f} s progress {progress:.3f}",
                flush=True,
            )
            running = 0.0
        if step % EVAL_EVERY_STEPS == 0:
            print(f"step {step} held-out loss {held_out_loss(model, held_out):.4f}", flush=True)
        if time.monotonic() - saved > SAVE_EVERY_SECONDS:
            _save(work, model, optimizer, step, spent)
            saved = time.monotonic()
    _save(work, model, optimizer, step, spent)
    print(f"done: step {step}, held-out loss {held_out_loss(model, held_out):.4f}", flush=True)


def schedule(step: int, progress: float, settings: ModelSettings) -> float:
    """Return the learning rate's factor: linear warm-up, then half a cosine."""
    floor = settings.final_lr_fraction
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / settings.warmup_steps) * cosine


def load_twin(path: Path, settings: ModelSettings = MODEL) -> TwinModel:
    """Return the trained model from ``lm.safetensors`` or an exported float16 file."""
    model = TwinModel(settings)
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.eval().requires_grad_(False)


def _batches(work: Path, settings: ModelSettings, skip: int) -> Iterator[Tensor]:
    epoch = 0
    while True:
        tokens = torch.from_numpy(rows(work, "train", seed=settings.seed + epoch))
        n_batches = len(tokens) // settings.rows_per_step
        for index in range(min(skip, n_batches), n_batches):
            yield tokens[index * settings.rows_per_step : (index + 1) * settings.rows_per_step]
        skip = max(0, skip - n_batches)
        epoch += 1


def _save(work: Path, model: TwinModel, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save(state, work / "lm.pt.part")
    (work / "lm.pt.part").replace(work / "lm.pt")
    save_file(model.state_dict(), work / "lm.safetensors")
