"""What a store needs before something is written to it: it is made, brought up to date, and follows
its folder."""

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dvc_kit.commands import output_of
from dvc_kit.errors import StageError
from dvc_mlflow import addresses, database, pages, projects, schema, store
from dvc_mlflow.git import git
from dvc_mlflow.store import uri


def open_store(project: Path = projects.MAIN) -> str:
    """Point MLflow at the store; the id of the experiment, which is made where there is none."""
    experiment_id = store.find_experiment(project, make=True)
    follow(project)
    if experiment_id:
        describe(experiment_id)
        return experiment_id
    from mlflow.exceptions import MlflowException

    ignore()
    text = f"The runs of the stages in {project / projects.DECLARATION}"
    tags = {
        schema.NOTE: pages.settings_of(project).get("description", text),
        schema.KIND: "custom_model_development",  # opened for model training
        **pages.views(project),
    }
    try:
        made: str = store.client().create_experiment(
            store.experiment(project), store.location(), tags
        )
    except MlflowException:  # another machine was first
        if experiment_id := store.find_experiment(project, make=True):
            return experiment_id
        raise
    describe(made)
    return made


def describe(experiment_id: str) -> None:
    """Let the description of the experiment begin with links to its runs and their charts, whatever
    it says.

    MLflow opens an experiment on its GenAI side, which shows this text and none of our runs.
    """
    tags = store.client().get_experiment(experiment_id).tags
    text = tags.get(schema.NOTE, "").strip()
    names = {"Open the runs": pages.TABLE}
    if pages.CHARTS in tags:
        names["Open the charts"] = pages.CHARTS
    links = [
        f"[{name}]({addresses.page_of_runs(experiment_id, view)})." for name, view in names.items()
    ]
    if any(link not in text for link in links):
        for link in links:
            text = text.replace(link, "").strip()
        text = " ".join([*links, text]).strip()
        store.client().set_experiment_tag(experiment_id, schema.NOTE, text)


def settle() -> None:
    """Bring the tables of an older MLflow up to date, and follow a folder that was moved. Says so.

    Raises:
        StageError: The tables are those of a newer MLflow, or of a database that others share.
    """
    store.apply_settings()
    with store.creating():
        if store.tables() == store.OLDER and store.is_local(uri()):
            import mlflow

            print(
                f"{store.name()} has the tables of an older MLflow: they become those of MLflow "
                f"{mlflow.__version__}, and an older one cannot read them any more",
                flush=True,
            )
            output_of([sys.executable, "-m", "mlflow", "db", "upgrade", uri()])
    store.find_experiment()
    for folder in follow():
        print(f"this folder was moved from {folder}: its artifacts are kept here now")


def follow(project: Path = projects.MAIN) -> list[Path]:
    """Keep the artifacts of a folder that was moved or copied where it is now; the folders where a
    store in a file has looked for them. Another checkout may share a store that lies elsewhere."""
    file, found = database.path_of(uri()), dict[Path, None]()
    if not file or not uri().startswith(database.PREFIX) or "file:" in uri():
        return []  # the latter can only be read
    own = file.resolve().is_relative_to(store.root())
    for folder in (project, *projects.find()):
        present = store.get(store.client().get_experiment_by_name, store.experiment(folder))
        kept = str(present and database.path_of(present.artifact_location))
        if place := re.fullmatch(r"(/.+)/(mlartifacts|mlruns/\d+)", kept):
            before = Path(place[1])
            if before.resolve() != store.root() and (own or not before.exists()):
                found[before] = None
    with store.creating():
        for folder in found:
            database.follow(file, folder, store.root())
    return [*found]


def ignore() -> None:
    """Let git ignore what a store without a server writes into the main checkout. No file that git
    tracks is changed."""
    if store.is_remote(uri()):
        return
    with contextlib.suppress(StageError, OSError):
        path = Path(git("-C", str(store.root()), "rev-parse", "--git-path", "info/exclude").strip())
        for name in ("/mlflow.db*", "/mlartifacts/"):
            try:
                git("-C", str(store.root()), "check-ignore", "--quiet", name.strip("/*"))
            except StageError:
                with (store.root() / path).open("a", encoding="utf-8") as file:
                    file.write(f"{name}\n")


def show_views(
    project: Path, experiment_id: str, metrics: Sequence[str] = (), curves: Sequence[str] = ()
) -> None:
    """Let the page of runs have the views of :func:`pages.views`."""
    present, changed = store.client().get_experiment(experiment_id).tags, False
    for tag, value in pages.views(project, metrics, curves).items():
        chosen = tag != pages.TABLE or metrics or "columns" in pages.settings_of(project)
        if chosen and present.get(tag) != value:
            store.client().set_experiment_tag(experiment_id, tag, value)
            changed = True
    if changed:
        describe(experiment_id)  # the first charts get their link
