"""What must hold of every page, whatever the numbers: it parses, nothing on it is unreadable, and saving changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element

from page_reading import packed, parse, parse_fragment

from sae_vis import MultiFeatureData, MultiPromptData
from sae_vis.data_storing_fns import SequenceData

UNREADABLE = re.compile(r"(?<![\w.])(?:nan|NaN|-?inf|Infinity|None|undefined)(?![\w.])")
TOO_LONG = re.compile(r"\d{14,}")
NUMBER = re.compile(r"[−-]?[\d,.]+(?:e[+−-]\d+)?", re.IGNORECASE)


def number(text: str) -> float:
    """A number as a page writes it."""
    return float(text.replace("\u2212", "-").replace(",", "").removesuffix("%"))


def numbers(text: str) -> list[float]:
    return [number(found) for found in NUMBER.findall(text)]


def readable(tree: Element) -> list[str]:
    """All that a reader sees or the browser draws with: texts and attributes, outside of scripts and styles."""
    if tree.tag in {"script", "style"} or not isinstance(tree.tag, str):
        return []
    here = [tree.text or "", *tree.attrib.values()]
    return here + [text for child in tree for text in (*readable(child), child.tail or "")]


def has_class(element: Element, name: str) -> bool:
    return name in element.get("class", "").split()


def check_drawn(data: MultiFeatureData | MultiPromptData, folder: Path, **options: object) -> dict[int, Element]:
    """Draw, save, load and draw again; what is drawn of each feature."""
    document = data.get_html(**options)
    path = folder / f"data{len(list(folder.iterdir()))}.json.gz"
    data.save_json(path)
    loaded = type(data).load_json(path)
    assert loaded == data
    assert loaded.get_html(**options) == document
    tree = parse(document)
    trees = [tree, *(parse_fragment(fragment) for fragment in packed(document).values())]
    for text in (text for part in trees for text in readable(part)):
        assert not UNREADABLE.search(text), text
    for element in (element for part in trees for element in part.iter() if element.tag not in {"script", "style"}):
        for text in (element.text, element.tail, element.get("data-v"), element.get("aria-label")):
            assert not TOO_LONG.search(text or ""), text
    return {int(e.get("data-feature")): e for part in trees for e in part.iter("article")}


def check_features(data: MultiFeatureData, folder: Path) -> dict[int, Element]:
    """A feature-centric page on which every feature's numbers are those of the data, as far as they are written."""
    articles = check_drawn(data, folder)
    assert list(articles) == [next(iter(data)), *list(data)[1:]] if len(data) else not articles
    for index, feature in data.items():
        article = articles[index]
        acts = feature.activations
        shown = dict(zip((e.text for e in article.iter("dt")), (e.text for e in article.iter("dd")), strict=True))
        assert number(shown["Density"].removesuffix(" %")) / 100 == _near(acts.density, 5e-3)
        assert number(shown["Active"]) == acts.n_active
        assert (number(shown["Max"]) if "Max" in shown else None) == (_near(acts.max, 5e-3) if acts.max else None)
        assert ("Kurtosis" in "".join(article.itertext())) == (acts.kurtosis is not None)
        check_lines(article, feature._shown_sequences(), acts.max)
        titles = ["".join(e.itertext()) for e in article.iter("h3") if (e.text or "").startswith("INTERVAL")]
        groups = [group for group in feature.sequences.groups if group.share is not None]
        for title, group in zip(titles, groups, strict=True):
            lower, upper, share = numbers(title.partition(", ")[0])  # after it the near-duplicates are counted
            assert (lower, upper) == (_near(group.lower, 6e-4, acts.max), _near(group.upper, 6e-4, acts.max))
            assert share / 100 == _near(group.share, 5e-3)
    return articles


def check_lines(article: Element, sequences: list[SequenceData], maximum: float | None) -> None:
    """The lines of tokens show these sequences: what is active has a colour and a number that is not zero."""
    lines = [e for e in article.iter("div") if has_class(e, "seq")]
    for line, sequence in zip(lines, sequences, strict=True):
        act = sequence.feat_acts[sequence.bold_idx]
        assert number(line.get("data-v")) == _near(act, 6e-3, maximum)
        assert (number(line.get("data-v")) > 0) == (act > 0)
        for token, value in zip(line, sequence.feat_acts, strict=True):
            strength = re.search(r"--a:([\d.]+)", token.get("style", ""))
            assert (strength is not None) == (value > 0)
            assert strength is None or 0.01 <= float(strength[1]) <= 1.0


class _near:  # noqa: N801 - reads like pytest.approx, whose absolute tolerance hides numbers as small as these
    """Equal to every number within a tolerance that is relative to it, or to a larger one beside it."""

    def __init__(self, value: float, tolerance: float, beside: float | None = None) -> None:
        self.value, self.allowed = value, tolerance * max(abs(value), beside or 0.0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, float):
            return NotImplemented
        return abs(other - self.value) <= self.allowed

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.value} ± {self.allowed}"
