"""The page in a real browser, headless Chromium: typing, scrolling, looking, keys, a phone, the dark."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from use_pictures import encoded, model_folder, picture

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt install chromium")


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """The address of a page with a DiffCLIP's and a CLIP's index of 70 pictures."""
    from diffclip.search import update
    from diffclip.use.encoder import open_encoder

    place = tmp_path_factory.mktemp("served")
    (place / "album").mkdir()
    for number in range(70):
        (place / "album" / f"{number} <b>&amp;.png").write_bytes(encoded(picture(number, (160, 120))))
    for name, source in (("diff", model), ("clip", model_folder(place / "models" / "clip", "clip"))):
        encoder = open_encoder(source)
        with update.open_index(str(place / name), encoder, [str(place / "album")], []) as index:
            update.update(index, encoder)
    process = subprocess.Popen(
        [sys.executable, "-m", "diffclip", "serve", str(place / "diff"), str(place / "clip"), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(place / "cache")},
    )
    yield process.stdout.readline().split()[0]
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


def opened(browser, served, **options):
    """A page, and what its console complains of."""
    page = browser.new_page(**options)
    page.set_default_timeout(180_000)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith((served, "data:")) else complaints.append(request.url)
    )
    page.goto(served)
    return page, complaints


def until(page, expression):
    """Wait for an expression to be true. Playwright's own waiting evaluates text in the page, which its policy bars."""
    end = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.05)


def shot(page, name):
    """A screenshot for a person to look at, where $DIFFCLIP_SCREENSHOTS names a folder."""
    if folder := os.environ.get("DIFFCLIP_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_from_a_query_to_where_the_models_look(browser, served, tmp_path):
    page, complaints = opened(browser, served, viewport={"width": 1200, "height": 800})
    page.fill("#text", "a red star")
    page.press("#text", "Enter")
    page.wait_for_selector("#grid li:nth-child(30)")
    assert page.locator("#grid img").first.get_attribute("alt").startswith("picture album/")
    assert page.locator("#grid b").count() == 0  # names are text
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector("#grid li:nth-child(70)")
    assert page.inner_text("#end") == "that is all"
    page.evaluate("scrollTo(0, 0)")
    shot(page, "light")
    before = page.locator("#grid span").all_inner_texts()
    page.fill("#text", "a blue arrow")
    page.click("#less")
    until(page, f"document.querySelector('#grid span').textContent !== {json.dumps(before[0])}")
    slider = page.locator("#parts li:nth-child(2) input")
    assert slider.get_attribute("aria-label") == "weight of a blue arrow"
    slider.fill("-1")
    until(page, "document.querySelector('#parts li:nth-child(2) output').textContent === '-1.0'")
    (tmp_path / "mine.png").write_bytes(encoded(picture(3, (160, 120))))
    page.set_input_files("#file", tmp_path / "mine.png")
    page.wait_for_selector("#parts li:nth-child(3) img")
    page.locator("#parts li:nth-child(2) button").click()
    page.locator("#parts li:nth-child(1) button").click()
    until(page, "/^1.000|^0.99/.test(document.querySelector('#grid span')?.textContent)")
    assert "3 <b>&amp;.png" in page.inner_text("#grid li:first-child span")
    page.locator("body").press("ArrowRight")
    page.keyboard.press("Enter")
    page.fill("#query", "a red star")
    page.press("#query", "Enter")
    page.wait_for_selector("#views .model:nth-child(3) > img")
    alts = [image.get_attribute("alt") for image in page.locator("#views .model > img").all()]
    assert ["diffclip" in alts[0], "clip looks for “a red star”" in alts[1]] == [True, True]
    assert page.locator(".layers").first.locator("b").all_inner_texts() == ["layer", "A1", "A2", "A1 − λA2", "λ"]
    page.fill("#labels", "a cat, a dog\na star")
    page.wait_for_selector("#scores tr:nth-child(4)")
    shot(page, "looks")
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"
    assert complaints == []
    page.close()


def test_a_phone_in_the_dark(browser, served):
    page, complaints = opened(browser, served, viewport={"width": 380, "height": 760}, color_scheme="dark")
    page.fill("#text", "a red star")
    page.press("#text", "Enter")
    page.wait_for_selector("#grid li:nth-child(30)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, light[4:-1].split(","))) < 150
    shot(page, "phone")
    page.locator("#grid button").first.click()
    page.wait_for_selector("#views .model:nth-child(3) > img")
    assert page.evaluate("document.getElementById('large').scrollWidth <= innerWidth")
    shot(page, "phone_looks")
    assert complaints == []
    page.close()


def test_another_site_can_neither_read_nor_frame_it(browser, served):
    page = browser.new_page()
    port = served.rsplit(":", 1)[1].strip("/")
    page.route("http://evil.example/", lambda route: route.fulfill(content_type="text/html", body="<p>evil</p>"))
    page.goto("http://evil.example/")
    asked = """async url => { try { return (await fetch(url)).status } catch { return "refused" } }"""
    assert page.evaluate(asked, f"http://127.0.0.1:{port}/page.js") == "refused"
    framed = """url => new Promise(done => { const frame = document.createElement("iframe"); frame.src = url;
        frame.onload = () => { try { done(frame.contentDocument ? "readable" : "kept out") } catch { done("error") } };
        document.body.append(frame) })"""
    assert page.evaluate(framed, f"http://127.0.0.1:{port}/") == "kept out"
    page.close()
