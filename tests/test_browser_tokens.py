"""The panels of tokens, positions and counterexamples in a real browser."""

from __future__ import annotations

import torch
from models import ToyModel, fetch, identity_encoder, random_tokens


def test_a_counterexample_has_its_hover_text_and_no_line_on_the_positions(show):
    table = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    data = fetch(identity_encoder(8, 3), ToyModel(table), random_tokens(9, 14, 12), buffer=(2, 2), n_groups=2)
    opened = show(data.get_html(feature=2))
    example = data[2].counterexamples.negatives[0]
    (at,) = [i for i, act in enumerate(example.feat_acts) if act > 0][:1] or [example.bold_idx]
    negatives = opened.page.locator("[aria-label=Counterexamples] .group").nth(1)
    negatives.locator(".seq").first.locator("> span").nth(at).hover()
    where = opened.texts(".hovertext [data-slot=where]")[0]
    assert f"row {example.row}, position {example.start + at}" in where
    assert opened.js("document.querySelectorAll('.plot:not(.positions)').length") == 2
    assert opened.js("document.querySelectorAll('.plot.logits .line').length") == 1
    assert opened.js("document.querySelectorAll('.plot.positions .line').length") == 0
