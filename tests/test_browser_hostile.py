"""Hostile text and a broken page in a real Chromium: nothing runs, nothing is asked for, and the page still works.

Two lines of defence, each tested alone. Text is escaped, so that no vector becomes an element or an attribute. And if one
ever did, the page's Content-Security-Policy stops what it could do: here elements are planted past the escaping.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re

import browser
import pytest
from rendering_fixtures import make_features, make_prompt, make_provenance
from test_browser import LOADED, RAN, TINY, expect_feature, sequences_of
from test_hostile_tokens import HOSTILE
from xss_vectors import VECTORS

from sae_vis import InputError

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser-hostile")]  # one browser for all

if browser.sync_playwright:
    from playwright.sync_api import expect


# --- escaping ---------------------------------------------------------------------------------------------------------

HALF_PAIR = re.compile("[\ud800-\udfff]")
TEXTS = list(dict.fromkeys([*VECTORS, *HOSTILE.values()]))


def without_harm(opened, before):
    """The page has no more elements that load or run than at first, and does not scroll sideways."""
    assert opened.js(LOADED) == before
    assert opened.js("document.documentElement.scrollWidth <= innerWidth")


def go_to_all(opened, *starts):
    """Every vector in the address, as it is and encoded."""
    addresses = [start + text[:500] for start in starts for text in TEXTS]
    whole = [HALF_PAIR.sub("", text)[:500] for text in TEXTS]
    opened.js(f"""(async () => {{
      const encoded = {json.dumps(whole)}.map((text) => {json.dumps(starts[0])} + encodeURIComponent(text));
      for (const address of [...{json.dumps(addresses)}, ...encoded]) {{
        location.hash = address;
        await new Promise((done) => setTimeout(done, 0));
      }}
    }})()""")


def test_every_vector_as_token_label_title_and_address(show):
    features = make_features(len(TEXTS), dead=(), **TINY)
    features.vocab = {
        token_id: TEXTS[token_id % len(TEXTS)] for token_id in range(max(len(TEXTS), *features.vocab) + 1)
    }
    features.vocab_bytes = {}
    for index, (text, feature) in enumerate(zip(TEXTS, features.values(), strict=True)):
        feature.label = text
        sequence = sequences_of(feature)[0]
        sequence.token_ids[sequence.bold_idx] = index
        feature.logits.top_token_ids[0] = index
        for effect in sequence.effects:
            effect.raised_token_ids[:] = [index] * len(effect.raised_token_ids)
        for group in feature.sequences.groups:
            group.title = text
    opened = show(features.get_html(), size=(800, 600), init=RAN)
    before = opened.js(LOADED)
    tokens = "[...document.querySelectorAll('.seq > *')]"
    for index, text in enumerate(TEXTS):
        if index % 2:
            opened.page.keyboard.press("ArrowRight")
        else:
            opened.js(f"location.hash = '#feature={index}'")
        expect(opened.page.locator("article")).to_have_attribute("data-feature", str(index))
        opened.js(f"{tokens}.forEach((t) => t.dispatchEvent(new PointerEvent('pointerover', {{ bubbles: true }})))")
        assert opened.js("!document.querySelector('.hovertext').hidden")
        without_harm(opened, before)
        if text.isprintable() and text.isascii() and 0 < len(text) <= 48 and text == text.strip() and "  " not in text:
            assert opened.js("document.querySelector('.seq > .b').textContent") == text
            assert opened.texts(".label") == [text]
    opened.page.locator(".previous").click()
    expect_feature(opened.page, len(TEXTS) - 2)
    go_to_all(opened, "#feature=")
    opened.js("location.hash = '#feature=%'")
    expect(opened.page.locator(".message")).to_contain_text("There is no feature “%”")
    without_harm(opened, before)
    for text in TEXTS[::15]:
        opened.page.locator(".choose").fill(HALF_PAIR.sub("", text)[:500])
        opened.page.locator(".choose").press("Enter")
        without_harm(opened, before)
    opened.js("location.hash = '#feature=3'")
    expect_feature(opened.page, 3)


def test_every_vector_on_the_prompt_page(show):
    prompt = make_prompt(12, len(TEXTS), **TINY)
    ids = list(range(len(TEXTS)))
    prompt = dataclasses.replace(prompt, vocab=dict(enumerate(TEXTS)), vocab_bytes={})
    prompt.prompt_token_ids[:] = ids
    for text, data in zip(itertools.cycle(TEXTS), prompt.prompt_data_dict.values(), strict=False):
        data.label = data.top_group.title = text
        data.sequence.token_ids[:] = ids
    opened = show(prompt.get_html(seq_pos=3, score_name="act_size"), size=(800, 600), init=RAN)
    before = opened.js(LOADED)
    opened.page.locator(".strip button").nth(3).focus()
    for position in range(4, 14):
        opened.page.keyboard.press("ArrowRight")
        expect(opened.page.locator(".strip button").nth(position)).to_have_attribute("aria-checked", "true")
    for metric in prompt.scores:
        opened.page.locator(f".metrics [data-metric={metric}]").click()
        expect(opened.page.locator(f".metrics [data-metric={metric}]")).to_have_attribute("aria-checked", "true")
        opened.js("""[...document.querySelectorAll('.seq > *')].forEach((token) =>
          token.dispatchEvent(new PointerEvent('pointerover', { bubbles: true })))""")
        assert opened.js("!document.querySelector('.hovertext').hidden")
        without_harm(opened, before)
    go_to_all(opened, "#pos=", "#metric=", "#pos=1&metric=")
    without_harm(opened, before)
    opened.js("location.hash = '#pos=2&metric=act_size'")
    expect(opened.page.locator(".strip button").nth(2)).to_have_attribute("aria-checked", "true")


SHORT = [text for text in VECTORS if len(text) < 1000]
NAMES = [*SHORT[::18], "x" * 100_000, "<script>" * 10_000, "\u202e" * 100_000]


@pytest.mark.parametrize("part", range(2))
def test_vectors_as_names_notes_and_versions(show, part):
    """The model's name, the hook point, notes, versions, digests and reasons; also a hundred thousand characters of each."""
    for text in NAMES[part::2]:
        provenance = make_provenance(
            model=text,
            hook_point=text,
            notes=[text],
            versions={text: text},
            digests={text: text},
            direct_effect_reason=text,
        )
        features = dataclasses.replace(make_features(2, dead=(), **TINY), provenance=provenance)
        features[1].label = text
        opened = show(features.get_html(), size=(800, 600), init=RAN)
        before = opened.js(LOADED)
        opened.page.locator(".next").click()
        expect_feature(opened.page, 1)
        without_harm(opened, before)
        prompt = dataclasses.replace(make_prompt(2, 4, **TINY), provenance=provenance)
        opened = show(prompt.get_html(feature_url="f.html#feature={feature}"), size=(800, 600), init=RAN)
        before = opened.js(LOADED)
        opened.page.locator(".strip button").nth(1).click()
        expect(opened.page.locator(".strip button").nth(1)).to_have_attribute("aria-checked", "true")
        without_harm(opened, before)


def test_an_address_of_features_is_refused_or_stays_in_its_attribute(show):
    """``feature_url`` with every vector before, in and behind it."""
    prompt = make_prompt(2, 4, **TINY)
    urls = [
        url
        for text in TEXTS
        if len(text) < 500
        for url in (text + "{feature}", "f.html#{feature}" + text, "https://x.example/?{feature}&" + text)
    ]
    kept = []
    for url in urls:
        try:
            kept.append((url, prompt.get_html(seq_pos=2, feature_url=url)))
        except InputError:
            continue
    assert len(kept) > 50
    assert len(urls) - len(kept) > 50
    opened = show("<!doctype html><title>x</title><body>", init=RAN)
    for url, document in kept:
        found = opened.js(f"""(() => {{
          const page = new DOMParser().parseFromString({json.dumps(str(document))}, "text/html");
          const links = [...page.querySelectorAll(".prompt-columns h2 a")];
          return links.map((a) => [a.getAttribute("href"), [...a.attributes].map((one) => one.name), new URL(a.href, "https://own.example/").protocol]);
        }})()""")
        for href, attributes, protocol in found:
            assert re.sub(r"\d+", "7", href) == re.sub(r"\d+", "7", url.replace("{feature}", "7"))
            assert attributes == ["href", "target", "rel"]
            assert protocol in {"http:", "https:"}


# --- the policy, where escaping would have failed --------------------------------------------------------------------

# What is planted into the window ``w``, and the directive that stops it. None of it may set ``w.ran``, nor be asked for.
PLANTED = {
    "an inline script": ("script-src-elem", "add('script', { textContent: RUN })"),
    "an SVG script": ("script-src-elem", "html('<svg></svg>').append(svgScript(RUN))"),
    "a script from elsewhere": ("script-src-elem", "add('script', { src: `${URL}/x.js` })"),
    "a module": ("script-src-elem", "add('script', { type: 'module', textContent: RUN })"),
    "a script as data": ("script-src-elem", "add('script', { src: `data:text/javascript,${RUN}` })"),
    "a handler": ("script-src-attr", "html(`<img src='data:,' onerror='${RUN}'>`)"),
    "a handler that is clicked": ("script-src-attr", "html(`<b onclick='${RUN}'>x</b>`).click()"),
    "a link of javascript": ("script-src-elem", "html(`<a href='javascript:${RUN}'>x</a>`).click()"),
    "eval": ("script-src", "try { w.setTimeout(RUN) } catch {}"),
    "a function of text": ("script-src", "w.setTimeout(() => { try { w.Function(RUN)() } catch {} })"),
    "an image": ("img-src", "add('img', { src: `${URL}/x.png` })"),
    "an image in a style": ("img-src", "html(`<b style='background: url(${URL}/x.png)'>x</b>`)"),
    "a style sheet": ("style-src-elem", "add('style', { textContent: 'body { display: none }' })"),
    "a style sheet from elsewhere": ("style-src-elem", "add('link', { rel: 'stylesheet', href: `${URL}/x.css` })"),
    "a font": ("font-src", "new w.FontFace('x', `url(${URL}/x.woff)`).load().catch(() => 0)"),
    "a fetch": ("connect-src", "w.fetch(URL).catch(() => 0)"),
    "an old fetch": ("connect-src", "const r = new w.XMLHttpRequest(); r.open('GET', URL); try { r.send() } catch {}"),
    "a beacon": ("connect-src", "w.navigator.sendBeacon(URL, 'x')"),
    "a socket": ("connect-src", "try { new w.WebSocket('wss://x.example') } catch {}"),
    "a frame": ("frame-src", "add('iframe', { src: URL })"),
    "a frame as data": ("frame-src", "add('iframe', { src: 'data:text/html,x' })"),
    "an object": ("object-src", "add('object', { data: `${URL}/x.swf` })"),
    "an embed": ("object-src", "add('embed', { src: `${URL}/x.swf` })"),
    "a sound": ("media-src", "add('audio', { src: `${URL}/x.ogg` })"),
    "a film as data": ("media-src", "add('video', { src: 'data:video/mp4,x' })"),
    "a worker": ("worker-src", "try { new w.Worker('data:text/javascript,0').onerror = () => 0 } catch {}"),
    "a base": ("base-uri", "add('base', { href: URL }); if (w.document.baseURI.includes('x.example')) w.ran = 1"),
    "a form": ("form-action", "html(`<form action='${URL}'><button>x</button></form>`).firstChild.click()"),
    "a form in a new window": ("form-action", "html(`<form target=_blank action='${URL}'></form>`).submit()"),
}
WATCH = """
  globalThis.violations = [];
  addEventListener("securitypolicyviolation", (event) => violations.push(event.effectiveDirective), true);
"""
PLANT = """(async () => {
  const w = WINDOW, body = w.document.body, RUN = "globalThis.ran = 1", URL = "https://x.example";
  const add = (tag, properties) => body.append(Object.assign(w.document.createElement(tag), properties));
  const html = (text) => (body.insertAdjacentHTML("beforeend", text), body.lastElementChild);
  const svgScript = (textContent) =>
    Object.assign(w.document.createElementNS("http://www.w3.org/2000/svg", "script"), { textContent });
  const before = w.violations.length;
  CODE;
  for (let tries = 0; tries < 300 && w.violations.length === before; tries++) await new Promise((done) => setTimeout(done, 10));
  await new Promise((done) => setTimeout(done, 50));
  return [w.violations.slice(before), w.ran ?? null];
})()"""
FRAME = "document.querySelector('iframe').contentWindow"


COLOUR = "getComputedStyle(document.querySelector('.seq > [style*=\\'--a\\']'))"
PLAIN = {"nonenonergba(0, 0, 0, 0)"}


def watched(opened):
    """The page, with the requests that failed, and why: Playwright tells of those too that the policy refused."""
    opened.refused = {}
    opened.page.context.on("requestfailed", lambda request: opened.refused.update({request.url: request.failure}))
    return opened


def only_refusals(opened):
    """The page complained of nothing but what the policy refused, and no request went out; then that is forgotten."""
    opened.page.wait_for_timeout(20)  # Playwright hears of it a little later
    for fault in opened.faults:
        kind, _, what = fault.partition(": ")
        assert opened.refused.get(what) == "csp" if kind == "request" else "Content Security Policy" in what, fault
    opened.faults.clear()


def planted_everywhere(opened, window):
    for name, (directive, code) in PLANTED.items():
        violations, ran = opened.js(PLANT.replace("WINDOW", window).replace("CODE", f"{{ {code} }}"))
        assert directive in violations, (name, violations)
        assert ran is None, name
        only_refusals(opened)


def test_the_policy_is_in_force_on_both_pages(show):
    for document in (make_features(3, dead=(), **TINY).get_html(), make_prompt(4, 6, **TINY).get_html()):
        opened = watched(show(document, init=WATCH))
        assert opened.js("violations") == []  # our own styles, scripts and colours are allowed
        assert opened.js(f"{COLOUR}.backgroundImage + {COLOUR}.boxShadow + {COLOUR}.backgroundColor") not in PLAIN
        planted_everywhere(opened, "globalThis")


def test_a_page_that_was_attacked_still_works(show):
    opened = watched(show(make_features(3, dead=(), **TINY).get_html(), init=WATCH))
    planted_everywhere(opened, "globalThis")
    opened.js("document.querySelector('.next').click()")  # Playwright's own click waits for what was refused to load
    expect_feature(opened.page, 1)
    opened.js("document.querySelector('.seq > .b').dispatchEvent(new PointerEvent('pointerover', { bubbles: true }))")
    expect(opened.page.locator(".hovertext")).to_be_visible()


@pytest.mark.parametrize("kind", ["features", "prompt"])
def test_the_policy_is_in_force_in_a_notebook(show, kind):
    data = make_features(3, dead=(), **TINY) if kind == "features" else make_prompt(4, 6, **TINY)
    opened = watched(show(f"<!doctype html><title>Notebook</title>{data._repr_html_()}", init=WATCH))
    frame = opened.page.frame_locator("iframe")
    if kind == "features":
        frame.get_by_role("grid", name="Features").get_by_role("link", name="0", exact=True).click()
    expect(frame.locator("article").first).to_be_visible()
    assert opened.js(f"{FRAME}.violations") == []
    planted_everywhere(opened, FRAME)
    assert opened.js("globalThis.ran ?? null") is None
    if kind == "features":
        frame.locator(".next").click()
        expect_feature(frame, 1)


def test_without_the_policy_the_same_would_run(show):
    """What is planted above does harm where nothing stops it: the test can fail."""
    document = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", make_features(2, dead=(), **TINY).get_html()
    )
    opened = show(document, init=WATCH)
    for name in ("an inline script", "an SVG script", "a handler", "a handler that is clicked", "eval", "a base"):
        opened.js("globalThis.ran = undefined")
        code = (
            PLANT.replace("WINDOW", "globalThis")
            .replace("CODE", f"{{ {PLANTED[name][1]} }}")
            .replace("tries < 300", "tries < 10")
        )
        violations, ran = opened.js(code)
        assert (violations, ran) == ([], 1), name
