"""What a run is called, and the colour of its curves.

A name begins with the stage. Behind it stands what tells the run from others of its stage: the
values of the settings that `run_name` in pyproject.toml lists, and the DVC experiment. How a run
ended that did not finish stands right behind the stage. Filters such as `attributes.run_name LIKE
'train%'` go on working. The tag `stage` is the plain stage. A run keeps the name that it was given:
sync renames none.
"""

import colorsys
import hashlib
import re
from collections.abc import Mapping, Sequence

from dvc_mlflow import schema, values
from dvc_mlflow.hooks import hook, settings
from dvc_mlflow.naming import cut
from dvc_mlflow.result import Result


def name_of(result: Result, tags: Mapping[str, str]) -> str:
    """The name of a new run of a stage."""
    stage = result.stage.rpartition(":")[2]
    said = re.split("[@-]", stage)  # the items of a matrix stand in the name already
    return shortened([stage, *(word for word in _told(result, tags) if word not in said)])


def shortened(words: Sequence[str]) -> str:
    """Words as a name that every store takes."""
    return cut(" ".join(words), values.LONGEST_NAME)


def unfinished(name: str, status: str) -> str:
    """The name of a run that ended without results, which MLflow's list of charts cuts off behind
    some twenty letters."""
    how = f" ({status.lower()})"
    if how in name:
        return name
    stage, space, rest = cut(name, values.LONGEST_NAME - len(how)).partition(" ")
    return f"{stage}{how}{space}{rest}"


def color_of(result: Result, tags: Mapping[str, str]) -> str:
    """The colour of a run by the project's hook, or nothing. The words of its name shade it."""
    color = ""
    for key, colors in hook("colors", dict)().items():
        color = colors.get(str(result.params.get(key))) or color
    words = _told(result, tags)
    return _shaded(color, " ".join(words)) if words else color


def _told(result: Result, tags: Mapping[str, str]) -> list[str]:
    """What tells a run from others of its stage."""
    chosen = [key for key in settings().get("run_name", []) if key in result.params]
    words = [*(str(result.params[key]) for key in chosen), tags.get(schema.EXPERIMENT, "")]
    return list(dict.fromkeys(filter(None, words)))


def _shaded(color: str, words: str) -> str:
    """A colour of nearly the same hue, darker or lighter; always the same for the same words."""
    if not re.fullmatch("#[0-9a-fA-F]{6}", color):
        return color
    red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    hue, _, saturation = colorsys.rgb_to_hls(red, green, blue)
    drawn = hashlib.sha256(words.encode()).digest()
    hue, lightness = hue + 0.06 * (drawn[0] / 255 - 0.5), 0.25 + 0.4 * drawn[1] / 255
    parts = colorsys.hls_to_rgb(hue % 1, lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02X}" for part in parts)
