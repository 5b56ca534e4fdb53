"""``python -m stages.declare``: give dvc.yaml what it lacks for the models of the registry.

Each entry that names the last model of dvc.yaml is copied, and names the new one in the copy.
"""

import re

from dvc_kit import strict
from dvc_kit.errors import InputError, main_function
from dvc_kit.files import read_text, write_text
from stages.base.params import PIPELINE
from stages.networks import MODELS


def with_model(text: str, like: str, name: str) -> str:
    """``text`` of dvc.yaml with a copy for ``name`` of each entry that names the model ``like``."""
    lines = text.splitlines()
    result: list[str] = []
    while lines:
        depth = _depth(lines[0])
        end = next((at for at, line in enumerate(lines) if at and _depth(line) <= depth), None)
        entry = lines[:end]
        if re.search(_word(like), entry[0]) and not entry[0].lstrip().startswith("#"):
            gap = [line for line in entry if not line]  # an empty line ends a stage
            entry = [line for line in entry if line]
            result += [*entry, *gap, *(_renamed(line, like, name) for line in entry), *gap]
            del lines[: len(entry) + len(gap)]
        else:
            result.append(lines.pop(0))
    return "\n".join(result) + "\n"


def _depth(line: str) -> float:
    """How far a line is indented. An empty one belongs to what stands above it."""
    return len(line) - len(line.lstrip()) if line else float("inf")


def _word(name: str) -> str:
    return rf"(?<![a-zA-Z0-9]){name}(?![a-zA-Z0-9])"


def _renamed(line: str, like: str, name: str) -> str:
    old, new = MODELS[like], MODELS[name]
    names = {like: name, old.spoken: new.spoken, old.title: new.title}
    numbers = {f"{old.parameters:,}": f"{new.parameters:,}"}
    for before, after in (names | numbers).items():
        line = re.sub(_word(re.escape(before)), after, line)
    return line


@main_function
def main() -> None:
    stages = strict.read(PIPELINE)["stages"]
    there = [name for name in MODELS if f"train_{name}" in stages]
    if not there:
        raise InputError(f"{PIPELINE} trains none of {', '.join(MODELS)}: it has nothing to copy")
    for name in (name for name in MODELS if name not in there):
        write_text(PIPELINE, with_model(read_text(PIPELINE), there[-1], name))
        print(f"{PIPELINE} has the stage train_{name}, as train_{there[-1]}")


if __name__ == "__main__":
    main()
