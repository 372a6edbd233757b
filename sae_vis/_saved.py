"""What the data of every view can do: be kept in a JSON file, and show itself in a notebook, where it is one page."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Self

from sae_vis import _json, _page, html_fns
from sae_vis._templates import Html


class Saved:
    """Data that is one JSON file."""

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a JSON file (gzipped if its name ends in ``.gz``), from which pages can be drawn again."""
        _json.save(self, path)

    @classmethod
    def load_json(cls, path: str | os.PathLike[str], *, max_bytes: int = _json.MAX_BYTES) -> Self:
        """Read what ``save_json`` wrote; neither the model nor torch is needed.

        Raises:
            FileFormatError: if the file is not what it should be, or larger (inflated) than ``max_bytes``.
        """
        return _json.load(cls, path, max_bytes=max_bytes)


class SavedPage(Saved, ABC):
    """Data of which all is on one page; a notebook shows the page."""

    @abstractmethod
    def get_html(self) -> Html:
        """The whole page as one document."""

    def _repr_html_(self) -> str:
        document = self.get_html()
        if len(document) > _page.NOTEBOOK_BYTES:
            told = f"{self!r} is too large to show here: write it to a file with .save_html('page.html')."
            return html_fns.empty(told)
        return _page.notebook_frame(document, repr(self))


class TextTwin(ABC):
    """Data that is plain text where a notebook shows no HTML; the HTML comes from ``_repr_html_``, where it is wanted."""

    @abstractmethod
    def to_text(self) -> str:
        """The data as plain text."""

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/plain": self.to_text()}
