"""The direct effects in one pass over the vocabulary, against loops in double precision and against the slow formula."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sae_vis import _ablation, _direct_effects, _linear_changes
from sae_vis._ablation import Effects, FormulaTail, Pairs, direct_effects
from sae_vis._direct_effects import SUM_WIDTH, direct_effects_by_formula
from sae_vis.model_fns import MIN_PRODUCT_ROWS, FinalNorm

WIDTHS = [1, 63, 64, 65, SUM_WIDTH - 1, SUM_WIDTH, SUM_WIDTH + 1, 2 * SUM_WIDTH + 4, 5000]
FLOAT32 = torch.finfo(torch.float32).eps


class Case(NamedTuple):
    """A formula with the directions that it was made of, and what leaves the model."""

    formula: FormulaTail
    directions: Tensor
    residual: Tensor

    @property
    def d_vocab(self) -> int:
        return self.formula.weight.shape[1]

    def effects(self, pairs: Pairs, n_changes: int = 5, **options: int) -> Effects:
        return direct_effects_by_formula(self.formula, self.residual, pairs, n_changes, **options)

    def of(self, features: list[int]) -> Case:
        """With these features only, in this order."""
        return made(self.formula, self.directions[features], self.residual)


def made(like: FormulaTail | SimpleNamespace, directions: Tensor, residual: Tensor) -> Case:
    model = SimpleNamespace(unembedding=lambda: (like.weight, like.unembedding_bias), soft_cap=like.cap)
    formula = FormulaTail(model, like.norm, directions)
    formula.unembedding_bias = like.unembedding_bias
    return Case(formula, directions, residual)


def random_case(
    d_vocab: int, norm: str = "LN", cap: float = 0.0, p: int = 12, n: int = 6, d_model: int = 24, seed: int = 0
) -> Case:
    """A norm with gain and bias, and an unembedding with a bias."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    own = SimpleNamespace(
        weight=normal(d_model, d_vocab) / math.sqrt(d_model),
        unembedding_bias=0.3 * normal(d_vocab),
        cap=cap,
        norm=FinalNorm(norm == "LN", norm != "none", 1 + 0.2 * normal(d_model), 0.1 * normal(d_model), 1e-5),
    )
    return made(own, normal(n, d_model), normal(p, d_model))


def some_pairs(case: Case, k: int = 30, size: float = 1.0, seed: int = 0) -> Pairs:
    """Several features at some positions and none at others, in order of the positions."""
    generator = torch.Generator().manual_seed(seed)
    p, n = len(case.residual), len(case.directions)
    cells = torch.randperm(p * n, generator=generator)[: min(k, p * n)].sort().values
    cells = cells[cells // n != 1]  # nothing is active at position 1
    return Pairs(
        cells // n,
        cells % n,
        size * (torch.rand(len(cells), generator=generator) + 0.1),
        torch.randint(0, case.d_vocab, (len(cells),), generator=generator),
    )


def same(a: Effects, b: Effects) -> bool:
    """The same bits, and the same types."""
    return all(x.dtype == y.dtype and x.device == y.device and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def taken(effects: Effects, which: Tensor) -> Effects:
    return Effects(*(values[which] for values in effects))


# --- loops in double precision ---------------------------------------------------------------------------------------


def log_probs(case: Case, x: list[float]) -> tuple[list[float], float]:
    """The log-probabilities of the tokens after this residual stream, and by what its norm divides."""
    norm, cap = case.formula.norm, case.formula.cap
    mean = math.fsum(x) / len(x) if norm.centres else 0.0
    centred = [value - mean for value in x]
    scale = math.sqrt(math.fsum(v * v for v in centred) / len(x) + norm.eps) if norm.scales else 1.0
    gain, bias = norm.gain.tolist(), norm.bias.tolist()
    y = torch.tensor([v / scale * g + b for v, g, b in zip(centred, gain, bias, strict=True)], dtype=torch.float64)
    logits = (y @ case.formula.weight.double() + case.formula.unembedding_bias.double()).tolist()
    if cap > 0:
        logits = [cap * math.tanh(logit / cap) for logit in logits]
    most = max(logits)
    total = most + math.log(math.fsum(math.exp(logit - most) for logit in logits))
    return [logit - total for logit in logits], scale


def check(case: Case, pairs: Pairs, effects: Effects, n_changes: int) -> None:
    """Every number is what the loops give, to a few roundings in float32 of the logits before they are scaled."""
    n = min(n_changes, case.d_vocab)
    assert effects.loss.shape == (len(pairs.position),)
    assert all(values.shape == (len(pairs.position), n) for values in effects[1:])
    assert [values.dtype for values in effects] == [torch.float32] + [torch.int64, torch.float32] * 2
    columns = (values.tolist() for values in (*pairs, *effects))
    for p, f, a, token, loss, *lists in zip(*columns, strict=True):
        r, d = case.residual[p].double().tolist(), case.directions[f].double().tolist()
        before, _ = log_probs(case, r)
        after, scale = log_probs(case, [x - a * y for x, y in zip(r, d, strict=True)])
        change = [x - y for x, y in zip(before, after, strict=True)]
        unscaled = float((case.formula.centre(case.residual[p].float()).abs() @ case.formula.weight.abs()).max())
        tolerance = 3e-6 + 4 * FLOAT32 * unscaled * (1 + 1 / scale)
        assert loss == pytest.approx(-change[token], abs=tolerance)
        for ids, values, sign in ((*lists[:2], 1), (*lists[2:], -1)):
            best = sorted((sign * value for value in change), reverse=True)[:n]
            assert len(set(ids)) == n
            assert values == [sign * value for value in sorted((sign * v for v in values), reverse=True)]
            assert values == pytest.approx([change[i] for i in ids], abs=tolerance)
            assert values == pytest.approx([sign * value for value in best], abs=tolerance)


@pytest.mark.parametrize("d_vocab", WIDTHS)
@pytest.mark.parametrize("norm", ["LN", "RMS", "none"])
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_the_effects_are_those_of_loops_over_the_vocabulary(d_vocab, norm, cap):
    case = random_case(d_vocab, norm, cap)
    pairs = some_pairs(case, 12)
    check(case, pairs, case.effects(pairs, tile_bytes=1), 5)


@pytest.mark.parametrize("n_changes", [0, 1, 5, 64, 65, 2100, 10**6])
@pytest.mark.parametrize("d_vocab", [70, 2100])
def test_as_many_changes_are_listed_as_asked_for_and_as_there_are_tokens(d_vocab, n_changes):
    case = random_case(d_vocab)
    pairs = some_pairs(case, 6)
    check(case, pairs, case.effects(pairs, n_changes, tile_bytes=1), n_changes)


@pytest.mark.parametrize("norm", ["LN", "RMS", "none"])
@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("size", [1e-6, 1e-2, 30.0, 1e4])
def test_tiny_and_huge_activations_are_measured(norm, cap, size):
    case = random_case(300, norm, cap)
    if norm == "none":  # logits of ten thousand leave no room for a tolerance
        case = made(case.formula, case.directions / max(1.0, size), case.residual)
    pairs = some_pairs(case, 12, size)
    check(case, pairs, case.effects(pairs), 5)


@pytest.mark.parametrize("norm", ["LN", "RMS"])
@pytest.mark.parametrize("left", [1e-1, 1e-3, 1e-5, 0.0])
def test_a_feature_that_is_nearly_the_whole_residual_stream_is_taken_out_of_its_scale(norm, left):
    case = random_case(300, norm)
    residual = 50.0 * case.directions[torch.arange(12) % 6] + left * case.residual
    case = case._replace(residual=residual)
    pairs = Pairs(torch.arange(12), torch.arange(12) % 6, torch.full((12,), 50.0), torch.arange(12))
    check(case, pairs, case.effects(pairs), 5)


def test_the_change_of_a_tiny_activation_does_not_drown_in_the_logits():
    case = random_case(300, "RMS")
    pairs = some_pairs(case, 12, 1e-6)
    effects = case.effects(pairs)
    for i, (p, f, a, _) in enumerate(zip(*(values.tolist() for values in pairs), strict=True)):
        r, d = case.residual[p].double(), case.directions[f].double()
        before, _ = log_probs(case, r.tolist())
        after, _ = log_probs(case, (r - a * d).tolist())
        change = [x - y for x, y in zip(before, after, strict=True)]
        spread = float(effects.raised[i, 0] - effects.lowered[i, 0])  # without the shift that both have
        assert spread == pytest.approx(max(change) - min(change), rel=1e-3)


# --- the slow formula -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["LN", "RMS", "none"])
@pytest.mark.parametrize("cap", [0.0, 0.7])
@pytest.mark.parametrize("d_vocab", [65, 5000])
def test_the_pass_agrees_with_the_slow_formula(norm, cap, d_vocab):
    case = random_case(d_vocab, norm, cap, p=300, n=9)
    pairs = some_pairs(case, 400)
    fast = case.effects(pairs)
    slow = direct_effects(case.formula, case.residual, pairs, 5, d_vocab)
    for name in ("loss", "raised", "lowered"):
        torch.testing.assert_close(getattr(fast, name), getattr(slow, name), rtol=1e-4, atol=1e-5)
    for ids in ("raised_ids", "lowered_ids"):  # but where two changes are as good as equal
        assert (getattr(fast, ids) == getattr(slow, ids)).float().mean() > 0.99


@pytest.mark.parametrize("norm", ["LN", "none"])
@pytest.mark.parametrize("cap", [0.0, 40.0])
def test_a_pair_that_moves_the_whole_sum_is_as_exact_as_others(norm, cap):
    case = random_case(5000, norm, cap, p=12, n=1, d_model=64)
    case = made(case.formula, case.residual[:1], case.residual)
    ahead = 40.0 * case.residual[:1] / case.residual[0].norm()
    case = case._replace(residual=case.residual + 10 * ahead)
    pairs = Pairs(torch.arange(12), torch.zeros(12).long(), torch.linspace(1.0, 60.0, 12), torch.arange(12))
    effects = case.effects(pairs)
    slow = direct_effects(case.formula, case.residual, pairs, 5, 5000)
    check(case, pairs, effects, 5)
    for name in ("loss", "raised", "lowered"):
        torch.testing.assert_close(getattr(effects, name), getattr(slow, name), rtol=1e-4, atol=1e-4)


def sums_far_off(case: Case, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pairs that were looked at by themselves."""
    seen: list[int] = []
    far = _direct_effects._Pass._far

    def watched(self: _direct_effects._Pass, some: Tensor) -> Tensor:
        seen.extend(some.tolist())
        return far(self, some)

    monkeypatch.setattr(_direct_effects._Pass, "_far", watched)
    case.effects(pairs)
    return seen


def test_only_pairs_that_move_the_whole_sum_far_are_looked_at_again(monkeypatch):
    case = random_case(3000, "none", p=4, n=4)
    pairs = Pairs(torch.arange(4), torch.arange(4), torch.tensor([1.0, 1e3, 1.0, 1e4]), torch.arange(4))
    assert sums_far_off(case, pairs, monkeypatch) == [1, 3]


@pytest.mark.parametrize("norm", ["LN", "none"])
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_devices_that_cannot_mix_rows_in_one_pass_give_the_same(norm, cap, monkeypatch):
    case = random_case(5000, norm, cap)
    pairs = some_pairs(case)
    expected = case.effects(pairs)
    monkeypatch.setattr(_direct_effects, "WITH_BAGS", frozenset())
    for got, wanted in zip(case.effects(pairs), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-6)


# --- what nothing depends on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d_vocab", [65, SUM_WIDTH + 4, 5000])
@pytest.mark.parametrize(("norm", "cap"), [("LN", 0.0), ("LN", 2.0), ("none", 0.0)])
def test_the_bits_are_the_same_whatever_the_tiles_and_the_pieces(d_vocab, norm, cap, monkeypatch):
    case = random_case(d_vocab, norm, cap, p=150, d_model=64)
    pairs = some_pairs(case, 120)
    expected = case.effects(pairs)
    n = len(case.directions)
    for tile_bytes in (1, 4 * n * SUM_WIDTH, 4 * n * SUM_WIDTH * 2, 2**40):
        assert same(case.effects(pairs, tile_bytes=tile_bytes), expected), tile_bytes
    for piece in (1, SUM_WIDTH, 3 * SUM_WIDTH, 7 * SUM_WIDTH + 5, 2**24):
        monkeypatch.setattr(_direct_effects, "PIECE", piece)
        assert same(case.effects(pairs), expected), piece
        assert same(case.effects(pairs, tile_bytes=1), expected), piece
    monkeypatch.undo()
    for rows in (1, 7, 33, 149, 1000):
        monkeypatch.setattr(_direct_effects, "ROWS", rows)
        assert same(case.effects(pairs), expected), rows


@pytest.mark.parametrize("features", [[0], [4, 1], [5, 3, 2, 0], [5, 4, 3, 2, 1, 0]])
@pytest.mark.parametrize(("norm", "cap"), [("LN", 0.0), ("RMS", 2.0)])
def test_the_bits_are_the_same_whatever_other_features_are_measured(features, norm, cap):
    case = random_case(2500, norm, cap, p=150, d_model=64)
    pairs = some_pairs(case, 250)
    expected = case.effects(pairs)
    wanted = torch.isin(pairs.feature, torch.tensor(features))
    renumbered = torch.tensor([features.index(f) for f in pairs.feature[wanted].tolist()])
    own = Pairs(pairs.position[wanted], renumbered, pairs.activation[wanted], pairs.next_token[wanted])
    for tile_bytes in (1, 2**29):
        assert same(case.of(features).effects(own, tile_bytes=tile_bytes), taken(expected, wanted))


def test_the_bits_are_the_same_whatever_other_positions_are_there():
    case = random_case(2500, p=150, d_model=64)
    pairs = some_pairs(case, 250)
    expected = case.effects(pairs)
    for which in (pairs.position == 7, pairs.position > 140, pairs.position % 3 == 0):
        places, position = pairs.position[which].unique(return_inverse=True)
        own = pairs._replace(
            position=position, **{name: getattr(pairs, name)[which] for name in Pairs._fields if name != "position"}
        )
        alone = case._replace(residual=case.residual[places])
        assert same(alone.effects(own), taken(expected, which))


def test_a_piece_of_positions_without_pairs_is_passed_over():
    case = random_case(100, p=1000)
    pairs = some_pairs(case, 6000)
    far = (pairs.position < 20) | (pairs.position > 900)
    own = Pairs(*(values[far] for values in pairs))
    assert same(case.effects(own), taken(case.effects(pairs), far))


@pytest.mark.parametrize("p", [0, 3])
@pytest.mark.parametrize("norm", ["LN", "none"])
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_no_pairs_have_no_effects(p, norm, cap):
    case = random_case(100, norm, cap, p=p)
    none = torch.zeros(0, dtype=torch.int64)
    effects = case.effects(Pairs(none, none, torch.zeros(0), none))
    assert [tuple(values.shape) for values in effects] == [(0,), (0, 5), (0, 5), (0, 5), (0, 5)]


def test_what_leaves_a_model_in_bfloat16_is_measured_in_float32():
    case = random_case(300)
    pairs = some_pairs(case)
    half = case._replace(residual=case.residual.bfloat16())
    effects = half.effects(pairs)
    assert same(effects, half._replace(residual=half.residual.float()).effects(pairs))
    check(half, pairs, effects, 5)


def test_the_arguments_are_left_as_they_are():
    case = random_case(2500, cap=2.0)
    pairs = some_pairs(case)
    before = [values.clone() for values in (*pairs, case.residual, case.formula.weight, case.formula.bias)]
    case.effects(pairs, tile_bytes=1)
    after = (*pairs, case.residual, case.formula.weight, case.formula.bias)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- ties -------------------------------------------------------------------------------------------------------------


def whole_numbers(d_vocab: int, norm: str = "none", d_model: int = 8) -> Case:
    """Every product is exact: equal columns of the unembedding, of which there are many, change by equal bits."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randint(-2, 3, (d_model, 40), generator=generator).float()
    own = SimpleNamespace(
        weight=few[:, torch.randint(0, 40, (d_vocab,), generator=generator)],
        unembedding_bias=torch.zeros(d_vocab),
        cap=0.0,
        norm=FinalNorm(False, norm == "RMS", torch.ones(d_model), torch.zeros(d_model), 1e-5),
    )
    residual = torch.randint(-3, 4, (6, d_model), generator=generator).float()
    return made(own, torch.randint(-2, 3, (4, d_model), generator=generator).float(), residual)


@pytest.mark.parametrize("d_vocab", [50, 64, 130, SUM_WIDTH + 1, 3 * SUM_WIDTH + 70])
@pytest.mark.parametrize("n_changes", [1, 5, 100])
@pytest.mark.parametrize("tile_bytes", [1, 4 * 4 * 2 * SUM_WIDTH, 2**29])
def test_equal_changes_are_listed_by_their_token_ids(d_vocab, n_changes, tile_bytes):
    case = whole_numbers(d_vocab)
    pairs = some_pairs(case, 20)
    pairs = pairs._replace(activation=1.0 + torch.arange(len(pairs.position)) % 3)
    effects = case.effects(pairs, n_changes, tile_bytes=tile_bytes)
    logits = case.directions @ case.formula.weight
    for i, (f, a) in enumerate(zip(pairs.feature.tolist(), pairs.activation.tolist(), strict=True)):
        change = (a * logits[f]).tolist()
        by_rising, by_falling = (
            sorted(range(d_vocab), key=lambda token: (sign * change[token], token))[:n_changes] for sign in (1, -1)
        )
        assert effects.raised_ids[i].tolist() == by_falling
        assert effects.lowered_ids[i].tolist() == by_rising


@pytest.mark.parametrize("tile_bytes", [1, 2**29])
def test_equal_columns_have_equal_changes_under_a_norm_too(tile_bytes):
    case = whole_numbers(2 * SUM_WIDTH + 70, "RMS")
    pairs = some_pairs(case, 20, 1.0)
    effects = case.effects(pairs, 300, tile_bytes=tile_bytes)
    for values, ids in ((effects.raised, effects.raised_ids), (-effects.lowered, effects.lowered_ids)):
        assert ((values[:, 1:] < values[:, :-1]) | (ids[:, 1:] > ids[:, :-1])).all()
        assert ((values[:, 1:] == values[:, :-1]).sum(1) > 200).all(), "columns are equal"


@pytest.mark.parametrize("cap", [0.0, 1e4])
def test_the_shift_of_the_whole_vocabulary_is_in_every_number(cap):
    """A direction that raises one frequent token lowers all others, in whatever tile they are."""
    case = whole_numbers(2 * SUM_WIDTH)
    case.formula.bias[5] = 20.0  # nearly all of the probability
    case.formula.weight[:, 5] = 0.0
    case.formula.weight[0, 5] = 1.0
    one = torch.zeros(1, 8)
    one[0, 0] = 1.0
    case = made(case.formula, one, torch.zeros(1, 8))
    case.formula.bias[5] = 20.0
    case.formula.cap = cap
    at = torch.zeros(1, dtype=torch.int64)
    for next_token in (5, 6, SUM_WIDTH - 1, SUM_WIDTH, 2 * SUM_WIDTH - 1):
        pairs = Pairs(at, at, torch.ones(1), at + next_token)
        for tile_bytes in (1, 2**29):
            effects = case.effects(pairs, tile_bytes=tile_bytes)
            expected = float(case.formula.weight[0, next_token]) - 1.0
            assert float(-effects.loss) == pytest.approx(expected, abs=1e-4)
            assert float(effects.lowered[0, 0]) == pytest.approx(-2.0 - 1.0, abs=1e-4)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", [0, 1, 3])
def test_no_array_is_as_wide_as_the_vocabulary_where_a_tile_is_narrower(tiles, monkeypatch):
    monkeypatch.setattr(_direct_effects, "ROWS", 128)
    monkeypatch.setattr(_direct_effects, "WIDEST", 10 * SUM_WIDTH)
    monkeypatch.setattr(_linear_changes, "LOGITS_BYTES", 1)
    monkeypatch.setattr(_ablation, "KEPT_BYTES", 4 * 50 * (9 * SUM_WIDTH + 100) - 1)
    case = random_case(9 * SUM_WIDTH + 100, p=200, n=50)
    pairs = some_pairs(case, 400)
    tile_bytes = tiles * 4 * 50 * SUM_WIDTH + 1
    shapes = []
    product = FormulaTail.product

    def watched(self: FormulaTail, centred: Tensor, weight: Tensor | None = None) -> Tensor:
        result = product(self, centred, weight)
        shapes.append(tuple(result.shape))
        return result

    monkeypatch.setattr(FormulaTail, "product", watched)
    case.effects(pairs, tile_bytes=tile_bytes)
    widest = max(1, tiles) * SUM_WIDTH
    whole, of_tiles = ([shape for shape in shapes if (shape[1] == case.d_vocab) is same] for same in (True, False))
    assert max(width for _, width in of_tiles) == widest
    assert sum(width for rows, width in of_tiles if rows == 50) == case.d_vocab, "the features' logits once"
    assert sum(rows * width for rows, width in of_tiles if rows != 50) == 200 * case.d_vocab, "the positions' once"
    assert max(rows for rows, _ in of_tiles) == _direct_effects.ROWS
    assert sum(rows for rows, _ in whole) == 49, "those with a position, again for the tokens that change most"
    assert max(rows for rows, _ in whole) == MIN_PRODUCT_ROWS
    assert 4 * 50 * widest <= max(tile_bytes, 4 * 50 * SUM_WIDTH)


@pytest.mark.parametrize("more", [0, 1])
def test_the_logits_of_a_few_features_are_computed_once(more, monkeypatch):
    whole = random_case(2 * SUM_WIDTH + 100, p=200, n=50)
    pairs = some_pairs(whole, 400)
    expected, weights = whole.effects(pairs), whole.formula.logit_weights(slice(3, 7))
    shapes = []
    product = FormulaTail.product

    def watched(self: FormulaTail, centred: Tensor, weight: Tensor | None = None) -> Tensor:
        shapes.append((len(centred), (self.weight if weight is None else weight).shape[1]))
        return product(self, centred, weight)

    case = whole.of(list(range(50)))
    monkeypatch.setattr(FormulaTail, "product", watched)
    monkeypatch.setattr(_ablation, "KEPT_BYTES", 4 * 50 * whole.d_vocab - more)
    effects = case.effects(pairs, tile_bytes=1)
    assert all(torch.equal(a, b) for a, b in zip(effects, expected, strict=True))
    assert torch.equal(case.formula.logit_weights(slice(3, 7)), weights)
    of_positions = [(200, SUM_WIDTH), (200, SUM_WIDTH), (200, 100)]
    of_features = [shape for shape in shapes if shape not in of_positions]
    if more == 0:
        assert of_features == [(50, whole.d_vocab)]
    else:  # for each tile, for the tokens that change most, and for the panel
        n_again = len(pairs.feature.unique())
        assert sorted(of_features) == [(4, whole.d_vocab), (n_again, whole.d_vocab), (50, 100), *[(50, SUM_WIDTH)] * 2]


def test_the_room_for_pairs_does_not_grow_with_their_number(monkeypatch):
    made_room = []
    of = _direct_effects._Tile.of

    def watched(formula: FormulaTail, first: int, stop: int, unit: float) -> _direct_effects._Tile:
        tile = of(formula, first, stop, unit)
        made_room.extend((tile.powers.numel(), tile.of_positions.numel()))
        return tile

    monkeypatch.setattr(_direct_effects._Tile, "of", watched)
    case = random_case(3 * SUM_WIDTH, p=300)
    case.effects(some_pairs(case, 1500), tile_bytes=1)
    assert max(made_room) <= _direct_effects.PIECE
