"""Broken arguments: whatever is given as an option, a layout or a template's value gives a ``SaeVisError`` or is right."""

from __future__ import annotations

import dataclasses
import decimal
import fractions
import json
import re
import typing
from collections import UserList, deque
from types import SimpleNamespace

import html5lib
import msgspec
import numpy as np
import pytest
import torch
from fuzzing import FLOATS, INTS, TEXTS, XSS, any_value, survey

from sae_vis import Column, Component, FeatureVisParams, InputError, Layout, SaeVisError, html_fns
from sae_vis._page import data, json_text
from sae_vis._params import COMPONENTS
from sae_vis._templates import Html, Template, escape, template

# --- values that lie -------------------------------------------------------------------------------------------------


class OwnError(Exception):
    """What the methods below raise."""


def raising(*names):
    """An object whose special methods of these names raise."""

    def fail(self, *args):
        raise OwnError("from an object of the user's")

    return type("Raising", (), dict.fromkeys(names, fail))()


def lying(**answers):
    """An object whose special methods give these answers, right or not."""
    return type("Lying", (), {name: lambda self, *args, answer=answer: answer for name, answer in answers.items()})()


class LongList(list):
    """A list that says it is longer than it is."""

    def __len__(self):
        return 10**6


class IntChild(int):
    """An int of another class."""


class TextChild(str):
    """A text of another class."""

    __slots__ = ()


def endless():
    """A generator that ends after a while, with an error."""
    yield from range(3)
    raise OwnError("in the middle")


def strange(random):
    """A value that no option expects."""
    return random.choice([
        *(lambda: raising("__index__"), lambda: raising("__iter__"), lambda: raising("__len__", "__getitem__")),
        *(lambda: raising("__bool__"), lambda: raising("__eq__", "__hash__"), lambda: raising("__repr__")),
        *(lambda: raising("__repr__", "__index__", "__iter__", "__eq__", "__bool__", "__str__"), lambda: raising("tolist")),
        *(lambda: lying(__index__=3), lambda: lying(__index__="x"), lambda: lying(__iter__=5), lambda: lying(tolist=[1, 2])),
        *(lambda: lying(__len__=-1, __iter__=iter([1])), lambda: lying(__eq__=True, __hash__=0), lambda: lying(tolist="x")),
        *(lambda: LongList([1, 2]), lambda: IntChild(5), lambda: TextChild("x"), endless, lambda: iter([1, 2])),
        *(lambda: (i for i in [4, 5]), lambda: range(3), lambda: range(10, 0, -3), lambda: {3, 1}, lambda: frozenset([2])),
        *(lambda: deque([1, 2]), lambda: UserList([1]), {1: 2}.keys, lambda: bytearray(b"\x01\x02"), lambda: b"ab"),
        *(lambda: memoryview(b"ab"), lambda: np.array([1, 2]), lambda: np.array(3), lambda: np.array([1.5]), lambda: np.int8(4)),
        *(lambda: np.uint64(2**63), lambda: np.float32(2.0), lambda: np.bool_(True), lambda: np.array([], dtype=int)),
        *(lambda: np.array([[1, 2], [3, 4]]), lambda: np.array([None, 1], dtype=object), lambda: np.array("x")),
        *(lambda: np.datetime64("2020"), lambda: np.ma.masked, lambda: torch.tensor(3), lambda: torch.tensor([1, 2])),
        *(lambda: torch.tensor([1.5]), lambda: torch.tensor([True]), lambda: torch.tensor([[1]]), lambda: torch.zeros(0)),
        *(lambda: torch.zeros(2, dtype=torch.int64, device="meta"), lambda: torch.tensor(2, device="meta")),
        *(lambda: torch.tensor([1, 2]).to_sparse(), lambda: torch.tensor([1j]), lambda: torch.ones(2, requires_grad=True)),
        *(lambda: decimal.Decimal(3), lambda: fractions.Fraction(3), lambda: 3 + 0j, lambda: float("nan")),
        lambda: float("inf"),
        *(lambda: 10**5000, lambda: -(10**5000), lambda: "9" * 5000 + "GB", lambda: "1e400GB"),
        *(lambda: "1e308GB", lambda: " 4 gb "),
        *(lambda: "٣GB", lambda: "0x10", lambda: "1_000", lambda: "-0", lambda: "nanGB", lambda: [1, [2]], lambda: [[1], [2]]),
        *(lambda: [1, None], lambda: ["1"], lambda: [True], lambda: [10**5000], lambda: [np.int64(1), 2], lambda: (5, 5)),
        *(lambda: [0, 0],),
        *(object, lambda: int, lambda: len, lambda: Ellipsis, lambda: NotImplemented),
        lambda: SimpleNamespace(columns=3),
        *(lambda: Column("sequences"), lambda: Component("prompt"), lambda: Layout([Column("sequences")])),
        FeatureVisParams,
        *(lambda: Layout([Column("prompt")]), lambda: list(COMPONENTS), lambda: "sequences", lambda: [Column("logits_tables")]),
        _loop,
    ])()  # fmt: skip


def _loop():
    loop = [1]
    loop.append(loop)
    return loop


def any_argument(random):
    kind = random.randrange(6)
    if kind < 3:
        return strange(random)
    return any_value(random) if kind < 5 else random.choice([*INTS, *FLOATS, *TEXTS, None, True, False])


# --- options ---------------------------------------------------------------------------------------------------------

FIELDS = [option.name for option in dataclasses.fields(FeatureVisParams)]
HINTS = typing.get_type_hints(FeatureVisParams)


def check_canonical(params):
    """Every value is of the type that is promised, plain Python, and survives JSON."""
    for name, hint in HINTS.items():
        assert msgspec.convert(getattr(params, name), hint, strict=True) == getattr(params, name), name
        assert "Raising" not in repr(getattr(params, name))
    assert msgspec.json.decode(msgspec.json.encode(params), type=FeatureVisParams) == params
    assert dataclasses.replace(params) == params
    assert hash(params) is not None if params.layout is params.prompt_layout is None else True
    assert params.memory_budget_bytes >= 1
    params.feature_layout().check_view("feature")


class Case:
    """Arguments that show themselves even if they cannot."""

    def __init__(self, **arguments):
        self.arguments = arguments

    def __repr__(self):
        return f"{{{', '.join(f'{name}={safe_repr(value)}' for name, value in self.arguments.items())}}}"


def safe_repr(value):
    try:
        return repr(value)[:200]
    except (OwnError, ValueError):
        return f"<{type(value).__name__}>"


def test_any_options_are_refused_or_kept_in_their_canonical_form():
    def case(random):
        names = random.sample(FIELDS, random.choice([1, 1, 2, 4]))
        return Case(base=random.random() < 0.5, **{name: any_argument(random) for name in names})

    def check(case):
        options = {name: value for name, value in case.arguments.items() if name != "base"}
        params = FeatureVisParams(**options)
        if case.arguments["base"]:
            assert dataclasses.replace(FeatureVisParams(), **{n: getattr(params, n) for n in options}) == params
        check_canonical(params)
        return "kept"

    answers = survey("options", 16_500, case, check)
    assert answers["kept"] > 500
    assert answers["refused"] > 5000


class Later:
    """Something to be made in the check, since it may be refused."""

    def __init__(self, cls, *arguments):
        self.cls, self.arguments = cls, arguments

    def __repr__(self):
        return f"{self.cls.__name__}{self.arguments!r}"

    def make(self):
        return self.cls(*self.arguments)


def test_any_layout_is_refused_or_kept_in_its_canonical_form():
    def part(random):
        if random.random() < 0.4:
            return any_argument(random)
        name = random.choice([*COMPONENTS, "unknown"])
        return random.choice([name, Later(Component, name), [name], Later(Component, name, {"rows": 3})])

    def case(random):
        pieces = [part(random) for _ in range(random.choice([0, 1, 2]))]
        options = random.choice([None, {"rows": any_argument(random)}, any_argument(random), {"examples": 2}])
        return Case(
            pieces=pieces,
            options=options,
            width=any_argument(random),
            height=any_argument(random),
            which=random.randrange(6),
        )

    def check(case):
        given = SimpleNamespace(**case.arguments)
        if given.which == 0:
            Component(given.pieces[0] if given.pieces else given.width, given.options)
            return "component"
        pieces = [piece.make() if isinstance(piece, Later) else piece for piece in given.pieces]
        width = given.width if given.which == 1 else None
        column = Column(*pieces, width=width) if given.which < 3 else Column("sequences")
        columns = given.options if given.which == 3 else [column]
        layout = Layout(columns, height=given.height if given.which > 3 else None)
        assert msgspec.json.decode(msgspec.json.encode(layout), type=Layout) == layout
        check_canonical(FeatureVisParams(layout=layout))
        return "layout"

    answers = survey("layouts", 10_000, case, check)
    assert answers["layout"] > 300
    assert answers["refused"] > 3000


# --- templates and texts -----------------------------------------------------------------------------------------------

HOLES = [
    "{{ a }}",
    "{{a}}",
    "{{ b_2 }}",
    "{{  a  }}",
    "{{ A }}",
    "{{ 1 }}",
    "{{ }}",
    "{{",
    "}}",
    "{ { a } }",
    "{{ a",
    "a }}",
    "{{ a-b }}",
]
HOLES += [
    "{{{a}}}",
    "{{ {{ a }} }}",
    "<!-- needs: css/general.css -->\n",
    "<!-- needs: css/../x -->\n",
    "{% a %}",
    "{{ a\n}}",
]
PIECES = [*HOLES, *TEXTS, "<b>", "</b>", '"', "'", "&", "&amp;", "\n", "V8"]


def test_any_template_is_refused_or_filled_and_its_values_are_inert():
    def case(random):
        text = "".join(random.choice(PIECES) for _ in range(random.choice([0, 1, 2, 4, 8])))
        values = {name: any_argument(random) for name in random.sample(["a", "b_2", "c"], random.randrange(3))}
        return Case(text=text, values=values)

    def check(case):
        made = Template("html/fuzzed.html", case.arguments["text"])
        filled = made.fill(**case.arguments["values"])
        assert type(filled) is Html
        # Filled with nothing but letters it has the same markup: values bring no markup of their own.
        plain = made.fill(**dict.fromkeys(made.names, "word"))
        assert marks(filled) == marks(plain)
        return "filled"

    answers = survey("templates", 10_000, case, check)
    assert answers["filled"] > 300
    assert answers["refused"] > 2000


def marks(text):
    return [text.count(mark) for mark in "<>\"'"]


TEMPLATE_NAMES = [
    "",
    ".",
    "..",
    "../sae_vis/__init__.py",
    "/etc/passwd",
    "page.html\x00",
    "x" * 5000,
    "\ud800",
    "nowhere.html",
    "css/general.css",
]


@pytest.mark.parametrize("name", TEMPLATE_NAMES, ids=range(len(TEMPLATE_NAMES)))
def test_no_template_of_another_name_is_read(name):
    with pytest.raises(SaeVisError):
        template(name)


def test_any_text_is_inert_in_every_place_that_html_has():
    alphabet = [
        *TEXTS,
        *"<>&\"'`=/!-[]{}$\\\x00\x0b\x0c\r\n\t \u00a0\u200b\u2028\u2029\ufeff\ufffe\ufffd\ud800\udc00\U0001f600",
    ]

    def case(random):
        return "".join(random.choice(alphabet) for _ in range(random.choice([1, 2, 3, 6])))[:6000]

    def check(text):
        markup = f'<p title="{escape(text)}">{escape(text)}</p>'
        (element,) = html5lib.parseFragment(markup, namespaceHTMLElements=False)
        assert not len(element)
        assert list(element.attrib) == ["title"]
        assert element.attrib["title"] == (element.text or "")
        if text.isprintable() and "\ufffd" not in text:
            assert (element.text or "") == text
        (script,) = html5lib.parseFragment(data("x", [text]), namespaceHTMLElements=False)
        assert not len(script)
        assert json.loads(script.text) == json.loads(json.dumps([text]))  # which joins halves of a surrogate pair
        assert re.search("[<>&\u2028\u2029]", json_text(text)) is None
        return "inert"

    survey("texts", 5000, case, check)


def test_any_text_of_a_token_is_a_short_line_of_text_and_marks():
    alphabet = [
        *TEXTS,
        *map(chr, range(0x20)),
        *"\x7f\x85\u00ad\u0301\u034f\u061c\u115f\u180e\u200b\u200d\u202e\u2066\u20dd\ufe0f\ufeff\U000e0001",
        XSS,
    ]

    def case(random):
        return "".join(random.choice(alphabet) for _ in range(random.choice([0, 1, 2, 3, 8, 40])))

    def check(text):
        shown = html_fns.token_text(text)
        shown.encode()
        assert len(shown) < 8000
        assert re.fullmatch(r"(?:[^<>]|</?(?:i|samp)>|<i class=\"in\">|<abbr title=\"[^\"<>]*\">|</abbr>)*", shown)
        visible = re.sub(r"<[^>]*>", "", shown)
        assert visible.strip()
        assert not re.search(
            "[\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]", visible
        )
        return "shown"

    survey("token texts", 10_000, case, check)


def test_a_token_of_a_million_characters_takes_no_time():
    for text in ("x" * 10**6, "\u0301" * 10**6, XSS * 40_000, "\n" * 10**6, "\ud800" * 10**6):
        assert len(html_fns.token_text(text)) < 20_000


def test_one_error_for_a_lie():
    """The helpers above do what they say."""
    with pytest.raises(OwnError):
        raising("__index__").__index__()
    assert lying(__index__=3).__index__() == 3
    with pytest.raises(InputError):
        FeatureVisParams(seed=raising("__index__"))
