"""Every choice behind the bundled model in one place: sources, sizes, training recipes, file names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HOOK_POINT = "blocks.0.mlp.hook_post"
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
VOCAB_SIZE = 4096
ROW_LENGTH = 128  # tokens in a row, BOS included; also the model's context length
HELD_OUT_PER_MILLE = 40  # documents whose name hashes below this are never trained on
SAMPLE_ROWS = 1280  # rows of held-out text shipped with the package
REPO_ROOT = Path(__file__).resolve().parents[2]
DEMO_DATA = REPO_ROOT / "sae_vis" / "demo_data"


@dataclass(frozen=True)
class Source:
    """One named source distribution (or the running Python's standard library, if ``version`` is empty)."""

    name: str
    version: str
    licence: str
    copyright: str
    include: tuple[str, ...]  # prefixes of paths inside the distribution; () takes everything
    exclude: tuple[str, ...] = ()  # substrings of paths


SOURCES: tuple[Source, ...] = (
    Source(
        "CPython standard library",
        "",
        "PSF-2.0",
        "Copyright (c) 2001 Python Software Foundation; All Rights Reserved",
        include=(),
        exclude=(
            "test/",  # also leaves out unittest/
            "tests/",
            "/test_",
            "site-packages/",
            "encodings/",
            "pydoc_data/",
            "lib2to3/",
            "ensurepip/",
            "idlelib/",
            "turtledemo/",
            "config-",
            "html/entities",
            "stringprep",
            "_sysconfigdata",
            "LICENSE",
        ),
    ),
    Source(
        "Django",
        "5.2",
        "BSD-3-Clause",
        "Copyright (c) Django Software Foundation and individual contributors.",
        include=("django/", "docs/", "tests/"),
        exclude=(
            "locale/",
            "tests/gis_tests/",
            "/vendor/",
            "tests/i18n/",
            "tests/view_tests/media",
            "requirements/",
            "docs/spelling_wordlist",
            "/fixtures/",
            "gis/gdal/",
            "tests/staticfiles_tests/",
        ),
    ),
    Source(
        "djangorestframework",
        "3.15.2",
        "BSD-3-Clause",
        "Copyright © 2011-present, Encode OSS Ltd.",
        include=("rest_framework/", "tests/", "docs/"),
        exclude=("locale/", "static/"),
    ),
    Source(
        "wagtail",
        "6.3.1",
        "BSD-3-Clause",
        "Copyright (c) 2014-present Torchbox Ltd and individual contributors.",
        include=("wagtail/",),
        exclude=("locale/", "static/", "/tests/", "wagtail/test/", "/test_", "node_modules"),
    ),
    Source(
        "SQLAlchemy",
        "2.0.36",
        "MIT",
        "Copyright 2005-2024 SQLAlchemy authors and contributors.",
        include=("lib/", "doc/build/"),
        exclude=("lib/sqlalchemy/testing/", "changelog/changelog_0", "doc/build/static"),
    ),
    Source(
        "Sphinx",
        "8.1.3",
        "BSD-2-Clause",
        "Copyright (c) 2007-2024 by the Sphinx team.",
        include=("sphinx/", "doc/"),
        exclude=("locale/", "sphinx/search/", "/static/"),
    ),
    Source(
        "pytest",
        "8.3.4",
        "MIT",
        "Copyright (c) 2004 Holger Krekel and others",
        include=("src/", "doc/"),
    ),
    Source(
        "Flask", "3.1.0", "BSD-3-Clause", "Copyright 2010 Pallets", include=("src/", "docs/", "examples/", "tests/")
    ),
    Source("Werkzeug", "3.1.3", "BSD-3-Clause", "Copyright 2007 Pallets", include=("src/", "docs/", "tests/")),
    Source("Jinja2", "3.1.4", "BSD-3-Clause", "Copyright 2007 Pallets", include=("src/", "docs/", "tests/")),
    Source("requests", "2.32.3", "Apache-2.0", "Copyright 2019 Kenneth Reitz", include=("src/", "docs/", "tests/")),
)


@dataclass(frozen=True)
class ModelSettings:
    """The language model: a one-layer GELU transformer, and how it is trained."""

    n_layers: int = 1
    d_model: int = 256
    n_heads: int = 8
    d_head: int = 32
    d_mlp: int = 768
    n_ctx: int = ROW_LENGTH
    d_vocab: int = VOCAB_SIZE
    act_fn: str = "gelu"
    normalization_type: str = "LN"
    eps: float = 1e-5

    init_std: float = 0.05
    rows_per_step: int = 32
    token_budget: int = 32_000_000
    learning_rate: float = 3e-3
    warmup_steps: int = 200
    final_lr_fraction: float = 0.02
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class SaeSettings:
    """One sparse autoencoder on ``HOOK_POINT`` and its recipe."""

    d_hidden: int
    seed: int
    l1: float
    token_budget: int = 12_000_000
    batch_tokens: int = 2048
    learning_rate: float = 1e-3
    l1_warmup_fraction: float = 0.05
    lr_decay_fraction: float = 0.2
    resample_fractions: tuple[float, ...] = (0.12, 0.25, 0.4)
    buffer_rows: int = 1024


MODEL = ModelSettings()
SAES: dict[str, SaeSettings] = {
    "sae": SaeSettings(d_hidden=2048, seed=0, l1=3.5),
    "sae_b": SaeSettings(d_hidden=512, seed=1, l1=3.5),
}
