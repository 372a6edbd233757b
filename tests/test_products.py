"""Products by either library: the same numbers, and each entry with the same bits whatever stands beside it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import native_model
from torch.nn import functional

from sae_vis import AutoEncoder, _products
from sae_vis._products import fast_product, fast_products, has_fast_product, laid_out, onednn_is_faster
from sae_vis.model_fns import MIN_PRODUCT_ROWS, AutoEncoderConfig, LanguageModel, product_error, steady_product

ONEDNN = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, _products.LINEAR)),
    reason="this build of torch has no oneDNN",
)
MAKERS = {"amd": "vendor_id\t: AuthenticAMD", "intel": "processor\t: 0\nvendor_id\t: GenuineIntel"}


@pytest.fixture(params=[False, pytest.param(True, marks=ONEDNN)], ids=["mkl", "onednn"])
def library(request, monkeypatch):
    monkeypatch.setattr(_products, "onednn_is_faster", lambda: request.param)
    return request.param


@functools.cache
def matrices(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(width)
    return torch.randn(300, width, generator=generator), torch.randn(width, 400, generator=generator)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 5, 64, 700, 2048])
def test_products_are_those_in_double_precision(width, library):
    a, b = matrices(width)
    bound = product_error(width, a.device) * a.norm(dim=1)[:, None] * b.norm(dim=0)
    exact = a.double() @ b.double()
    for right in (b, b.T.contiguous().T, b[:, 100:200], b[:, 7:8]):
        expected = exact if right.shape == b.shape else exact[:, 100:200] if right.shape[1] == 100 else exact[:, 7:8]
        limit = bound if right.shape == b.shape else bound[:, 100:200] if right.shape[1] == 100 else bound[:, 7:8]
        assert has_fast_product(a, right) is library
        assert ((steady_product(a, right).double() - expected).abs() <= limit).all()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([5, 64, 700]), st.integers(1, 300), st.integers(1, 400), st.integers(0, 299), st.integers(0, 399)
)
@pytest.mark.parametrize("onednn", [False, pytest.param(True, marks=ONEDNN)])
def test_an_entry_has_the_same_bits_whatever_stands_beside_it(onednn, width, rows, columns, row, column):
    a, b = matrices(width)
    row, column = min(row, 300 - rows), min(column, 400 - columns)
    own, beside = slice(row, row + rows), slice(column, column + columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_products, "onednn_is_faster", lambda: onednn)
        whole = steady_product(a, b)
        assert torch.equal(steady_product(a[own], b[:, beside]), whole[own, beside])
        assert torch.equal(steady_product(a[own], b.T.contiguous().T[:, beside]), whole[own, beside])


@ONEDNN
@pytest.mark.parametrize("rows", [2, 31, 32, 33, 63, 64, 65, 95, 96, 300])
@pytest.mark.parametrize("piece", [1, 40 * 400, 2**22])
def test_pieces_of_any_size_give_the_same(rows, piece, monkeypatch):
    a, b = matrices(64)
    shapes: list[int] = []
    multiplied = _products._multiplied
    monkeypatch.setattr(_products, "_multiplied", lambda a, w: shapes.append(len(a)) or multiplied(a, w))
    monkeypatch.setattr(_products, "PIECE", piece)
    expected = multiplied(a[:rows], b.T.contiguous())
    out = torch.full((rows, 400), torch.nan)
    assert fast_product(a[:rows], b, out) is out
    assert torch.equal(out, expected)
    assert sum(shapes) == rows
    assert min(shapes) >= min(rows, MIN_PRODUCT_ROWS)
    assert max(shapes) <= max(2 * MIN_PRODUCT_ROWS, piece // 400 + MIN_PRODUCT_ROWS)


def test_what_is_no_number_stays_none(library):
    a, b = (values.clone() for values in matrices(64))
    a[3, 5], a[4, 6] = torch.nan, torch.inf
    encoder = AutoEncoder(AutoEncoderConfig(64, 400, apply_b_dec_to_input=False))
    with torch.no_grad():
        encoder.W_enc.copy_(b)
        for found in (steady_product(a, b), encoder.encode(a), encoder.encode(a, out=torch.empty(300, 400))):
            assert found[3].isnan().all()
            assert not found[4].isfinite().all()
            assert found[5:].isfinite().all()


def test_an_encoder_gives_the_same_with_and_without_room(library, monkeypatch):
    monkeypatch.setattr(_products, "PIECE", 70 * 400)
    a, b = matrices(64)
    encoder = AutoEncoder(AutoEncoderConfig(64, 400))
    with torch.no_grad():
        for name, values in (("W_enc", b), ("b_enc", b[0]), ("b_dec", a[0])):
            getattr(encoder, name).copy_(values)
        exact = torch.relu((a.double() - a[0].double()) @ b.double() + b[0].double())
        plain = encoder.encode(a)
        room = torch.empty(4, 75, 400)
        assert encoder.encode(a.view(4, 75, 64), out=room).data_ptr() == room.data_ptr()
        assert torch.equal(room.view(300, 400), plain)
        chosen = torch.arange(0, 400, 7)
        assert torch.equal(encoder.encode(a, chosen), plain[:, chosen])
        torch.testing.assert_close(plain.double(), exact, rtol=0, atol=1e-4)
        assert encoder.encode(a[0]).shape == (400,)
        assert encoder.encode(a[:0]).shape == (0, 400)
    assert encoder.encode(a).requires_grad


# --- the layers of a model --------------------------------------------------------------------------------------------


@pytest.fixture
def multiplied(monkeypatch):
    """How many rows oneDNN is asked for, each time."""
    rows: list[int] = []
    own = _products._multiplied
    monkeypatch.setattr(_products, "_multiplied", lambda a, *rest: rows.append(len(a)) or own(a, *rest))
    return rows


@ONEDNN
def test_within_fast_products_linear_layers_are_taken_by_onednn(multiplied, monkeypatch):
    monkeypatch.setattr(_products, "onednn_is_faster", lambda: True)
    a, b = matrices(64)
    layer, bias = torch.nn.Linear(64, 400), torch.randn(400)
    exact = a.double() @ layer.weight.double().T
    with torch.no_grad(), fast_products():
        found = layer(a.view(4, 75, 64))
        plain = functional.linear(a, layer.weight)
        added = torch.addmm(bias, a, b)
        part = torch.addmm(bias[:40], a, b[:, 10:50])
        wide = functional.linear(a, torch.cat([b, b]).T[:, :64])
    assert multiplied == [300] * 5
    assert found.shape == (4, 75, 400)
    for one, expected in (
        (found.view(300, 400), exact + layer.bias.double()),
        (plain, exact),
        (added, a.double() @ b.double() + bias.double()),
        (part, a.double() @ b[:, 10:50].double() + bias[:40].double()),
        (wide, a.double() @ b.double()),
    ):
        torch.testing.assert_close(one.double(), expected, rtol=0, atol=1e-4)
    with torch.no_grad():
        layer(a)
    assert len(multiplied) == 5, "and only there"


def others(a: torch.Tensor, b: torch.Tensor, row: torch.Tensor, bias: torch.Tensor) -> list[torch.Tensor]:
    """What oneDNN is not asked for."""
    return [
        torch.addmm(bias, a, b),  # a bias for each row
        torch.addmm(row, a, b, alpha=2.0),
        torch.addmm(row[:1], a, b),
        functional.linear(a[:31], b.T),
        functional.linear(a, b[:, :31].T),
        functional.linear(a, b[:, 0]),
        functional.linear(a[0], b.T),
        functional.linear(a.double(), b.double().T),
        functional.linear(input=a, weight=b.T),
        a @ b,
    ]


@ONEDNN
def test_other_layers_are_left_to_torch(multiplied, monkeypatch):
    monkeypatch.setattr(_products, "onednn_is_faster", lambda: True)
    a, b = matrices(64)
    row, bias = torch.randn(400), torch.randn(300, 400)
    with torch.no_grad(), fast_products():
        found = others(a, b, row, bias)
        for wrong in (b, b.T[:, :5], b.double().T):
            with pytest.raises(RuntimeError):
                functional.linear(a, wrong)
    expected = others(a, b, row, bias)
    assert multiplied == []
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with fast_products():
        assert torch.nn.Linear(64, 400)(a).requires_grad
    monkeypatch.setattr(_products, "onednn_is_faster", lambda: False)
    with torch.no_grad(), fast_products():
        functional.linear(a, b.T)
    assert multiplied == []


@ONEDNN
def test_a_model_is_run_and_its_residuals_unembedded_with_fast_products(multiplied, monkeypatch):
    monkeypatch.setattr(_products, "onednn_is_faster", lambda: False)
    lm = LanguageModel(native_model())
    tokens = torch.arange(64).view(4, 16) % lm.d_vocab
    with lm.as_for_inference():
        slow = lm.logits(tokens)
        assert multiplied == []
        monkeypatch.setattr(_products, "onednn_is_faster", lambda: True)
        fast = lm.logits(tokens)
        assert set(multiplied) == {64}
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
        multiplied.clear()
        residual = lm.final_residual(tokens).flatten(0, 1)
        multiplied.clear()
        torch.testing.assert_close(lm.logits_from_residual(residual), slow.flatten(0, 1), rtol=0, atol=1e-4)
        assert multiplied == [64]


# --- which library ----------------------------------------------------------------------------------------------------


def test_what_onednn_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(_products, "onednn_is_faster", lambda: True)
    a, b = matrices(64)
    assert has_fast_product(a, b)
    for wrong in (a.double(), a.bfloat16(), a[:0], a.to("meta")):
        assert not has_fast_product(wrong, b)
        assert not has_fast_product(a.T[:, :64], wrong)
    learned = b.clone().requires_grad_()
    assert not has_fast_product(a, learned)
    with torch.no_grad():
        assert has_fast_product(a, learned)


def test_a_part_of_a_wide_matrix_is_laid_out_anew_where_that_is_needed(library):
    _, b = matrices(64)
    for usable in (b, b.T.contiguous().T, b.T.contiguous().T[:, 3:9], b.to("meta")[:, 3:9]):
        assert laid_out(usable) is usable
    part = laid_out(b[:, 3:9])
    assert torch.equal(part, b[:, 3:9])
    assert part.T.is_contiguous() is library


@ONEDNN
@pytest.mark.parametrize(
    ("maker", "capability", "mkl", "linear", "expected"),
    [
        ("amd", "AVX512", True, "_linear_pointwise", True),
        ("intel", "AVX512", True, "_linear_pointwise", False),
        ("amd", "AVX2", True, "_linear_pointwise", False),
        ("amd", "AVX512", False, "_linear_pointwise", False),
        ("amd", "AVX512", True, "_no_such_operator", False),
    ],
)
def test_onednn_is_asked_where_mkl_is_slow(maker, capability, mkl, linear, expected, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *args: MAKERS[maker])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(_products, "LINEAR", linear)
    assert onednn_is_faster.__wrapped__() is expected


@ONEDNN
@pytest.mark.parametrize("became", [lambda *args: args[0], lambda *args: None, lambda x, w: x @ w.T])
def test_an_operator_that_has_become_another_is_not_asked(became, monkeypatch):
    assert _products._works()
    monkeypatch.setattr(torch.ops.mkldnn, _products.LINEAR, became)
    assert not _products._works()


def test_the_maker_is_known_without_a_list_of_processors(monkeypatch):
    def missing(*args: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(_products.platform, "processor", lambda: "Intel64 Family 6, GenuineIntel")
    assert "GenuineIntel" in _products._maker()
