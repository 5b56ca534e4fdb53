"""How the pages look in a real browser, at two widths and in the light and the dark."""

import importlib.resources
import io

import numpy as np
import pytest
from PIL import Image
from test_page import SEVEN, browser, draw, visit  # noqa: F401  (fixtures)

from conftest import ROOT, missing, weekly
from stages.show import page

WIDE, NARROW = 1400, 390
LEAST_CONTRAST = 4.5  # for text, by WCAG 2.2

# Each text that is seen, with its colour and the colours behind it, from the front to the back
TEXTS = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const known = {}, rgba = (color) => {
        if (color in known) return known[color];
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return known[color] = [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
        if (!text || !element.checkVisibility() || element.closest("script, noscript")) continue;
        const color = getComputedStyle(element)[element.closest("svg") ? "fill" : "color"];
        const behind = [];
        for (let at = element; at; at = at.parentElement)
            behind.push(rgba(getComputedStyle(at).backgroundColor));
        found.push({ text, color: rgba(color), behind });
    }
    return found;
}"""


def luminance(color: np.ndarray) -> float:
    """Of sRGB from 0 to 255, as WCAG defines it."""
    share = color / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(color: list[int], behind: list[list[int]]) -> float:
    """Of a text with the colours behind it, laid upon each other."""
    ground = np.zeros(3)
    for *layer, alpha in reversed(behind):
        ground += (np.array(layer) - ground) * alpha / 255
    low, high = sorted([luminance(np.array(color[:3])), luminance(ground)])
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    white, black, grey = [[255] * 4], [[0, 0, 0, 255]], [[0, 0, 0, 255 // 2], [255] * 4]
    assert contrast([0, 0, 0, 255], white) == contrast([255] * 4, black) == pytest.approx(21)
    assert contrast([118, 118, 118, 255], white) == pytest.approx(4.54, abs=0.01)
    assert contrast([255] * 4, grey) == pytest.approx(3.95, abs=0.1)  # half black on white


@pytest.fixture(params=[*page.PAGES])
def address(request):
    return (ROOT / page.PAGES[request.param]).as_uri()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"),
    [(WIDE, "light"), (NARROW, "dark"), *weekly((WIDE, "dark"), (NARROW, "light"))],
)
def test_no_page_scrolls_sideways_and_every_text_is_legible(visit, address, width, scheme):  # noqa: F811
    opened = visit(address, width, scheme)
    if address.endswith("report.html"):
        draw(opened, SEVEN)
        opened.locator(".matrix button").first.click()
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    texts = opened.evaluate(TEXTS)
    faint = [text for text in texts if contrast(text["color"], text["behind"]) < LEAST_CONTRAST]
    assert faint == [] and len(texts) > 100


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(visit, address, scheme):  # noqa: F811
    """All rules of axe-core: names and roles, headings, languages, keyboards, contrast."""
    try:
        rules = importlib.resources.files("axe_playwright_python") / "axe.min.js"
    except ImportError:
        missing("axe is not installed: pip install -c constraints.txt -e '.[browser]'")
    opened = visit(address, WIDE, scheme)
    if address.endswith("report.html"):
        draw(opened, SEVEN)
        opened.locator(".matrix button").first.click()
    # It reads no colour off a gradient, such as the shadow at the edge of a wide table
    opened.add_style_tag(content=".wide, .sections { background: var(--page) !important; }")
    opened.evaluate(rules.read_text(encoding="utf-8"))
    found = opened.evaluate("axe.run()")
    faults = {
        rule["id"]: [node["target"] for node in rule["nodes"]] for rule in found["violations"]
    }
    assert faults == {} and len(found["passes"]) > 20


@pytest.mark.slow
def test_nothing_is_white_in_the_dark(visit, address):  # noqa: F811
    """No square of 32 pixels, be it of the page or of an image. In the light most are."""
    white = {}
    for scheme in ("light", "dark"):
        shown = visit(address, WIDE, scheme).screenshot(full_page=True)
        pixels = np.asarray(Image.open(io.BytesIO(shown)).convert("L"), int)
        height, width = (32 * (length // 32) for length in pixels.shape)
        squares = pixels[:height, :width].reshape(height // 32, 32, width // 32, 32)
        white[scheme] = (squares.mean((1, 3)) > 200).mean()
    assert white["dark"] == 0 < 0.5 < white["light"]


@pytest.mark.slow
def test_the_links_lead_to_the_sections_and_to_the_other_pages(visit, address):  # noqa: F811
    opened = visit(address)
    for link in opened.locator("nav a").all():
        target = link.get_attribute("href")
        if target.startswith("#"):
            assert opened.locator(f"h2{target}").inner_text() == link.inner_text()
    names = opened.locator("nav.pages > *").all_inner_texts()
    assert names == [*page.PAGES]
    assert opened.locator("nav.pages a").count() == len(names) - 1
    for link in opened.locator("nav.pages a").all():
        assert link.evaluate("link => link.href") in {
            (ROOT / path).as_uri() for path in page.PAGES.values()
        }
