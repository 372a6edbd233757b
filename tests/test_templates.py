"""The template engine: holes, escaping, needs, and the errors that name the file and the hole."""

from __future__ import annotations

import pickle
import re

import pytest

from sae_vis import _templates
from sae_vis._errors import TemplateError
from sae_vis._templates import (
    Html,
    Template,
    add_folder,
    asset,
    compact_css,
    escape,
    fill_template,
    folder,
    join,
    template,
)


def fill(text, **values):
    return Template("html/test.html", text).fill(**values)


def test_holes_are_filled_in_one_pass():
    assert fill("<p>{{ a }} and {{b}}</p>\n", a="{{ b }}", b="{{ a }}") == "<p>{{ b }} and {{ a }}</p>"


@pytest.mark.parametrize("text", ["V8", "S9", "PS4", "C0", "{{ a }}", "\\1", "\\g<0>", "{0}", "%s", "$a"])
def test_text_that_looks_like_a_placeholder_is_inert(text):
    assert fill("{{ a }}V8S9PS4{{ b }}", a=text, b=text) == f"{escape(text)}V8S9PS4{escape(text)}"


def test_text_is_escaped_and_html_is_not():
    assert fill("{{ a }}", a="<b>&\"'") == "&lt;b&gt;&amp;&quot;&#x27;"
    assert fill("{{ a }}", a=Html("<b>")) == "<b>"
    assert fill("{{ a }}{{ b }}", a=3, b=-0.5) == "3-0.5"


def test_what_html_cannot_hold_is_named():
    assert escape("a\x00b\u202ec\ud800\ufffe") == "a[U+0000]b[U+202E]c[U+D800][U+FFFE]"
    assert escape("tab\tline\n") == "tab\tline\n"
    assert escape("日本 é \u00a0") == "日本 é \u00a0"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "no value for hole 'a'"),
        ({"a": "", "b": ""}, "no hole for value 'b'"),
        ({"b": ""}, "no value for hole 'a'; no hole for value 'b'"),
        ({"a": None}, "hole 'a': str, int or float expected, got None"),
        ({"a": True}, "hole 'a': str, int or float expected, got True"),
        ({"a": ["x"]}, "hole 'a': str, int or float expected"),
    ],
)
def test_values_and_holes_must_match(values, told):
    with pytest.raises(TemplateError) as error:
        fill("{{ a }}", **values)
    assert "html/test.html" in str(error.value)
    assert told in str(error.value)


def test_rows_are_those_of_fill_one_after_the_other():
    row = Template("html/test.html", "<tr>{{ a }}<td>{{ b }}{{ a }}</td></tr>")
    a, b = ["<i>", Html("<b>", frozenset({"css/a.css"})), "{{ b }}"], [1, -0.5, Html("x", frozenset({"js/b.js"}))]
    rows = row.fill_each(a=a, b=b)
    one_by_one = join([row.fill(a=a[i], b=b[i]) for i in range(3)])
    assert type(rows) is Html
    assert (rows, rows.needs) == (one_by_one, {"css/a.css", "js/b.js"})
    needing = Template("html/test.html", "<!-- needs: css/c.css -->\n{{ a }}")
    assert (needing.fill_each(a=["x"]), needing.fill_each(a=["x"]).needs) == ("x", {"css/c.css"})
    assert (needing.fill_each(a=[]), needing.fill_each(a=[]).needs) == ("", frozenset())


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"a": ["x"]}, "no value for hole 'b'"),
        ({"a": ["x"], "b": ["y"], "c": ["z"]}, "no hole for value 'c'"),
        ({"a": ["x"], "b": ["y", "z"]}, "columns of one length expected, got a 1, b 2"),
        ({"a": ["x", "y"], "b": []}, "columns of one length expected, got a 2, b 0"),
        ({"a": ["x"], "b": [None]}, "hole 'b': str, int or float expected, got None"),
    ],
)
def test_columns_and_holes_must_match(columns, told):
    with pytest.raises(TemplateError) as error:
        Template("html/test.html", "{{ a }}{{ b }}").fill_each(**columns)
    assert "html/test.html" in str(error.value)
    assert told in str(error.value)


@pytest.mark.parametrize("text", ["{{ A }}", "{{ a b }}", "{{a", "a}}", "{{}}"])
def test_a_malformed_hole_is_an_error(text):
    with pytest.raises(TemplateError, match=r"html/test.html"):
        Template("html/test.html", text)


# --- Html --------------------------------------------------------------------------------------------------------


def test_html_plus_text_is_text_again():
    assert type(Html("<b>") + Html("</b>")) is Html
    for mixed in (Html("<b>") + "x", "x" + Html("<b>"), Html("<b>").upper(), f"{Html('<b>')}", Html(", ").join(["a"])):
        assert type(mixed) is str
        assert "&lt;" in fill("{{ a }}", a=mixed) or "<" not in mixed


def test_join_escapes_what_is_not_html():
    joined = join([Html("<b>", frozenset({"css/a.css"})), "<i>", Html("</b>", frozenset({"js/b.js"}))])
    assert joined == "<b>&lt;i&gt;</b>"
    assert joined.needs == {"css/a.css", "js/b.js"}


def test_needs_flow_up():
    inner = fill("<!-- needs: css/a.css js/b.js -->\n<i>{{ a }}</i>", a="x")
    assert inner == "<i>x</i>"
    outer = fill("<!-- needs: css/c.css -->\n<p>{{ a }}</p>", a=inner)
    assert outer == "<p><i>x</i></p>"
    assert outer.needs == {"css/a.css", "js/b.js", "css/c.css"}
    assert (inner + Html("y")).needs == inner.needs


def test_html_survives_pickling():
    again = pickle.loads(pickle.dumps(Html("<b>", frozenset({"css/a.css"}))))
    assert (type(again), again, again.needs) == (Html, "<b>", {"css/a.css"})


# --- files -------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named():
    with pytest.raises(TemplateError, match=r"html/no_such\.html"):
        template("no_such.html")
    with pytest.raises(TemplateError, match=r"css/no_such\.css"):
        asset("css/no_such.css")
    with pytest.raises(TemplateError, match="neither a style sheet"):
        asset("html/page.html")


def test_a_missing_file_is_told_with_every_folder_that_was_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(_templates, "_FOLDERS", [])
    with pytest.raises(
        TemplateError, match=rf"not found in {re.escape(str(folder('html')))}\. Is the installation compl"
    ):
        template("no_such.html")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        add_folder(tmp_path / name)
    searched = ", ".join(map(str, (folder("html"), tmp_path.resolve() / "one", tmp_path.resolve() / "other")))
    with pytest.raises(TemplateError, match=rf"not found in {re.escape(searched)}\. Is its name right") as error:
        template("no_such.html")
    assert "installation" not in str(error.value)


def test_a_list_of_what_is_no_text_is_refused():
    with pytest.raises(
        TemplateError, match=r"moments.html: a list for the hole 'moments' holds what is no Html: \[1\]"
    ):
        fill_template("moments.html", moments=[1])


def test_no_file_that_comes_later_stands_for_one_of_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(_templates, "_FOLDERS", [])
    add_folder(tmp_path)
    own = _templates._read("css/general.css")
    (tmp_path / "general.css").write_text("body { color: red }", encoding="utf-8")
    assert _templates._read("css/general.css") == own
    (tmp_path / "mine.css").write_text("i { color: red }", encoding="utf-8")
    assert _templates._read("css/mine.css") == "i { color: red }"


def test_templates_are_read_once():
    assert template("page.html") is template("page.html")


def every_file(kind):
    return sorted(path.name for path in _templates.folder(kind).iterdir())


@pytest.mark.parametrize("name", every_file("html"))
def test_every_template_parses_and_its_needs_exist(name):
    found = template(name)
    assert found.needs <= {f"{kind}/{name}" for kind in ("css", "js") for name in every_file(kind)}


@pytest.mark.parametrize("name", [f"{kind}/{name}" for kind in ("css", "js") for name in every_file(kind)])
def test_every_asset_is_needed_and_loads_nothing(name):
    assert any(name in template(file).needs for file in every_file("html"))
    text = asset(name).replace("http://www.w3.org/2000/svg", "")
    for fetching in ("http:", "https:", "@import", "url(", "fetch(", "XMLHttpRequest", "eval("):
        assert fetching not in text


def test_an_asset_that_would_end_its_element_is_refused(tmp_path, monkeypatch):
    (tmp_path / "bad.js").write_text("let a = '</SCRIPT>';", encoding="utf-8")
    monkeypatch.setattr(_templates, "folder", lambda kind: tmp_path)
    with pytest.raises(TemplateError, match="would end or confuse"):
        asset("js/bad.js")


def test_no_element_has_an_id():
    """Several pages may be in one document; classes do not meet there. What another element must name gets one by a script."""
    named = {
        (file.name, found)
        for file in folder("html").iterdir()
        for found in re.findall(r'\bid="([^"]*)"', file.read_text("utf-8"))
    }
    assert not named


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("/* what */\na {\n  color: red; /* why */\n}\n\n/* more\n   of it */\nb {}\n", "a {\ncolor: red;\n}\nb {}\n"),
        ('a::before { content: "/* x */ \\"  "; }', 'a::before { content: "/* x */ \\"  "; }\n'),
        ("a::after { content: 'one\\\n   two'; }", "a::after { content: 'one\\\n   two'; }\n"),
        ("a/* no space */.b {}", "a/**/.b {}\n"),
        ("a /* x */ .b {}", "a /**/ .b {}\n"),
        ("a/* one */.b {}\nc {} /* two */\n", "a/**/.b {}\nc {}\n"),
        ("a" + "/* x **/" * 40 + ".b {}", "a" + "/**/" * 40 + ".b {}\n"),
    ],
)
def test_a_style_sheet_loses_comments_and_indentation_alone(written, kept):
    assert compact_css(written) == kept
    assert compact_css(kept) == kept
