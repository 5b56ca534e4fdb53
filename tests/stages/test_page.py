"""The pages, in a real browser: what they compute and show is what the pipeline computed."""

import base64
import csv
import io
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from photos import photos as drawn_photos
from PIL import Image
from scipy.ndimage import center_of_mass
from test_committed import weights_on_the_page

from conftest import ROOT, free_port, missing
from dvc_kit.files import sha256
from stages import answers, ink, photo
from stages.base import files
from stages.base.params import MODEL_NAMES, TITLES
from stages.mnist import idx
from stages.scoring import CalibrationBin
from stages.show import page
from study.page import PATH as STUDY

PAGES = {"report": ROOT / page.PATH, "study": ROOT / STUDY}
SEVEN = [(70, 60), (200, 60), (195, 75), (150, 160), (120, 240)]
TEN_DIGITS = [(x, y) for x in range(10, 270, 26) for y in (40, 240)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    import shutil

    if not (chromium := shutil.which("chromium")):
        missing("chromium is not installed: Debian has it")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install -c constraints.txt -e '.[browser]'")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture
def visit(browser):
    """Opens an address. Afterwards, no script has failed, and no request left the page."""
    wrong: list[str] = []

    def visit(address: str, width: int = 1400, scheme: str = "light") -> Any:
        size = {"width": width, "height": 900}
        opened = browser.new_page(viewport=size, color_scheme=scheme)
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("console", lambda said: wrong.extend([said.text] * (said.type == "error")))
        opened.on("request", lambda sent: wrong.extend(elsewhere(sent.url, address)))
        opened.goto(address)
        return opened

    yield visit
    assert wrong == []


def elsewhere(url: str, address: str) -> list[str]:
    own = address.startswith("http") and url.startswith(address.rsplit("/", 1)[0])
    return [] if own or url == address or url.startswith("data:") else [url]


@pytest.fixture
def report(visit):
    return visit(PAGES["report"].as_uri())


def draw(opened: Any, marks: list[tuple[int, int]]) -> None:
    opened.locator("#pad").scroll_into_view_if_needed()
    box = opened.locator("#pad").bounding_box()
    opened.mouse.move(box["x"] + marks[0][0], box["y"] + marks[0][1])
    opened.mouse.down()
    for x, y in marks[1:]:
        opened.mouse.move(box["x"] + x, box["y"] + y, steps=8)
    opened.mouse.up()


@pytest.fixture(scope="module")
def images(raw) -> np.ndarray:
    return idx.read(raw)["test"].images


# --- without a browser ---


def test_nothing_in_the_data_can_end_the_script():
    made = page.assemble("", "", {"text": "</script><script>alert(1)</script>"}, [])
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', made, re.S)
    assert json.loads(data) == {"text": "</script><script>alert(1)</script>"}


# --- with one ---


@pytest.mark.slow
def test_the_browser_computes_the_bits_of_the_pipeline(report, images):
    """The outputs for all raw test images, resized by the page, have the committed SHA-256."""
    script = """(text) => {
        const raw = bytes(text), found = {};
        for (const name of Object.keys(TRAINED)) found[name] = { logits: [], probabilities: [] };
        for (let at = 0; at < raw.length; at += 784) {
            const image = resize(raw.subarray(at, at + 784));
            for (const name of Object.keys(TRAINED)) {
                const { logits, probabilities } = answer(name, image);
                found[name].logits.push([...logits]);
                found[name].probabilities.push(probabilities);
            }
        }
        return found;
    }"""
    parts = [
        report.evaluate(script, base64.b64encode(part.tobytes()).decode())
        for part in np.split(images, 10)
    ]
    details = json.loads((ROOT / files.EVALUATION).read_text(encoding="utf-8"))
    committed = files.read_fingerprints(details["outputs"])
    for name in MODEL_NAMES:
        logits = np.concatenate([np.array(part[name]["logits"], np.float32) for part in parts])
        assert sha256(logits.tobytes()) == committed[name]
        found = np.concatenate([part[name]["probabilities"] for part in parts])
        powers = np.exp(logits.astype(float) - logits.max(1, keepdims=True))
        np.testing.assert_allclose(found, powers / powers.sum(1, keepdims=True), atol=1e-12)


@pytest.mark.slow
def test_a_drawing_is_answered_as_it_is_drawn_and_cleared(report):
    assert report.locator("#answers p").all_inner_texts() == ["Nothing is drawn yet."] * 2
    draw(report, SEVEN)
    heads = report.locator("#answers h3").all_inner_texts()
    assert heads == [f"{TITLES[name]}: 7" for name in MODEL_NAMES]
    report.locator("#clear").click()
    assert report.evaluate("drawn()") is None
    assert report.locator("#answers p").all_inner_texts() == ["Nothing is drawn yet."] * 2
    draw(report, TEN_DIGITS)  # any scribble gets ten shares that are one whole
    shares = [float(text[:-2]) for text in report.locator(".bar span:last-child").all_inner_texts()]
    for part in np.split(np.array(shares), 2):
        assert len(part) == 10 and part.sum() == pytest.approx(100, abs=0.5)
    for said in report.locator("#answers p").all_inner_texts():
        assert re.search(r"[\d.]+\s% sure\. Of [\d,]+ test images with an answer about", said)


@pytest.mark.slow
def test_a_drawing_is_sized_and_centred_like_an_image_of_mnist(report, images):
    draw(report, SEVEN)
    image = np.array(report.evaluate("[...drawn()]")).reshape(28, 28)
    rows, columns = np.nonzero(image)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    np.testing.assert_allclose(center_of_mass(image), (14, 14), atol=0.5)
    # MNIST's own images, magnified, come back in their place
    script = """([text, count]) => Array.from({ length: count }, (_, at) => {
        const one = bytes(text).subarray(784 * at, 784 * at + 784);
        const pixels = new Uint8Array(4 * 280 ** 2);
        for (let i = 0; i < 280 ** 2; i++)
            pixels[4 * i + 3] = one[28 * Math.floor(i / 2800) + Math.floor((i % 280) / 10)];
        return [...centred(pixels, 280)];
    })"""
    images = images[:200]
    text = base64.b64encode(images.tobytes()).decode()
    again = np.array(report.evaluate(script, [text, len(images)]))
    assert np.array_equal(again, images.reshape(len(images), -1))


@pytest.mark.slow
def test_a_photo_is_prepared_and_answered_as_a_drawing(report):
    """The same ink gives the same 28x28 and 32x32 bytes as in stages/ink.py, and the same words."""
    script = """([text, side]) => {
        const alpha = bytes(text), pixels = new Uint8Array(4 * side ** 2);
        alpha.forEach((value, at) => { pixels[4 * at + 3] = value; });
        const image = centred(pixels, side);
        return image && [[...image], [...resize(image)]];
    }"""
    rng = np.random.default_rng(0)
    fields = [rng.integers(0, 256, (side, side), np.uint8) for side in (1, 7, 19, 20, 21, 99, 200)]
    for _ in range(30):  # blobs anywhere, of any proportions
        blob = np.zeros((280, 280), np.uint8)
        top, left = rng.integers(0, 270, 2)
        part = blob[top : top + rng.integers(1, 280), left : left + rng.integers(1, 280)]
        part[:] = rng.integers(0, 256, part.shape) * (rng.random(part.shape) < rng.random())
        fields.append(blob)
    photos = [ink.written(photo.decoded(content)[0]) for _, content in drawn_photos()[::4]]
    photos += [ink.strengthened(found) for found in photos]
    fields += [np.pad(found, ((0, max(found.shape) - len(found)), (0, 0))) for found in photos]
    fields = [np.pad(found, ((0, 0), (0, len(found) - found.shape[1]))) for found in fields]
    for field in fields:
        text = base64.b64encode(field.tobytes()).decode()
        there, here = report.evaluate(script, [text, len(field)]), ink.centred(field)
        if here is None:
            assert there is None and not field.any()
        else:
            assert there == [here.ravel().tolist(), idx.resize(here[None]).ravel().tolist()]
    for name, bins in report.evaluate("data.bins").items():
        for part in bins:
            row = [max(part["low"], 0.01), *[0.0] * 9]
            alike = CalibrationBin(part["count"], part["confidence"], part["accuracy"])
            said = report.evaluate("([name, row]) => verdict(name, row)", [name, row])
            plain = tuple(line.replace("\xa0", " ") for line in said)
            assert plain == answers.verdict(name, answers.Answer(row, alike))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_each_number_of_a_confusion_matrix_opens_its_images(report, raw, name):
    labels = idx.read(raw)["test"].labels
    matrix = np.loadtxt(ROOT / files.confusion_path(name), int, delimiter=",", skiprows=1)[:, 1:]
    for (actual, predicted), count in np.ndenumerate(matrix):
        label = f'[aria-label="{count} images of {actual}, answer {predicted}"]'
        cell = report.locator(f".matrix.{name} {label}, .{name} {label}")
        assert cell.count() == (count > 0)
        if count:
            cell.click()
            shown = report.locator("#behind button").all_inner_texts()
            assert len(shown) == (3 if actual == predicted else count)
            for text in shown:
                assert labels[int(re.match(r"no\. (\d+): ", text)[1])] == actual
                assert f"{TITLES[name]}: {predicted} (" in text


@pytest.mark.slow
def test_an_image_is_the_one_of_its_number_and_goes_to_the_networks_when_pressed(report, images):
    images = idx.resize(images)
    for at in (0, 5, 23):
        button = report.locator("#missed button").nth(at)
        number = int(re.match(r"no\. (\d+): ", button.inner_text())[1])
        shown = Image.open(io.BytesIO(button.locator("i").screenshot())).convert("L")
        assert np.abs(255 - np.asarray(shown.resize((32, 32)), int) - images[number]).mean() < 8
        button.click()
        report.locator("#source", has_text=re.compile(f" {number}$")).wait_for()
        script = "[...seen.getContext('2d').getImageData(0, 0, 32, 32).data]"
        pixels = np.array(report.evaluate(script)).reshape(32, 32, 4)
        assert np.array_equal(pixels[..., 0], images[number])
        for head in report.locator("#answers h3").all_inner_texts():
            assert f"{head} (" in button.inner_text().replace("\n", " ")


@pytest.mark.slow
def test_the_study_shows_every_seed_in_its_place(visit):
    opened = visit(PAGES["study"].as_uri())
    with (ROOT / "study/report/cells.csv").open(encoding="utf-8", newline="") as file:
        cells = [row for row in csv.DictReader(file) if row["seed"] != "validation"]
    expected = sorted(f"{100 * float(row['test_accuracy']):.2f} % right" for row in cells)
    marks = opened.locator(".track i:not(.published, .mean)").all()
    titles = [mark.get_attribute("title") for mark in marks]
    assert sorted(title.split(": ")[1] for title in titles) == expected
    places = [mark.bounding_box()["x"] for mark in marks]
    rights = [float(re.findall(r"[\d.]+(?= % right)", title)[0]) for title in titles]
    assert [*np.array(rights)[np.argsort(places)]] == sorted(rights)  # the better, the more right


@pytest.mark.slow
def test_the_server_shows_the_page_and_answers_a_drawing_there(visit, tmp_path):
    import mlflow.pytorch
    import uvicorn

    from stages.networks import models
    from stages.serve import application

    weights = weights_on_the_page()["lenet5"]
    trained = page.Trained(weights, 0.5)
    (tmp_path / "lenet5.safetensors").write_bytes(weights)
    recipe = models.Recipe.model_construct(dropout=0.5, softmax_before_loss=False)
    network = models.load_model("lenet5", recipe, tmp_path / "lenet5.safetensors")
    example = np.zeros((2, 28, 28), np.uint8)
    mlflow.pytorch.save_model(
        models.Classifier(network).eval(),
        str(tmp_path / "model"),
        input_example=example,
        serialization_format="pt2",
    )
    port = int(free_port())
    app = application(tmp_path / "model", page.drawing({"lenet5": trained}))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        opened = visit(f"http://127.0.0.1:{port}/")
        draw(opened, SEVEN)
        place = opened.locator("#server")
        place.wait_for(state="visible")
        here = opened.locator("#answers p").inner_text().split(" sure")[0]
        assert place.inner_text() == f"The champion on the server: 7, {here} sure."
    finally:
        server.should_exit = True
        thread.join()
