"""The report in a real browser: Debian's Chromium, headless."""

import base64
import io
import itertools
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from wagle_trainer.reporting import write_report

pytestmark = pytest.mark.browser
WIDTHS = (390, 1280)  # a telephone, a desk
SMALLEST = 12.5  # pixels of text; half a pixel below the usual 13


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if not all(found.values()):
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(found["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory, make_result, mask, history, attacks):
    """A report with all its sections, and with texts that are hard to lay out."""
    long = "Donaudampfschifffahrtsgesellschaft" * 4
    results = {
        "before": make_result(1),
        "wagle 0.05": [make_result(10 + seed, 0.8, 0.85) for seed in range(3)],
        f"random 0.05, {long}": [make_result(20 + seed, 0.8, 0.5) for seed in range(3)],
        "no mask": [make_result(30 + seed, 0.9, 0.6) for seed in range(3)],
        "retrained": make_result(2, 0.85),
    }
    for label, runs in results.items():
        for run in runs if isinstance(runs, list) else [runs]:
            run["forget_quality"] = 3.1e-11 if label == "before" else 0.00051  # the widest numbers there are
    results["wagle 0.05"][0]["per_example"]["forget"]["generation"] = [f"{long} <b>bold</b>"] * 12
    return write_report(
        results,
        tmp_path_factory.mktemp("report"),
        mask=mask,
        history=history,
        attacks=attacks,
        config={"learning_rate": 1e-3, "path": f"/{long}" * 3},
        verdict={
            "forgotten": True,
            "sentences": ["Forgotten: 19 of 20 answers are gone.", f"The patch is out/{long}."],
            "patch": {
                "path": f"out/{long}",
                "bytes": 4321,
                "weights": 1345,
                "density": 1e-3,
                "apply": f"apply {long * 2}",
                "revoke": "model.unload()",
            },
            "versions": {"torch": "2.13.0"},
            "settings": {"learning_rate": 1e-3},
        },
    )


@pytest.fixture(params=WIDTHS)
def width(request, browser, report):
    """The page is open at this width."""
    metrics = {"width": request.param, "height": 844, "deviceScaleFactor": 1, "mobile": request.param < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(report.as_uri())
    return request.param


def test_no_messages_on_the_console(browser, width):
    assert browser.get_log("browser") == []


def test_all_images_are_shown(browser, width):
    images = browser.execute_script(
        "return [...document.images].map(i => [i.naturalWidth, i.complete, i.getBoundingClientRect().width, i.alt])"
    )
    assert len(images) == 6
    for natural, complete, shown, alt in images:
        assert natural > 0
        assert complete
        assert min(300, width - 60) <= shown <= width
        assert alt


def test_nothing_is_wider_than_the_page(browser, width):
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # What is wider than the screen must lie in something that scrolls.
    outside = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.scroll')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_text_is_large_enough(browser, width):
    sizes = browser.execute_script(
        "const found = []; const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);"
        "while (walk.nextNode()) { const text = walk.currentNode; if (text.data.trim()) {"
        " found.push([parseFloat(getComputedStyle(text.parentElement).fontSize), text.data.trim().slice(0, 40)]) } }"
        "return found"
    )
    assert len(sizes) > 100
    assert [text for size, text in sizes if size < SMALLEST] == []


def test_the_first_columns_of_the_table_are_in_view(browser, width):
    right, edge = browser.execute_script(
        "const table = document.querySelector('table');"
        "return [[...table.rows[1].cells].map(c => c.getBoundingClientRect().right),"
        " table.closest('.scroll').getBoundingClientRect().right]"
    )
    assert len(right) == 9
    assert sum(position <= edge for position in right) >= (3 if width < 500 else 9)


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_light_and_dark(browser, width, scheme, dark):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    picture = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    if folder := os.environ.get("WAGLE_SCREENSHOTS"):  # to be looked at
        metrics = {"width": width, "height": 7000, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        whole = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
        (Path(folder) / f"report-{width}-{scheme}.png").write_bytes(base64.b64decode(whole))
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("L")
    ground = max(image.getcolors(256))[1]  # the most frequent grey
    assert ground < 60 if dark else ground > 200
    extremes = image.getextrema()
    assert extremes[1] - extremes[0] > 150, "text stands out"


def test_it_can_be_printed(browser, width):
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 50_000, "with its figures"


CONTRAST = """
const channel = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 };
const parse = c => (c.match(/[0-9.]+/g) || []).map(Number);
const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c } return [255, 255, 255] };
const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) { const text = walk.currentNode, e = text.parentElement;
  if (!text.data.trim()) continue;
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) found.push([ratio, text.data.trim().slice(0, 40)]) }
return found"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(browser, width, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    assert browser.execute_script(CONTRAST) == []


def test_tables_have_headers_and_sections_names(browser, width):
    without = browser.execute_script(
        "return [...document.querySelectorAll('table')].filter(t => !t.querySelector('th[scope=col]')"
        " || [...t.tBodies[0].rows].some(r => !r.querySelector('th[scope=row]'))).map(t => t.outerHTML.slice(0, 99))"
    )
    assert without == []
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('section')].filter(s =>"
        " !document.getElementById(s.getAttribute('aria-labelledby'))).length"
    )
    assert unnamed == 0
    levels = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
