"""Colours as eyes see them: luminance, contrast, distance, and what people with one kind of cone less see."""

from __future__ import annotations

from collections.abc import Sequence

Rgb = Sequence[float]  # 0 … 255

# For linear RGB, from "A physiologically-based model for simulation of color vision deficiency" by Machado, Oliveira and
# Fernandes (2009), of which these are the strongest.
DEFICIENCIES = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))  # sRGB, D65
WHITE = (0.9505, 1.0, 1.089)


def linear(color: Rgb) -> list[float]:
    """Of sRGB the intensities, 0 … 1."""
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in color)]


def luminance(color: Rgb) -> float:
    """WCAG's relative luminance."""
    return sum(weight * part for weight, part in zip(TO_XYZ[1], linear(color), strict=True))


def contrast(one: Rgb, other: Rgb) -> float:
    """WCAG's contrast ratio, 1 … 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def over(color: Rgb, strength: float, ground: Rgb) -> list[float]:
    """A translucent colour on a ground."""
    return [strength * c + (1 - strength) * g for c, g in zip(color, ground, strict=True)]


def times(matrix: Sequence[Sequence[float]], vector: Sequence[float]) -> list[float]:
    """A matrix and a vector."""
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def seen(color: Rgb, deficiency: str | None) -> list[float]:
    """The intensities that a colour has for somebody; None: for most people."""
    intensities = linear(color)
    if deficiency:
        intensities = [min(1.0, max(0.0, part)) for part in times(DEFICIENCIES[deficiency], intensities)]
    return intensities


def lab(intensities: Sequence[float]) -> tuple[float, float, float]:
    """CIE L*a*b*."""
    scaled = [part / white for part, white in zip(times(TO_XYZ, intensities), WHITE, strict=True)]
    x, y, z = (part ** (1 / 3) if part > (6 / 29) ** 3 else part / (3 * (6 / 29) ** 2) + 4 / 29 for part in scaled)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def distance(one: Rgb, other: Rgb, deficiency: str | None = None) -> float:
    """The difference ΔE*ab of two colours for somebody: 2.3 is just noticed, 20 is told apart at a glance."""
    pairs = zip(lab(seen(one, deficiency)), lab(seen(other, deficiency)), strict=True)
    return sum((a - b) ** 2 for a, b in pairs) ** 0.5
