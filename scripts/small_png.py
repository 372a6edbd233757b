"""PNG files with a palette of 256 colours: a third of the size of a screenshot, and for a page hardly to be told from it."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

COLOURS = 256
ROUNDS = 4  # of moving each colour to the mean of what it stands for


def palette_png(pixels: NDArray[np.uint8]) -> bytes:
    """The file of an image ``[height, width, 3]``, in the 256 colours that stand for it best."""
    height, width, _ = pixels.shape
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    found, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.float64)
    palette = _palette(colours, np.sqrt(counts))  # the root: small marks count beside large areas
    indices = _nearest(colours, palette)[places].reshape(height, width).astype(np.uint8)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), indices], axis=1)  # each begins with its filter: none
    size = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"PLTE", np.rint(palette).astype(np.uint8).tobytes())]
    chunks += [(b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _palette(colours: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """By median cut, then moved to the means; all colours where they are few."""
    if len(colours) <= COLOURS:
        return colours
    boxes = [np.arange(len(colours))]
    while len(boxes) < COLOURS:
        spans = [np.ptp(colours[box], axis=0).max() * weights[box].sum() if len(box) > 1 else 0.0 for box in boxes]
        box = boxes.pop(int(np.argmax(spans)))
        box = box[np.argsort(colours[box, np.argmax(np.ptp(colours[box], axis=0))], kind="stable")]
        sums = np.cumsum(weights[box])
        cut = min(max(1, int(np.searchsorted(sums, sums[-1] / 2))), len(box) - 1)
        boxes += [box[:cut], box[cut:]]
    palette = np.stack([np.average(colours[box], axis=0, weights=weights[box]) for box in boxes])
    for _ in range(ROUNDS):
        places = _nearest(colours, palette)
        totals = np.bincount(places, weights, COLOURS)
        sums = np.stack([np.bincount(places, weights * colours[:, axis], COLOURS) for axis in range(3)], axis=1)
        palette = np.where(totals[:, None] > 0, sums / np.maximum(totals, 1e-9)[:, None], palette)
    return palette


def _nearest(colours: NDArray[np.float64], palette: NDArray[np.float64]) -> NDArray[np.intp]:
    distances = (palette**2).sum(1) - 2 * colours @ palette.T
    return distances.argmin(1)
