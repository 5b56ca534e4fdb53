"""The pages of the pipeline, the study and the search: one file each, with all that it shows.

Their scripts are in the folder `assets`. They use no library, and no request leaves a page.
"""

import base64
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markdown_it import MarkdownIt
from numpy.typing import NDArray
from PIL import Image

from stages import scoring
from stages.base import files
from stages.base.params import CLASSES, TITLES
from stages.networks import MODELS
from stages.networks.model import listed
from stages.scoring import CalibrationBin
from stages.show.figures import History, bin_interval

PATH = files.REPORTS / "report.html"
PAGES = {
    "Pipeline": PATH,
    "Study": Path("study/report/study.html"),
    "Search": Path("study/findings/search.html"),
}
ASSETS = Path(__file__).parent / "assets"
COLUMNS = 32  # of the picture with all images
RIGHT_SHOWN = 3  # images behind a number on the diagonal of a matrix
WRONG_SHOWN = (48, 24, 12)  # images behind another number: as many as MOST_SHOWN allows
MOST_SHOWN = 2_250  # images on a page, which has at most 2 MB then

SHAPES = {  # of the marks of matplotlib, as CSS; a mark that is not here is a square
    "o": "border-radius: 50%;",
    "^": "clip-path: polygon(50% 0, 100% 100%, 0 100%);",
    "D": "clip-path: polygon(50% 0, 100% 50%, 50% 100%, 0 50%);",
}

Predictions = Mapping[str, NDArray[Any]]  # columns of a file of predictions, (N,) each


def markdown(text: str) -> str:
    """Markdown with tables, as HTML, with signs as a printer sets them. A table that is too wide
    scrolls by itself."""
    text = re.sub(r"(?<=\d) ?%", "\u00a0%", text)
    text = re.sub(r"(?<![\w-])-(?=\d|ln)", "\u2212", text)
    found = str(MarkdownIt("commonmark").enable("table").render(text))
    found = found.replace("<table>", '<div class="wide" tabindex="0"><table>')
    return found.replace("</table>", "</table></div>")


def with_contents(body: str, here: Path) -> str:
    """A body with the names of all pages above it, and those of its own sections below its lede."""
    pages = "".join(
        f'<b aria-current="page">{name}</b>'
        if path == here
        else f'<a href="{os.path.relpath(path, here.parent)}">{name}</a>'
        for name, path in PAGES.items()
    )
    names = iter(re.findall("<h2>(.*?)</h2>", body))
    links = "".join(f'<a href="#s{at}">{name}</a>' for at, name in enumerate(names))
    numbers = itertools.count()
    body = re.sub("<h2>", lambda _: f'<h2 id="s{next(numbers)}">', body)
    head, end, rest = body.partition("</p>\n")
    sections = f'<nav class="sections" aria-label="Sections">{links}</nav>\n'
    return f'<nav class="pages" aria-label="Pages">{pages}</nav>\n{head}{end}{sections}{rest}'


def assemble(title: str, body: str, data: Mapping[str, Any], scripts: Iterable[str]) -> str:
    """A page of HTML. The same arguments give the same bytes.

    Args:
        body: Of the page, in HTML.
        data: For the scripts, which run in their order.
    """
    arithmetic = ",\n".join(f"  {name}: {model.javascript}" for name, model in MODELS.items())
    content = json.dumps(files.rounded(data), sort_keys=True, allow_nan=False)
    parts = {
        "title": title,
        "style": f"{_asset('style.css')}\n{_looks()}",
        "body": body,
        "data": content.replace("<", "\\u003c"),  # nothing in it can end the script
        "script": _filled(
            "\n".join(_asset(script) for script in scripts), {"networks": arithmetic}
        ),
    }
    return _filled(_asset("frame.html"), parts)


def _looks() -> str:
    """The colours and marks of the models, as CSS."""
    lines = []
    for name, model in MODELS.items():
        lines.append(f".{name} {{ --of: {model.color}; }}")
        lines.append(f"i.{name} {{ {SHAPES.get(model.marker, '')} }}")
    dark = [f".{name} {{ --of: {model.dark}; }}" for name, model in MODELS.items()]
    return "\n".join([*lines, "@media (prefers-color-scheme: dark) {", *dark, "}"])


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8").rstrip()


def _filled(template: str, parts: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda gap: parts[gap[1]], template)


def sprite(images: NDArray[np.uint8]) -> dict[str, Any]:
    """Images (N, H, W) as one PNG in base64, COLUMNS of them in a row."""
    count, height, width = images.shape
    lines = max(1, -(-count // COLUMNS))
    sheet = np.zeros((lines * COLUMNS, height, width), np.uint8)
    sheet[:count] = images
    sheet = sheet.reshape(lines, COLUMNS, height, width).swapaxes(1, 2)
    buffer = io.BytesIO()
    Image.fromarray(sheet.reshape(lines * height, -1)).save(buffer, "PNG", optimize=True)
    return {"images": base64.b64encode(buffer.getvalue()).decode(), "columns": COLUMNS}


@dataclass(frozen=True)
class Trained:
    """A network as the scripts need it."""

    weights: bytes  # its file
    dropout: float  # its recipe's: the grid of the last layer depends on it


def _networks(networks: Mapping[str, Trained]) -> dict[str, Any]:
    return {
        "titles": {name: TITLES[name] for name in networks},
        "weights": {name: base64.b64encode(one.weights).decode() for name, one in networks.items()},
        "dropout": {name: one.dropout for name, one in networks.items()},
    }


def drawing(networks: Mapping[str, Trained]) -> str:
    """A page of its own to draw a digit, for `make serve`. The networks by model."""
    body = f"<h1>MNIST</h1>\n{_asset('draw.html')}"
    scripts = ["charts.js", "networks.js", "draw.js"]
    return assemble("Draw a digit", body, _networks(networks), scripts)


def _behind(found: Predictions, most: int) -> dict[str, list[int]]:
    """For each pair of a digit and an answer, the test images to show."""
    behind = {}
    for actual, predicted in np.ndindex(CLASSES, CLASSES):
        pair = (found["actual"] == actual) & (found["predicted"] == predicted)
        indices = np.flatnonzero(pair)
        surest = indices[np.argsort(-found["confidence"][indices], kind="stable")]
        shown = indices[:RIGHT_SHOWN] if actual == predicted else surest[:most]
        behind[f"{actual}-{predicted}"] = [int(index) for index in shown]
    return {pair: shown for pair, shown in behind.items() if shown}


def _bin(part: CalibrationBin) -> dict[str, float]:
    """A bin of the calibration, with its edges and Wilson's interval of its accuracy."""
    number = min(int(part.confidence * scoring.CALIBRATION_BINS), scoring.CALIBRATION_BINS - 1)
    low, high = bin_interval(part)
    return {
        "low": number / scoring.CALIBRATION_BINS,
        "high": (number + 1) / scoring.CALIBRATION_BINS,
        "count": part.count,
        "confidence": part.confidence,
        "accuracy": part.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
    }


def cards(rows: Iterable[Mapping[str, str]]) -> str:
    """The accuracy and the loss of each model in large, and those of the published experiment.

    Args:
        rows: Our results in reports/comparison.csv.
    """
    found = []
    for row in rows:
        parts = {"model": row["model"], "title": TITLES[row["model"]]}
        parts |= {end: f"{100 * float(row[f'accuracy_{end}']):.2f}" for end in ("low", "high")}
        parts |= {"published_loss": "", "published_accuracy": ""}
        ours = float(row["loss"]), float(row["accuracy"])
        there = scoring.PUBLISHED.get(row["model"])
        for prefix, pair in ("", ours), ("published_", there):
            if pair:
                before = "<br>published: " if prefix else ""
                parts[f"{prefix}loss"] = f"{before}{pair[0]:.4f}"
                parts[f"{prefix}accuracy"] = f"{before}{100 * pair[1]:.2f}\u00a0%"
        found.append(_filled(_asset("cards.html"), parts))
    return "\n".join(found)


def report(
    finding: str,
    cards: str,
    comparison: str,
    histories: Mapping[str, History],
    predictions: Mapping[str, Predictions],
    matrices: Mapping[str, NDArray[np.int64]],
    bins: Mapping[str, Sequence[CalibrationBin]],
    images: NDArray[np.uint8],
    networks: Mapping[str, Trained],
) -> str:
    """The page of the pipeline.

    Args:
        finding: One sentence.
        cards: From :func:`cards`.
        comparison: Markdown.
        images: All test images (N, H, W).
        networks: Like the other mappings, by model.
    """
    actual = next(iter(predictions.values()))["actual"]
    wrong = [found["actual"] != found["predicted"] for found in predictions.values()]
    missed_by_all = np.flatnonzero(np.logical_and.reduce(wrong)).tolist()
    for most in WRONG_SHOWN:
        behind = {name: _behind(found, most) for name, found in predictions.items()}
        missed = missed_by_all[:most]
        of_cells = (at for cells in behind.values() for shown in cells.values() for at in shown)
        indices = list(dict.fromkeys([*missed, *of_cells]))
        if len(indices) <= MOST_SHOWN:
            break
    position = {index: at for at, index in enumerate(indices)}
    data = {
        **_networks(networks),
        **sprite(images[indices]),
        "histories": histories,
        "matrices": {name: matrix.tolist() for name, matrix in matrices.items()},
        "bins": {name: [_bin(part) for part in parts] for name, parts in bins.items()},
        "cells": {
            name: {pair: [position[index] for index in shown] for pair, shown in cells.items()}
            for name, cells in behind.items()
        },
        "missed": [position[index] for index in missed],
        "missed_count": len(missed_by_all),
        "shown": [
            {
                "index": index,
                "actual": int(actual[index]),
                "answers": {
                    name: [int(found["predicted"][index]), float(found["confidence"][index])]
                    for name, found in predictions.items()
                },
            }
            for index in indices
        ],
    }
    title = f"{listed([model.spoken for model in MODELS.values()])} on MNIST"
    parts = {"title": title, "finding": finding, "cards": cards, "draw": _asset("draw.html")}
    parts["comparison"] = markdown(comparison)
    body = with_contents(_filled(_asset("report.html"), parts), PATH)
    scripts = ["charts.js", "networks.js", "draw.js", "report.js"]
    return assemble(title, body, data, scripts)
