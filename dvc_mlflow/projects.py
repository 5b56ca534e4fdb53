"""The DVC projects of a repository, as their dvc.lock files describe them.

A repository has a project in its main folder, and one in each folder with a `.dvc` of its own. All
commands run in the main folder, and all paths start there.
"""

import contextlib
import functools
import posixpath
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dvc_mlflow.errors import StageError

MAIN = Path()
LOCK = Path("dvc.lock")


def main_folder(start: Path) -> Path | None:
    """The main folder of the DVC repository that a folder is in, if it is in one."""
    found = None
    for folder in (start, *start.parents):
        if (folder / ".dvc").is_dir():
            found = folder
        elif found:  # the main folder of a copy without git
            break
        if (folder / ".git").exists():
            break
    return found


def folders() -> list[Path]:
    """The folders of all DVC projects, the main one first."""
    return [MAIN, *sorted(path.parent for path in Path().glob("*/.dvc") if path.is_dir())]


def locks() -> list[Path]:
    """The path of each project's dvc.lock."""
    return [folder / LOCK for folder in folders()]


def of_stage(stage: str) -> Path:
    """The folder of the project that declares a stage, or the main one if none does."""
    for folder in folders():
        try:
            if stage.partition("@")[0] in stages_in((folder / "dvc.yaml").read_text("utf-8")):
                return folder
        except (OSError, StageError):
            continue
    return MAIN


@functools.cache  # one file is read several times, and parsing it takes 50 ms
def stages_in(text: str) -> dict[str, Any]:
    """The stages in the text of a dvc.yaml or dvc.lock."""
    content = None
    with contextlib.suppress(YAMLError):
        content = YAML(typ="safe").load(text)
    if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
        raise StageError("dvc.yaml or dvc.lock names no stages: `git checkout` it")
    stages: dict[str, Any] = content["stages"]
    return stages


def outs(lock: str, declared: str, folder: Path) -> dict[str, dict[str, str]]:
    """The md5 of each out, by stage and path, from the texts of a dvc.lock and its dvc.yaml.

    Args:
        folder: The folder of both files.
    """
    found = {}
    for name, entry in stages_in(lock).items():
        group, _, item = name.partition("@")
        stage = stages_in(declared).get(group, {})
        wdir = str(stage.get("do", stage).get("wdir", ".")).replace("${item}", item)
        found[name] = {
            posixpath.normpath(posixpath.join(folder.as_posix(), wdir, out["path"])): out["md5"]
            for out in entry.get("outs", [])
            if "md5" in out
        }
    return found


def outs_here(project: Path, main: Path = MAIN) -> dict[str, dict[str, str]]:
    """The same for a project in the checkout whose main folder is ``main``."""
    folder = main / project
    lock, declared = ((folder / name).read_text("utf-8") for name in (LOCK, "dvc.yaml"))
    return outs(lock, declared, project)
