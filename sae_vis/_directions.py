"""A map of the dictionary in two dimensions: similar decoder directions lie near each other.

By PCA it is a projection of the unit decoder rows on their two main axes; by UMAP, neighbourhoods are kept instead of
distances. Both are of the whole dictionary, whatever features are asked for, so that pages of several runs share one map.

The axes of the PCA are those of an evenly spaced part of the dictionary where all of it would take more than about a tenth
of a second: how large a part depends on the sizes of the encoder alone, and the page says it.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_vis._activations import decoder_rows
from sae_vis._errors import InputError
from sae_vis._statistics import Floats
from sae_vis.model_fns import Encoder

DECIMALS = 5  # of coordinates, most of which lie between -1 and 1
MOST_WORK = 2**30  # multiplications for the axes
EIGEN_WORK = 10  # times n**3: what the eigenvectors of a matrix of n columns take
TILE = 256  # rows that are looked at together: they stay in the cache
FLAT = 1e-12  # what varies less than this, on average over the unit rows, is noise
NEIGHBOURS = 15  # of UMAP
SEED = 0  # likewise

Place = tuple[float, float] | None  # of a feature on the map; None for a direction that is none


class DirectionMap:
    """Where each feature of a dictionary lies.

    Raises:
        InputError: if UMAP is asked for and ``umap-learn`` is not installed.
    """

    def __init__(self, encoder: Encoder, kind: str | None) -> None:
        self.encoder, self.kind = encoder, kind
        self.axes = Axes.of(encoder) if kind == "pca" else None
        self.places = _umap_places(encoder) if kind == "umap" else []

    @property
    def variance(self) -> float | None:
        """The share of the variance of the directions that the two axes hold; None by UMAP, and where nothing varies."""
        return self.axes.share if self.axes else None

    @property
    def sample(self) -> int | None:
        """How many of the features the axes are computed from; None where that is all of them, and by UMAP."""
        return self.axes.sample if self.axes else None

    def of(self, features: Int[Tensor, " n"]) -> list[Place]:
        """The places of some features; all None where no map was asked for."""
        if self.kind == "umap":
            return [self.places[feature] for feature in features.tolist()]
        if self.axes is None:
            return [None] * len(features)
        return [place for rows in _tiles(self.encoder, features) for place in self.axes.places(rows)]


class Axes(NamedTuple):
    """The mean of the unit decoder rows, and the two axes along which they vary most."""

    mean: Float[Any, " d"]
    first: Float[Any, " d"]
    second: Float[Any, " d"]
    share: float | None  # of the variance that lies along the two
    sample: int | None  # how many features these come from, if not from all

    @classmethod
    def of(cls, encoder: Encoder) -> Axes | None:
        """Of the dictionary; None where fewer than two features have a direction."""
        d_out = decoder_rows(encoder, torch.zeros(1, dtype=torch.int64)).shape[1]
        size = sample_size(encoder.d_hidden, d_out)
        sample = torch.arange(size) * encoder.d_hidden // size
        rows = torch.cat([directed for directed, _ in _tiles(encoder, sample)])
        if len(rows) < 2:
            return None
        mean = rows.mean(0)
        centred = rows - mean
        axes = main_axes(centred)
        total = float(centred.square().sum())
        along = sum(float((centred @ axis).square().sum()) for axis in axes)
        share = round(along / total, DECIMALS) if total > FLAT * len(rows) else None
        return cls(mean.numpy(), axes[0].numpy(), axes[1].numpy(), share, size if size < encoder.d_hidden else None)

    def places(self, tile: tuple[Tensor, Tensor]) -> Iterator[Place]:
        """Of the features of a tile. Each sum is over one row, so it has the same bits whatever the other rows are."""
        rows, is_direction = tile
        centred = rows.numpy() - self.mean
        x, y = (((centred * axis).sum(1)).round(DECIMALS) + 0.0 for axis in (self.first, self.second))  # no -0.0
        found = iter(zip(x.tolist(), y.tolist(), strict=True))
        return (next(found) if there else None for there in is_direction.tolist())


def sample_size(d_hidden: int, d_out: int) -> int:
    """How many of the features the axes are computed from: two at least, if there are."""

    def work(n: int) -> int:
        side = min(n, d_out)
        return n * side * d_out + EIGEN_WORK * side**3

    return max(min(2, d_hidden), bisect_right(range(1, d_hidden + 1), MOST_WORK, key=work))


def main_axes(centred: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor]:
    """The two eigenvectors of the covariance with the largest eigenvalues, from the smaller of the two Gram matrices.

    Of each, the entry with the largest absolute value is positive. Zeros stand for an axis along which nothing varies.
    """
    n, d = centred.shape
    if n <= d:
        gram = centred @ centred.T
    else:
        gram = centred.new_zeros(d, d)
        for rows in torch.split(centred, TILE):
            gram.addmm_(rows.T, rows)
    values, vectors = torch.linalg.eigh(gram)  # rising
    axes = []
    for place in (-1, -2):
        if len(values) < -place or float(values[place]) <= FLAT * n:
            axes.append(centred.new_zeros(d))
            continue
        axis = centred.T @ vectors[:, place] if n <= d else vectors[:, place]
        axis = axis / axis.norm()
        size = axis.abs()
        largest = (size >= size.max() * (1 - 1e-9)).nonzero()[0]  # the first of those that differ by rounding alone
        axes.append(axis * torch.sign(axis[largest]))
    return axes[0], axes[1]


def _tiles(encoder: Encoder, features: Int[Tensor, " n"]) -> Iterator[tuple[Tensor, Tensor]]:
    """The unit decoder rows, in float64, of those features that have one, and which have; some at a time."""
    for some in torch.split(features, TILE):
        rows = decoder_rows(encoder, some).cpu().double()
        norms = rows.square().sum(1).sqrt()
        is_direction = torch.isfinite(norms) & (norms > 0)
        yield (rows / norms[:, None])[is_direction], is_direction


def _umap_places(encoder: Encoder) -> list[Place]:
    """The places by UMAP of the cosine distances, with a fixed seed: minutes for a large dictionary."""
    umap = _umap()
    tiles = list(_tiles(encoder, torch.arange(encoder.d_hidden)))
    rows, is_direction = (torch.cat(parts) for parts in zip(*tiles, strict=True))
    if len(rows) <= 2 + 1:  # its neighbourhoods need more
        return [None] * encoder.d_hidden
    reducer = umap.UMAP(
        n_neighbors=min(NEIGHBOURS, len(rows) - 1),
        metric="cosine",
        random_state=SEED,
        n_jobs=1,
        init="spectral" if len(rows) > 2 * NEIGHBOURS else "random",  # the spectral start needs a larger graph
    )
    with warnings.catch_warnings():  # e.g. that the graph has several parts, which the map shows
        warnings.simplefilter("ignore")
        coordinates: Floats = np.asarray(reducer.fit_transform(rows.float().numpy()), dtype=np.float64)
    found = iter((coordinates.round(DECIMALS) + 0.0).tolist())
    return [tuple(next(found)) if there else None for there in is_direction.tolist()]


def _umap() -> Any:
    """The package, or an error that says how to get it."""
    try:
        with warnings.catch_warnings():  # of its own needs, such as that tensorflow is not there
            warnings.simplefilter("ignore")
            import umap
    except ImportError as error:
        raise InputError(
            f"FeatureVisParams(feature_map='umap') needs umap-learn, which cannot be imported ({error}). Install it with "
            "pip install 'sae-vis[map]', or choose feature_map='pca', which needs nothing."
        ) from None
    return umap
