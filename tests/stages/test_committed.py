"""The committed reports come out of the committed weights, to the byte."""

import base64
import json
import re
import shutil
from pathlib import Path

import pytest

from conftest import ROOT, as_inputs
from dvc_kit.files import sha256
from stages import evaluate, plot
from stages.base import files, splits
from stages.base.params import MODEL_NAMES
from stages.mnist import idx
from stages.show import page


def weights_on_the_page() -> dict[str, bytes]:
    """The files of the committed models: DVC keeps them elsewhere, and the page embeds them."""
    text = (ROOT / page.PATH).read_text(encoding="utf-8")
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return {name: base64.b64decode(file) for name, file in json.loads(data)["weights"].items()}


@pytest.fixture(scope="module")
def again(raw, tmp_path_factory) -> Path:
    """The folder in which evaluate and plot have run on the committed weights and histories."""
    folder = tmp_path_factory.mktemp("again")
    for name in ("params.yaml", "recipes.yaml", *(f"reports/history_{m}.csv" for m in MODEL_NAMES)):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / files.MODELS).mkdir()
    for name, content in weights_on_the_page().items():
        (folder / files.model_path(name)).write_bytes(content)
    test = idx.split(raw, validation_size=0, train_limit=1, seed=0)["test"]
    splits.save_split(folder / files.DATA_PREPARED, "test", as_inputs({"test": test})["test"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MIRROR", "off")
        evaluate.main()
        plot.main()
    return folder


def test_the_weights_are_those_that_the_trainings_ended_with():
    weights = weights_on_the_page()
    assert list(weights) == list(MODEL_NAMES)
    for name, content in weights.items():
        trained = json.loads((ROOT / files.training_path(name)).read_text(encoding="utf-8"))
        assert [*files.read_fingerprints(trained["weights"]).values()][-1] == sha256(content)


def test_evaluate_and_plot_write_the_committed_bytes(again):
    cached = {files.predictions_path(name) for name in MODEL_NAMES}  # git has none
    written = {
        path.relative_to(again) for path in (again / "reports").rglob("*") if path.is_file()
    } - cached
    assert len(written) == 18
    changed = [path for path in written if (again / path).read_bytes() != committed(path)]
    assert changed == [], "run `dvc repro`, and commit what it writes"


def committed(path: Path) -> bytes:
    return (ROOT / path).read_bytes() if (ROOT / path).is_file() else b""
