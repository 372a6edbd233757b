"""Which tokens change most is found without looking at all: against a look at all, in double precision."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sae_vis import _ablation, _linear_changes
from sae_vis._ablation import FormulaTail, Pairs
from sae_vis._linear_changes import Changes, Factors, Reached, linear_changes
from sae_vis._ranking import Ranked
from sae_vis.model_fns import FinalNorm

VOCAB, WIDTH = 700, 24


def random_formula(n: int, *, norm: str = "LN", seed: int = 0, weight: Tensor | None = None) -> FormulaTail:
    generator = torch.Generator().manual_seed(seed)
    if weight is None:
        weight = torch.randn(WIDTH, VOCAB, generator=generator) / math.sqrt(WIDTH)
    model = SimpleNamespace(unembedding=lambda: (weight, torch.zeros(weight.shape[1])), soft_cap=0.0)
    gain = 1 + 0.2 * torch.randn(len(weight), generator=generator)
    own = FinalNorm(norm == "LN", norm != "none", gain, torch.zeros(len(weight)), 1e-5)
    return FormulaTail(model, own, torch.randn(n, len(weight), generator=generator))


def some_pairs(k: int, p: int, n: int, size: float, seed: int = 1) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    position = torch.randint(0, p, (k,), generator=generator).sort().values
    feature = torch.randint(0, n, (k,), generator=generator)
    activation = size * (0.1 + torch.rand(k, generator=generator))
    return Pairs(position, feature, activation, torch.randint(0, VOCAB, (k,), generator=generator))


def found(formula: FormulaTail, residual: Tensor, pairs: Pairs, n_changes: int) -> Changes:
    centred = formula.centre(residual)
    reached = Reached.of(centred)
    reached.reach(formula.product(centred), slice(0, len(centred)))
    return linear_changes(formula, centred, pairs, Factors.of(formula, centred, pairs), reached, n_changes)


def all_changes(formula: FormulaTail, residual: Tensor, pairs: Pairs) -> Tensor:
    """Of every token, in double precision."""
    centred = formula.centre(residual)
    factors = Factors.of(formula, centred, pairs)
    read = factors.of_residual.double()[:, None] * centred[pairs.position].double()
    read += factors.of_direction.double()[:, None] * formula.centred_directions[pairs.feature].double()
    return (read * formula.norm.gain.double()) @ formula.weight.double()


def check(formula: FormulaTail, residual: Tensor, pairs: Pairs, n_changes: int) -> Changes:
    """The same tokens and the same numbers as a look at all of them finds."""
    changes = found(formula, residual, pairs, n_changes)
    every = all_changes(formula, residual, pairs)
    of_next = every.gather(1, pairs.next_token[:, None])[:, 0]
    torch.testing.assert_close(changes.of_next, of_next, rtol=1e-7, atol=1e-12)
    for sign, keys in ((1, changes.raised), (-1, changes.lowered)):
        ids, values = Ranked(keys).sorted()
        signed = (sign * every).float()
        order = torch.argsort(-signed, dim=1, stable=True)[:, :n_changes]  # equal ones by their ids
        assert torch.equal(ids, order)
        assert torch.equal(values, signed.gather(1, order))
    return changes


@pytest.mark.parametrize("norm", ["LN", "RMS", "none"])
@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("n_changes", [1, 5, 100, VOCAB])
def test_the_tokens_that_change_most_are_those_of_a_look_at_all(norm, size, n_changes):
    formula = random_formula(6, norm=norm)
    residual = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(2))
    check(formula, residual, some_pairs(80, 12, 6, size), n_changes)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999, 1.0])
def test_features_along_the_residual_stream_need_a_second_look(share, monkeypatch):
    """Where most of the change is that of the scale, a token with a small ``l`` may change most."""
    seen = []
    look_again = _linear_changes._Work._ranked

    def watched(self: _linear_changes._Work, read: Tensor, tokens: Tensor, side: int) -> Tensor:
        seen.append(len(tokens))
        return look_again(self, read, tokens, side)

    monkeypatch.setattr(_linear_changes, "FIRST_LOOK", 8)
    monkeypatch.setattr(_linear_changes._Work, "_ranked", watched)
    formula = random_formula(6)
    pairs = some_pairs(80, 12, 6, 0.6)
    residual = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(2)) * (1 - share)
    residual[pairs.position] += share * formula.centred_directions[pairs.feature]
    check(formula, residual, pairs, 5)
    assert seen
    assert max(seen) > 8


def test_what_float32_gets_wrong_is_looked_at_again(monkeypatch):
    """Where the entries of a direction cancel, its ``l`` in float32 is noise, which says nothing of the order."""
    monkeypatch.setattr(_linear_changes, "FIRST_LOOK", 8)
    generator = torch.Generator().manual_seed(3)
    half = 1e6 * torch.randn(WIDTH // 2, VOCAB, generator=generator)
    small = torch.randn(WIDTH // 2, VOCAB, generator=generator)
    formula = random_formula(6, norm="none", weight=torch.cat([half, small - half]))
    formula.norm = formula.norm._replace(gain=torch.ones(WIDTH))
    same = torch.randn(6, WIDTH // 2, generator=generator)
    formula.centred_directions = torch.cat([same, same], 1)
    rough = formula.product(formula.centred_directions)
    exact = formula.centred_directions.double() @ formula.weight.double()
    assert (rough - exact).abs().mean() > 0.1, "float32 is off by more than what tells the tokens apart"
    check(formula, torch.zeros(12, WIDTH), some_pairs(80, 12, 6, 1.0), 5)


def test_equal_columns_are_listed_by_their_ids_whatever_is_looked_at(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    few = torch.randint(-2, 3, (WIDTH, 9), generator=generator).float()
    formula = random_formula(6, norm="RMS", weight=few[:, torch.randint(0, 9, (VOCAB,), generator=generator)])
    residual = torch.randn(12, WIDTH, generator=generator)
    for first_look in (1, 7, 64, VOCAB):
        monkeypatch.setattr(_linear_changes, "FIRST_LOOK", first_look)
        check(formula, residual, some_pairs(80, 12, 6, 0.3), 20)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "FIRST_LOOK": (1, 5, 100, 10**6),
        "BLOCK_PAIRS": (1, 3, 1000),
        "BLOCK_NUMBERS": (1, 10**4),
        "LOGITS_BYTES": (1, 2**13),
        "TOKENS_AT_A_TIME": (1, 7),
        "PIECE": (1, 100),
    }.items(),
)
def test_nothing_depends_on_what_is_looked_at_together(name, values, monkeypatch):
    formula = random_formula(40)
    residual = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(2))
    pairs = some_pairs(300, 30, 40, 1.0)
    expected = check(formula, residual, pairs, 5)
    for value in values:
        monkeypatch.setattr(_linear_changes, name, value)
        changes = check(formula, residual, pairs, 5)
        torch.testing.assert_close(changes.of_next.float(), expected.of_next.float(), rtol=0, atol=0)


def test_the_features_logits_are_made_some_at_a_time(monkeypatch):
    monkeypatch.setattr(_linear_changes, "LOGITS_BYTES", 4 * VOCAB * 33)
    monkeypatch.setattr(_ablation, "KEPT_BYTES", 0)
    shapes = []
    product = FormulaTail.product

    def watched(self: FormulaTail, centred: Tensor, weight: Tensor | None = None) -> Tensor:
        shapes.append(len(centred))
        return product(self, centred, weight)

    formula = random_formula(100)
    centred = formula.centre(torch.randn(30, WIDTH))
    pairs = some_pairs(500, 30, 100, 1.0)
    factors, reached = Factors.of(formula, centred, pairs), Reached.of(centred)
    monkeypatch.setattr(FormulaTail, "product", watched)
    linear_changes(formula, centred, pairs, factors, reached, 5)
    assert sum(shapes) == len(pairs.feature.unique())
    assert max(shapes) == 33
