"""`make predict`: the committed networks answer photos, and each mistake costs one line."""

import json
import shutil
import sys

import numpy as np
import photos
import pytest
from PIL import Image, ImageDraw
from test_committed import weights_on_the_page
from test_photo import as_file, paper

from conftest import ROOT
from stages import answers, photo, predict
from stages.base import files, params
from stages.base.params import MODEL_NAMES, TITLES
from stages.base.splits import Split
from stages.mnist import idx
from stages.networks import models


@pytest.fixture
def project(tmp_path, monkeypatch):
    """This process stands in a folder with the committed weights."""
    for name in ("params.yaml", "recipes.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for name, content in weights_on_the_page().items():
        (tmp_path / files.model_path(name)).parent.mkdir(exist_ok=True)
        (tmp_path / files.model_path(name)).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch, capsys, *arguments: str) -> tuple[int, str, list[str]]:
    """The exit code of the program, its output, and the lines on standard error."""
    monkeypatch.setattr(sys, "argv", ["predict", *arguments])
    code = 0
    try:
        predict.main()
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return code, said.out, said.err.splitlines()


@pytest.mark.slow
@pytest.mark.usefixtures("project", "settings_of_torch")
def test_so_many_photos_that_are_not_of_mnist_are_answered_right():
    drawn = photos.photos()
    prepared = [photo.prepare(content).image for _, content in drawn]
    right = dict.fromkeys(MODEL_NAMES, 0)
    for (digit, _), found in zip(drawn, predict.answers(prepared), strict=True):
        for name, answer in found.items():
            right[name] += answer.digit == digit
    print(right)
    assert len(drawn) == 40 and right == photos.RIGHT


@pytest.mark.usefixtures("project", "settings_of_torch")
def test_images_of_the_test_set_get_the_answers_that_evaluate_gives_them(splits, resized):
    images = splits["test"].images[:300]
    found = predict.answers([photo.prepare(as_file(Image.fromarray(one))).image for one in images])
    part = Split(resized["test"].images[:300], resized["test"].labels[:300])
    for name in MODEL_NAMES:
        network = models.load_model(name, params.load().of_model(name), files.model_path(name))
        expected = models.answers(network, part).probabilities.tolist()
        assert [answer[name].probabilities for answer in found] == expected


@pytest.mark.usefixtures("settings_of_torch")
def test_the_others_of_a_call_are_answered_as_text_and_json(project, monkeypatch, capsys, raw):
    image = idx.read(raw)["test"].images[0]
    (project / "an empty folder").mkdir()
    folder = project / "my photos"
    folder.mkdir()
    (folder / "a\n7.PNG").write_bytes(as_file(paper()))
    (folder / "b.png").write_bytes(b"")
    (folder / "c.txt").write_text("no image", encoding="utf-8")
    Image.fromarray(image).save(project / "7.png")
    scribble = Image.new("L", (200, 200), 255)
    points = np.random.default_rng(0).uniform(20, 180, (9, 2))
    ImageDraw.Draw(scribble).line([tuple(point) for point in points], 0, 6)
    scribble.save(project / "scribble.png")
    rows = [(0, 7, 7, 0.99991), (1, 7, 1, 0.99992)]
    for name in MODEL_NAMES:
        header = ["index", "actual", "predicted", "confidence"]
        files.write_csv(files.predictions_path(name), header, rows)
    names = ["gone.png", "an empty folder", "my photos", "7.png", "scribble.png"]
    code, said, errors = call(monkeypatch, capsys, *names)
    assert (code, [line.split(": ")[:3] for line in errors]) == (
        1,
        [
            ["error", "gone.png", "cannot be read (No such file or directory)"],
            ["error", "an empty folder", f"is a folder without images ({photo.ENDINGS})"],
            ["error", "my photos/b.png", "is empty"],
        ],
    )
    assert max(map(len, said.splitlines())) <= answers.WIDTH
    first, second, third = said.split("\n\n")
    assert first.startswith("'my photos/a\\n7.PNG'\n") and third.startswith("scribble.png\n")
    for name in MODEL_NAMES:
        assert f"{TITLES[name]}: 7" in first.splitlines()[1]
        assert f"{TITLES[name]}: 7" in second.splitlines()[1]
    assert "Of 2 test images" in second and "50.0 %" in second
    assert " sure." in third

    code, said, errors = call(monkeypatch, capsys, "--format=json", "gone.png", "7.png")
    missing, found = json.loads(said)
    assert code == len(errors) == 1 and len(said.splitlines()) == 4
    assert missing == {"image": "gone.png", "error": "cannot be read (No such file or directory)"}
    assert found["seen"] == image.tolist() and list(found["models"]) == list(MODEL_NAMES)
    for one in found["models"].values():
        assert one["digit"] == 7 and one["clear"] and sum(one["probabilities"]) == pytest.approx(1)


def test_without_networks_or_with_a_wrong_argument_a_line_says_what_to_do(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7.png").write_bytes(as_file(paper()))
    code, _, [line] = call(monkeypatch, capsys, "7.png")
    assert code == 2 and "models/lenet5.safetensors" in line and "`make repro`" in line
    code, _, [line] = call(monkeypatch, capsys, "--format=xml", "7.png")
    assert code == 2 and "invalid choice: 'xml'" in line


def test_an_answer_that_is_not_sure_is_called_no_clear_one():
    row = [0.4, 0.3, 0.3, *[0.0] * 7]
    [name, *_] = MODEL_NAMES
    assert answers.verdict(name, answers.Answer(row, None)) == (
        f"{TITLES[name]}: no clear answer, perhaps 0",
        "40.0 % sure.",
    )
