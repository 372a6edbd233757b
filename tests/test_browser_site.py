"""Sites in a real Chromium, from disk and from a server of static files: the page's behaviour, what is missing, how fast it is.

Every page that a test opens also fails it by a console message, an error, a dialog, or a request for anything else than the
site's own files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import statistics
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import browser
import pytest
from rendering_fixtures import make_features
from test_browser import expect_feature
from test_browser_hostile import WATCH, planted_everywhere, watched
from test_browser_losses import fetch as fetch_losses
from test_hostile_tokens import HOSTILE, data_with_text
from xss_vectors import VECTORS

from sae_vis import _page, _site
from sae_vis._features_page import features_body
from sae_vis._furniture import vocab_of

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser-site")]  # one browser for all

if browser.sync_playwright:
    from playwright.sync_api import expect

FEW = {"first_group_size": 4, "n_groups": 2, "other_groups_size": 2}
WHOLE = 16_384
SCHEMES = pytest.mark.parametrize("scheme", ["file", "http"])


class OpenedSite(browser.Opened):
    """A site's page, which may ask for the site's own files."""

    def __init__(self, context, folder: Path, address: str) -> None:
        self.asked: list[str] = []
        super().__init__(context, folder / "index.html")
        self.address, self.folder = address + "/index.html", address

    def _asked(self, request) -> None:
        name = request.url.split("#")[0].removeprefix(self.folder + "/")
        self.asked.append(name)
        if "://" in name:
            self.faults.append(f"request: {name[:200]}")


class Quiet(SimpleHTTPRequestHandler):
    """A server of static files that says nothing, and gives out features only when ``held`` is set."""

    held: threading.Event | None = None

    def do_GET(self) -> None:
        if self.held and "/features/" in self.path:
            self.held.wait(20)
        super().do_GET()

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path):
    """The address of a folder on this machine's own server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def visit(chromium):
    """A function that opens sites; at the end no page may have complained but as it was told to expect."""
    with contextlib.ExitStack() as stack:
        opened = []

        def visit(
            folder: Path,
            fragment: str = browser.FIRST,
            scheme: str = "file",
            init: str = "",
            complains: bool = False,
            **options,
        ):
            address = stack.enter_context(served(folder)) if scheme == "http" else folder.as_uri()
            context = chromium.new_context(viewport={"width": 1440, "height": 900}, offline=scheme == "file", **options)
            stack.callback(context.close)
            if init:
                context.add_init_script(init)
            page = OpenedSite(context, folder, address)
            opened.append((page, complains))
            return page.go(fragment)

        yield visit
    faults = [fault for page, complains in opened if not complains for fault in page.faults]
    assert not faults, "\n".join(faults)
    assert all(page.faults for page, complains in opened if complains)


@pytest.fixture(scope="module")
def features():
    features = make_features(12, dead=(3,), **FEW)
    features.feature_data_dict[5].label = "import statements"
    features[1].feature_tables.correlated_features.indices[:] = [8, 900, 2]
    return features


@pytest.fixture(scope="module")
def site(features, tmp_path_factory) -> Path:
    """Three features a shard."""
    folder = tmp_path_factory.mktemp("sites") / "a site"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_site, "SHARD_BYTES", 17_000)
        features.save_site(folder)
    assert len(list((folder / "features").iterdir())) >= 3
    return folder


@pytest.fixture
def folder(site, tmp_path) -> Path:
    """A copy of the site, to be damaged."""
    return Path(shutil.copytree(site, tmp_path / "copy"))


def shard_of(folder: Path, feature: int) -> Path:
    return next(path for path in (folder / "features").iterdir() if f'"{feature}":"' in path.read_text("ascii"))


# --- the page behaves as the single one --------------------------------------------------------------------------------


@SCHEMES
def test_every_feature_is_the_one_of_the_single_page(scheme, visit, show, site, features):
    opened, single = visit(site, scheme=scheme), show(features.get_html())
    expect_feature(opened.page, 0)
    for feature in features:
        for page in (opened, single):
            page.js(f"location.hash = '#feature={feature}'")
            expect_feature(page.page, feature)
        assert opened.js("document.querySelector('.shown-feature').innerHTML") == single.js(
            "document.querySelector('.shown-feature').innerHTML"
        )
    assert opened.js("document.title") == single.js("document.title")
    assert opened.js("document.querySelectorAll('head script[src]').length") == 0  # what brought the features is gone


@SCHEMES
def test_buttons_keys_links_and_back(scheme, visit, site):
    opened = visit(site, scheme=scheme)
    page = opened.page
    page.keyboard.press("ArrowRight")
    expect_feature(page, 1)
    page.locator("a[data-go='8']").click()
    expect_feature(page, 8)
    assert opened.hash == "#feature=8"
    page.get_by_role("button", name="Next feature").click()
    expect_feature(page, 9)
    page.go_back()
    expect_feature(page, 8)
    page.locator(".choose").fill("11")
    page.keyboard.press("Enter")
    expect_feature(page, 11)
    expect(page.locator(".next")).to_be_disabled()
    expect(page.locator(".message")).to_be_hidden()


@SCHEMES
def test_a_link_opens_its_feature_at_once(scheme, visit, site):
    opened = visit(site, "#feature=10", scheme=scheme)
    expect_feature(opened.page, 10)
    opened.reload()
    expect_feature(opened.page, 10)
    opened.go("#feature=0")
    expect_feature(opened.page, 0)


def test_features_are_chosen_by_label(visit, site):
    opened = visit(site)
    page = opened.page
    wait_for(opened, "Boolean(saeVis.labels)")
    page.locator(".choose").fill("import")
    assert opened.js("[...document.querySelectorAll('.choices option')].map(o => o.label)") == ["5 import statements"]
    page.keyboard.press("Enter")
    expect_feature(page, 5)
    expect(page.locator("article h2")).to_contain_text("import statements")


def test_hover_text_names_tokens(visit, show, site, features):
    texts = []
    for opened in (visit(site, "#feature=7"), show(features.get_html(), "#feature=7")):
        expect_feature(opened.page, 7)
        wait_for(opened, "saeVis.data('vocab') !== null")
        opened.page.locator(".seq .b").first.hover()
        expect(opened.page.locator(".hovertext")).to_be_visible()
        texts.append(opened.page.locator(".hovertext").inner_text())
    assert texts[0] == texts[1]
    assert "id " in texts[0]


def test_hovering_before_the_tokens_are_loaded_is_no_harm(visit, site):
    """The file of the tokens never comes, since nothing is loaded after the first feature."""
    opened = visit(site, init="globalThis.requestAnimationFrame = () => 0")
    opened.page.locator(".seq .b").first.hover()
    expect(opened.page.locator(".hovertext")).to_contain_text("id ")
    assert not [name for name in opened.asked if "vocab" in name]
    opened.js(f"document.head.append(Object.assign(document.createElement('script'), {{src: '{vocab_file(site)}'}}))")
    opened.page.mouse.move(0, 0)
    opened.page.locator(".seq .b").nth(1).hover()
    expect(opened.page.locator(".hovertext [data-slot=token] samp")).to_have_count(0)


def vocab_file(site: Path) -> str:
    return f"assets/{next((site / 'assets').glob('vocab-*')).name}"


def wait_for(opened, expression: str) -> None:
    """Wait until something holds in the page; Playwright's own waiting needs eval, which the policy forbids."""
    end = time.monotonic() + browser.PATIENCE / 1000
    while not opened.js(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.02)


def test_the_choice_between_two_effects_holds_for_every_feature(visit, tmp_path):
    fetch_losses(("direct", "full")).save_site(tmp_path / "site")
    opened = visit(tmp_path / "site")
    opened.page.get_by_role("radio", name="full ablation").click()
    opened.page.keyboard.press("Escape")
    opened.js("location.hash = '#feature=2'")
    expect_feature(opened.page, 2)
    expect(opened.page.get_by_role("radio", name="full ablation")).to_have_attribute("aria-checked", "true")


# --- what is loaded when -------------------------------------------------------------------------------------------------


def test_only_what_is_wanted_is_loaded(visit, site, features):
    opened = visit(site)
    wait_for(opened, "Boolean(saeVis.labels)")
    own = {f"features/{shard_of(site, i).name}" for i in (0, 1)}
    assert set(opened.asked) == {
        "index.html",
        vocab_file(site),
        *own,
        f"assets/{next((site / 'assets').glob('labels-*')).name}",
    }
    opened.js("location.hash = '#feature=11'")
    expect_feature(opened.page, 11)
    own |= {f"features/{shard_of(site, i).name}" for i in (10, 11)}
    assert {name for name in opened.asked if name.startswith("features")} == own


def test_a_shard_is_loaded_once_and_before_it_is_needed(visit, site):
    opened = visit(site)
    for feature in range(1, 12):
        opened.page.keyboard.press("ArrowRight")
        expect_feature(opened.page, feature)
        if feature < 11:
            wanted = f"features/{shard_of(site, feature + 1).name}"
            end = time.monotonic() + 5
            while wanted not in opened.asked and time.monotonic() < end:
                opened.page.wait_for_timeout(10)
            assert wanted in opened.asked
    names = [name for name in opened.asked if name.startswith("features")]
    assert len(names) == len(set(names)) == len(list((site / "features").iterdir()))


def test_few_shards_are_kept(visit, features, tmp_path, monkeypatch):
    monkeypatch.setattr(_site, "SHARD_BYTES", 1)
    many = dataclasses.replace(
        features, feature_data_dict={i: dataclasses.replace(features[i % 12], feature_idx=i) for i in range(20)}
    )
    many.save_site(tmp_path / "site")
    opened = visit(tmp_path / "site")
    for feature in (*range(1, 20), 0, 5):
        opened.js(f"location.hash = '#feature={feature}'")
        expect_feature(opened.page, feature)
    names = [name for name in opened.asked if name.startswith("features")]
    assert names.count(f"features/{shard_of(tmp_path / 'site', 5).name}") == 2


def test_the_one_that_was_asked_for_last_is_shown(visit, site):
    opened = visit(site)
    opened.js("for (const i of [4, 9, 2, 11, 0, 7]) { location.hash = `#feature=${i}`; }")
    expect_feature(opened.page, 7)
    opened.page.wait_for_timeout(300)
    expect_feature(opened.page, 7)


def test_a_slow_host_is_told_of_as_long_as_the_reader_waits(visit, site, monkeypatch):
    held = threading.Event()
    monkeypatch.setattr(Quiet, "held", held)
    opened = visit(site, scheme="http")
    message = opened.page.locator(".message")
    opened.js("location.hash = '#feature=10'")
    expect(message).to_have_text(f"Loading features/{shard_of(site, 10).name} …")
    opened.js("location.hash = '#feature=0'")
    expect(message).to_be_hidden()
    opened.js("location.hash = '#feature=7'")
    opened.js("location.hash = '#feature=0'")
    opened.page.wait_for_timeout(500)
    expect(message).to_be_hidden()
    opened.js("location.hash = '#feature=11'")
    expect(message).to_have_text(f"Loading features/{shard_of(site, 11).name} …")
    held.set()
    expect_feature(opened.page, 11)
    expect(message).to_be_hidden()


def test_an_unknown_feature_takes_the_place_of_one_that_is_loading(visit, site, monkeypatch):
    held = threading.Event()
    monkeypatch.setattr(Quiet, "held", held)
    opened = visit(site, scheme="http")
    opened.js("location.hash = '#feature=10'")
    opened.js("location.hash = '#feature=99999'")
    expect(opened.page.locator(".message")).to_contain_text("There is no feature “99999”")
    held.set()
    opened.page.wait_for_timeout(300)
    expect(opened.page.locator(".message")).to_contain_text("There is no feature “99999”")
    expect_feature(opened.page, 0)


def test_nothing_is_said_of_an_overview_that_is_not_there(visit, folder):
    for file in (folder / "assets").glob("overview*"):
        file.unlink()
    opened = visit(folder, "#overview", complains=True)
    expect(opened.page.locator(".message")).to_contain_text("is missing or cannot be read")
    assert opened.js("saeVis.overview.n") == 0
    expect(opened.page.locator(".overview-none")).to_be_hidden()
    expect(opened.page.locator(".overview-count")).to_have_text("")


# --- what can go wrong -----------------------------------------------------------------------------------------------------


@SCHEMES
def test_a_shard_that_is_missing_is_told_by_its_name(scheme, visit, folder):
    lost = shard_of(folder, 10)
    content = lost.read_bytes()
    lost.unlink()
    opened = visit(folder, scheme=scheme, complains=True)
    opened.js("location.hash = '#feature=10'")
    message = opened.page.locator(".message")
    expect(message).to_contain_text(f"features/{lost.name} of this site is missing")
    expect(opened.page.locator("article.feature")).to_have_attribute("data-feature", "0")
    opened.js("location.hash = '#feature=1'")
    expect_feature(opened.page, 1)
    expect(message).to_be_hidden()
    lost.write_bytes(content)
    opened.js("location.hash = '#feature=10'")
    expect_feature(opened.page, 10)
    expect(message).to_be_hidden()


@pytest.mark.parametrize(
    ("content", "complains"),
    [
        ("", False),
        ("saeVis.receive('00000', {", True),
        ('saeVis.receive("00000",{"0":"x"});', False),
        ("throw 1", True),
    ],
)
def test_a_shard_that_is_damaged_is_told(content, complains, visit, folder):
    first = shard_of(folder, 1)
    first.write_text(content, encoding="ascii")
    opened = visit(folder, "#feature=1", complains=complains)
    expect(opened.page.locator(".message")).to_contain_text(first.name)
    expect(opened.page.locator("article.feature")).to_have_attribute("data-feature", "0")


def test_a_fragment_that_is_damaged_is_told(visit, folder):
    first = shard_of(folder, 1)
    first.write_text('saeVis.receive("00000",{"1":"eJw!"});', encoding="ascii")
    opened = visit(folder, "#feature=1")
    expect(opened.page.locator(".message")).to_contain_text("Feature 1 cannot be unpacked")


def test_tokens_that_are_missing_are_told(visit, folder):
    (folder / vocab_file(folder)).unlink()
    opened = visit(folder, complains=True)
    expect(opened.page.locator(".message")).to_contain_text("assets/vocab-")


@pytest.mark.parametrize("asked", ["12", "-1", "1.5", "x", "99999999999", "%3Cb%3E", "__proto__", "constructor"])
def test_a_feature_that_is_not_there_is_told(asked, visit, site):
    opened = visit(site, f"#feature={asked}")
    expect(opened.page.locator(".message")).to_contain_text("There is no feature")
    expect(opened.page.locator(".message")).to_contain_text("holds 12, from 0 to 11")
    expect_feature(opened.page, 0)


def test_a_browser_that_cannot_inflate_is_told(visit, site):
    opened = visit(site, init="delete globalThis.DecompressionStream")
    expect(opened.page.locator(".message")).to_contain_text("cannot unpack the other features")
    opened.page.locator(".next").click()
    expect(opened.page.locator(".message")).to_be_visible()
    expect_feature_at_first(opened.page)
    opened.page.locator(".seq .b").first.hover()
    expect(opened.page.locator(".hovertext")).to_be_visible()


def expect_feature_at_first(page) -> None:
    expect(page.locator("article.feature")).to_have_attribute("data-feature", "0")


def test_without_scripts_the_first_feature_is_there(visit, site):
    opened = visit(site, java_script_enabled=False)
    expect_feature_at_first(opened.page)
    expect(opened.page.locator(".seq").first).to_be_visible()
    expect(opened.page.locator(".plot").first).to_be_visible()
    assert opened.asked == ["index.html"]


def test_no_features_is_a_page_too(visit, features, tmp_path):
    dataclasses.replace(features, feature_data_dict={}).save_site(tmp_path / "site")
    opened = visit(tmp_path / "site", "#feature=3")
    expect(opened.page.locator("main")).to_have_text("There are no features in this data.")


def test_one_feature_is_a_page_too(visit, features, tmp_path):
    dataclasses.replace(features, feature_data_dict={7: features[7]}).save_site(tmp_path / "site")
    opened = visit(tmp_path / "site")
    expect(opened.page.locator("article.feature")).to_have_attribute("data-feature", "7")
    wait_for(opened, "saeVis.data('vocab') !== null")


# --- hostile text ------------------------------------------------------------------------------------------------------------


def test_hostile_text_runs_nothing(visit, tmp_path):
    texts = [*HOSTILE.values(), *VECTORS]
    features, _ = data_with_text("x")
    vocab = {i: texts[place % len(texts)] for place, i in enumerate(features.vocab)}
    for place, feature in enumerate(features.feature_data_dict.values()):
        feature.label = "</script><script>alert(1)</script>\u2028\ud800" + texts[place]
    dataclasses.replace(features, vocab=vocab).save_site(tmp_path / "site")
    opened = visit(tmp_path / "site")
    wait_for(opened, "Boolean(saeVis.labels) && saeVis.data('vocab') !== null")
    opened.page.keyboard.press("ArrowRight")
    expect(opened.page.locator("article.feature")).to_have_attribute("data-feature", "1")
    for place in range(opened.page.locator(".seq > *").count()):
        opened.page.locator(".seq > *").nth(place).hover()
    opened.page.locator(".choose").fill("script")


def test_a_script_that_text_could_add_is_not_run(visit, folder):
    """Were the escaping broken, the policy would still stop the markup: only the page's own scripts may add one."""
    (folder / "evil.js").write_text("globalThis.evil = 1", encoding="ascii")
    page = folder / "index.html"
    document = page.read_text(encoding="utf-8")
    page.write_text(
        document.replace("<footer>", "<script src=evil.js></script><script>evil = 2</script><footer>"), encoding="utf-8"
    )
    opened = visit(folder, complains=True)
    assert opened.js("typeof evil") == "undefined"
    opened.page.keyboard.press("ArrowRight")
    expect_feature(opened.page, 1)


@SCHEMES
def test_the_policies_are_in_force(scheme, visit, site):
    """What is planted past the escaping is stopped as on the single page, and the page works on."""
    opened = watched(visit(site, scheme=scheme, init=WATCH))
    wait_for(opened, "Boolean(saeVis.labels)")
    assert opened.js("violations") == []
    planted_everywhere(opened, "globalThis")
    opened.js("document.querySelector('.next').click()")
    expect_feature(opened.page, 1)
    opened.js("location.hash = '#feature=11'")
    expect_feature(opened.page, 11)


def test_the_list_of_files_cannot_be_replaced(visit, folder):
    """Text that became markup could bring an element of the same name, or one with other files."""
    page = folder / "index.html"
    document = page.read_text(encoding="utf-8")
    other = '{"shards": [["https://x.example/x.js", 0]], "vocab": "https://x.example/x.js"}'
    planted = f'<p data-json="site" hidden>{other}</p><script type="application/json" data-json="site">{other}</script>'
    page.write_text(document.replace("<footer>", f"{planted}<footer>"), encoding="utf-8")
    opened = visit(folder)
    opened.js("location.hash = '#feature=11'")
    expect_feature(opened.page, 11)
    page.write_text(document.replace('["features/00000-', '["https://x.example/00000-'), encoding="utf-8")
    opened = visit(folder, "#feature=1")
    expect(opened.page.locator(".message")).to_contain_text("none of a site")


# --- speed -------------------------------------------------------------------------------------------------------------------

# Note when the feature that is wanted has been painted, in milliseconds since the navigation began: the task after the frame in
# which it is laid out first.
PAINTED = """
(() => {
  const wanted = /feature=(\\d+)/.exec(location.hash)?.[1];
  const look = () => {
    const sequence = document.querySelector(".shown-feature .feature .seq");
    const there = sequence && sequence.getBoundingClientRect().height > 0;
    if (!there || (wanted && !document.title.startsWith(`Feature ${wanted} `))) return requestAnimationFrame(look);
    requestAnimationFrame(() => setTimeout(() => { globalThis.paintedAt = performance.now(); }));
  };
  requestAnimationFrame(look);
})();
"""
# How long it takes from asking for a feature until it has been painted.
SHOWN = """
(async () => {
  const start = performance.now();
  ACTION;
  while (!document.title.startsWith("Feature WANTED ")) await new Promise((done) => setTimeout(done, 1));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
})()
"""


def time_to_show(opened, feature: int, action: str) -> float:
    """Milliseconds from an action to its feature painted."""
    took = opened.js(SHOWN.replace("ACTION", action).replace("WANTED", str(feature)))
    opened.page.wait_for_timeout(50)  # a reader looks at it; the next shard may be loaded meanwhile
    return took


def quickly(took: list[float]) -> float:
    """The lower quartile: what most take where nothing else runs. A busy machine is no fault of the page."""
    return statistics.quantiles(took, n=4)[0]


ROUNDS = 5  # of measuring on a busy machine, until one is quick enough


def first_paint(visit_once, times: int = 3) -> float:
    """Milliseconds from navigation to the feature painted, the best of some: a busy machine is no fault of the page."""
    found = []
    for _ in range(times):
        opened = visit_once()
        wait_for(opened, "globalThis.paintedAt !== undefined")
        found.append(opened.js("globalThis.paintedAt"))
    return min(found)


@pytest.fixture(scope="module")
def distinct():
    """Features of ordinary size, each drawn and packed."""
    features = make_features(40, dead=())
    page = features._context()
    return features, [_page.pack(features[i].get_html(page)) for i in features]


@pytest.fixture(scope="module")
def whole(distinct, tmp_path_factory):
    """A site of a whole dictionary: in size and number as it would be, with the same 40 features again and again."""
    features, packed = distinct
    folder = tmp_path_factory.mktemp("whole") / "site"
    page = features._context()
    texts = list(features.vocab.values())
    vocab = vocab_of(
        dataclasses.replace(page, printer=type(page.printer)({i: texts[i % len(texts)] for i in range(50_000)}, {})),
        range(50_000),
    )
    body = features_body(page, 0, features[0].get_html(page), WHOLE)
    drawn = (_site.Packed(i, f"label {i}", packed[i % len(packed)]) for i in range(WHOLE))
    _site.write(folder, "Feature 0", "a whole dictionary", body, vocab, drawn)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timed
@SCHEMES
def test_the_first_feature_of_16384_is_painted_within_a_second(scheme, visit, whole, record_property):
    took = first_paint(lambda: visit(whole, scheme=scheme, init=PAINTED))
    linked = first_paint(lambda: visit(whole, "#feature=9000", scheme=scheme, init=PAINTED))
    record_property("ms", (took, linked))
    print(f"{scheme}: first paint {took:.0f} ms, of a linked feature {linked:.0f} ms")
    assert took < 1000
    assert linked < 1000


@pytest.mark.slow
@pytest.mark.timed
@SCHEMES
def test_the_next_feature_of_16384_is_shown_within_100_milliseconds(scheme, visit, whole):
    for turn in range(ROUNDS):
        opened = visit(whole, scheme=scheme)
        wait_for(opened, "Boolean(saeVis.labels)")
        per_shard = next(i for i in range(1, WHOLE) if shard_number(whole, i) == 1)
        near = per_shard * (turn + 1) - 4
        opened.js(f"location.hash = '#feature={near}'")
        wait_for(opened, f"document.title.startsWith('Feature {near} ')")
        opened.page.wait_for_timeout(300)
        click = "document.querySelector('.next').click()"
        following = [
            time_to_show(opened, i, click) for i in range(near + 1, near + 10)
        ]  # the fourth is in the next shard
        jumps = (9000, 300, 16_383, 5000, 12_345)
        far = [time_to_show(opened, i, f"location.hash = '#feature={i}'") for i in jumps]
        print(f"{scheme}: next {[round(ms) for ms in following]} ms, in another shard {[round(ms) for ms in far]} ms")
        if quickly(following) < 100 and following[3] < 150 and quickly(far) < 150:
            return
    raise AssertionError


@functools.cache
def starts(folder: Path) -> list[int]:
    import page_reading

    return [first for _, first in page_reading.data((folder / "index.html").read_text("utf-8"), "site")["shards"]]


def shard_number(folder: Path, place: int) -> int:
    return sum(first <= place for first in starts(folder)) - 1


@pytest.mark.slow
@pytest.mark.timed
@SCHEMES
def test_a_single_page_of_1000_features_is_painted_within_a_second_and_a_half(scheme, visit, distinct, tmp_path):
    features, packed = distinct
    page = features._context()
    elements = [
        _page.data("vocab", vocab_of(page, features.vocab)),
        _page.data("index", {"ids": list(range(1000)), "labels": {}, "title": "T"}),
        _page.common(),
        *(_page.packed(i, packed[i % len(packed)]) for i in range(1, 1000)),
    ]
    document = _page.document("Feature 0", features_body(page, 0, features[0].get_html(page), 1000), elements)
    (tmp_path / "index.html").write_text(document, encoding="utf-8")
    took = first_paint(lambda: visit(tmp_path, scheme=scheme, init=PAINTED))
    linked = first_paint(lambda: visit(tmp_path, "#feature=900", scheme=scheme, init=PAINTED))
    opened = visit(tmp_path, scheme=scheme)
    following = [time_to_show(opened, i, "document.querySelector('.next').click()") for i in range(1, 8)]
    print(f"{scheme}: first paint {took:.0f} ms, linked {linked:.0f} ms, next {[round(ms) for ms in following]} ms")
    assert took < 1500
    assert linked < 1500
    assert quickly(following) < 300


# --- what else lies in files of its own ------------------------------------------------------------------------------------


@SCHEMES
def test_whole_rows_are_loaded_when_one_is_opened(visit, site, features, scheme):
    opened = visit(site, scheme=scheme)
    expect(opened.page.locator(".seq").first).to_be_visible()
    assert not [name for name in opened.asked if "rows" in name]
    sequence = features[0].sequences.groups[0].sequences[0]
    opened.page.locator(".seq").first.press("Enter")
    expect(opened.page.locator(".whole .t")).to_have_count(len(features.rows[sequence.row]))
    opened.page.locator(".seq").nth(1).press("Enter")
    expect(opened.page.locator(".whole .tokens")).to_have_count(2)
    assert len([name for name in opened.asked if "rows" in name]) == 1


def test_a_missing_file_of_rows_is_said_where_the_row_would_be(visit, folder):
    for file in (folder / "assets").glob("rows*"):
        file.unlink()
    opened = visit(folder, complains=True)
    opened.page.locator(".seq").first.press("Enter")
    expect(opened.page.locator(".whole")).to_contain_text("is missing or cannot be read")
    opened.page.keyboard.press("Escape")  # the hover text
    opened.page.keyboard.press("Escape")
    expect(opened.page.locator(".whole")).to_have_count(0)


def test_a_sites_labels_are_known_to_the_reader_and_can_be_changed(visit, site):
    listen = "globalThis.told = []; document.addEventListener('saevis:labels', event => told.push(event.detail.ids))"
    opened = visit(site, init=listen)
    opened.js("new Promise(done => { const look = () => (saeVis.labels ? done() : setTimeout(look, 10)); look(); })")
    assert opened.js("saeVis.labelOf(5)") == "import statements"
    assert opened.js("told") == [None, None]  # of the page, and of the file of labels
    opened.js("saeVis.sayOf(5, { label: 'mine' })")
    assert opened.js("[saeVis.labelOf(5), saeVis.allLabels()[5], saeVis.isEdited(5)]") == ["mine", "mine", True]
