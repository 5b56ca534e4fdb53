"""Stage findings: the search in tables, a figure and a page, and the recipes that it chose."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import kruskal

from dvc_kit.errors import main_function
from dvc_kit.files import write_text
from stages.base import files
from stages.base.params import TITLES, ModelName
from stages.base.stage import running
from stages.networks import MODELS
from stages.show import figures, page
from study import design, ranking
from study.design import Changes, Search, Space
from study.filling import TEMPLATES, filled
from study.ranking import Longer, Tables
from study.settings import FOLDER
from study.tables import LONGER, Row, read_table

FINDINGS = FOLDER / "findings"
SEARCH = FINDINGS / "search.html"
OF_OPTIMIZERS = ("learning_rate", "weight_decay")
PARTS = 3  # groups that the values of a range are put into
LEAST = 4  # trials in each group of values that is compared with the others
SHOWN = 5  # configurations of the last rung in the report
JUDGED = 2  # rungs whose trials show which settings matter. The last has too few
NAMES = {name: model.spoken for name, model in MODELS.items()}  # within a sentence


@dataclass(frozen=True)
class Setting:
    """How far one setting orders the configurations of a rung.

    Attributes:
        share: Of the variance of the ranks, between groups of values. 0 to 1.
        p: Of the test of W. H. Kruskal and W. A. Wallis (J. Am. Stat. Assoc. 47, 1952).
        best: The group of values with the best median rank.
    """

    share: float
    p: float
    best: str


Shares = Mapping[ModelName, Sequence[Mapping[str, Setting]]]  # of each model, in each judged rung


def settings_of(rows: Sequence[Row]) -> dict[str, Setting]:
    """The settings by their name, the most important first.

    A setting of the teachers is judged among the configurations that have teachers, a rate among
    those with the same optimizer. A setting with a group of fewer than LEAST is left out.

    Args:
        rows: The best first.
    """
    ranks = {row["trial"]: rank for rank, row in enumerate(rows)}
    found = {}
    for name in Space.model_fields:
        parts = {name: [row for row in rows if row[name] is not None]}
        if name in OF_OPTIMIZERS:
            kinds = sorted({row["optimizer"] for row in rows})
            parts = {f"{name} of {kind}": _with(rows, "optimizer", kind) for kind in kinds}
        for title, chosen in parts.items():
            groups = grouped(chosen, name)
            of_groups = {key: [ranks[row["trial"]] for row in one] for key, one in groups.items()}
            if len(of_groups) < 2 or min(map(len, of_groups.values())) < LEAST:
                continue
            statistic, p = kruskal(*of_groups.values())
            best = min(of_groups, key=lambda key: float(np.median(of_groups[key])))
            share = max(0.0, float(statistic) - len(of_groups) + 1) / (len(chosen) - len(of_groups))
            found[title] = Setting(design.rounded(share), design.rounded(float(p)), best)
    return dict(sorted(found.items(), key=lambda pair: -pair[1].share))


def _with(rows: Sequence[Row], key: str, value: Any) -> list[Row]:
    return [row for row in rows if row[key] == value]


def grouped(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    """The rows by the value of a setting. Many values are put into PARTS groups of equal size."""
    values = sorted({row[name] for row in rows}, key=lambda value: (str(type(value)), value))
    if len(values) <= PARTS + 1:
        return {str(value): _with(rows, name, value) for value in values}
    ordered = sorted(rows, key=lambda row: float(row[name]))
    edges = [round(part * len(ordered) / PARTS) for part in range(PARTS + 1)]
    parts = [ordered[low:high] for low, high in pairwise(edges)]
    return {f"{part[0][name]:g} to {part[-1][name]:g}": part for part in parts}


def load_tables(found: Search) -> Tables:
    """The tables of all rungs.

    Raises:
        StageError: One is missing.
    """
    return {
        name: [read_table(name, rung) for rung in found.rungs_of(name)] for name in found.models
    }


def load_longer(found: Search) -> Longer:
    """The tables of the longer trainings.

    Raises:
        StageError: One is missing.
    """
    names = [name for name in found.models if name in found.longer]
    return {name: read_table(name, LONGER) for name in names}


# --- the report ---


def median(rows: Sequence[Row], score: str) -> float:
    """Of all trials. One that diverged counts as 0."""
    return float(np.median([row[score] or 0.0 for row in rows]))


TEMPLATES.filters["median"] = median


def markdown(found: Search, tables: Tables, longer: Longer, shares: Shares) -> str:
    """The report, by the template search.md."""
    tried = [changes for of_model in found.longer.values() for changes in of_model]
    varied = {name for changes in tried for name in changes.model_dump(exclude_none=True)}
    return filled(
        "search.md",
        search=found,
        tables=tables,
        shares=shares,
        least=LEAST,
        judged=JUDGED,
        names=NAMES,
        space=list(Space.model_fields),
        chosen=[
            (f"{recipe}, {TITLES[name]}", row)
            for name, rungs in tables.items()
            for recipe, row in ranking.winners(found, name, rungs, longer.get(name, ())).items()
        ],
        longer=[
            (TITLES[name], row, ranking.seconds(found, name, row) / 60)
            for name, rows in longer.items()
            for row in rows
        ],
        changed=[name for name in Changes.model_fields if name in varied and name != "epochs"],
        last=[(TITLES[name], row) for name, rungs in tables.items() for row in rungs[-1][:SHOWN]],
        by_hand=[
            f"trial {design.incumbent(found, name, settings)['trial']} of {NAMES[name]}"
            for name in tables
            if (settings := found.rungs[name][-1].incumbent)
        ],
    )


def draw_settings(bars: Axes, name: ModelName, tables: Tables, shares: Shares) -> None:
    """The share of each setting."""
    settings = list(shares[name][0])
    height = 0.8 / JUDGED
    for rung, (found, alpha) in enumerate(zip(shares[name], (1.0, 0.4), strict=True)):
        values = [100 * found[one].share if one in found else 0.0 for one in settings]
        places = np.arange(len(settings)) + (rung - (JUDGED - 1) / 2) * height
        epochs = tables[name][rung][0]["epochs"]
        label = f"rung {rung + 1}: {epochs} epoch{'s' if epochs > 1 else ''}"
        bars.barh(places, values, height, color=figures.COLORS[name], alpha=alpha, label=label)
    bars.set_yticks(range(len(settings)), [one.replace("_", " ") for one in settings])
    bars.invert_yaxis()
    # Below the axes: among the bars, its patches look like those of the settings beside them
    bars.legend(loc="upper right", bbox_to_anchor=(1, -0.14), ncols=JUDGED, columnspacing=1)
    bars.set_xlabel("share of the variance of the ranks (%)")
    bars.grid(axis="y", visible=False)
    bars.grid(axis="x")


def draw_trials(errors: Axes, name: ModelName, tables: Tables, shares: Shares) -> None:
    """The accuracy of each trial, rung by rung."""
    rungs = tables[name]
    lines: dict[int, list[tuple[int, float]]] = {}
    for rows in rungs:
        for row in (row for row in rows if row["accuracy"]):
            point = (row["epochs"], 100 - 100 * row["accuracy"])
            lines.setdefault(row["trial"], []).append(point)
    last = {row["trial"] for row in rungs[-1]}
    for trial, points in lines.items():
        stayed = trial in last
        errors.plot(
            *zip(*points, strict=True),
            color=figures.COLORS[name] if stayed else figures.SOFT,
            alpha=0.9 if stayed else 0.25,
            marker=figures.MARKERS[name],
            markersize=4,
            zorder=3 if stayed else 2,
        )
    errors.set_xscale("log")
    lengths = [rows[0]["epochs"] for rows in rungs]
    errors.set_xticks(lengths, [str(number) for number in lengths])
    figures.show_errors_as_accuracy(errors, "y")
    errors.set_xlabel("epochs of the rung")
    errors.set_ylabel("accuracy on the validation images (%)")


PANELS = {
    "what the settings decide": draw_settings,
    "all trials, the last rung in colour": draw_trials,
}


def figure(tables: Tables, shares: Shares) -> Figure:
    """A row of panels for each model."""
    with rc_context(figures.STYLE):
        drawn = figures.blank(12, 8.5)
        rows = drawn.subplots(len(tables), len(PANELS), squeeze=False)
        for row, name in zip(rows, tables, strict=True):
            for axes, (title, draw) in zip(row, PANELS.items(), strict=True):
                draw(axes, name, tables, shares)
                axes.set_title(f"{TITLES[name]}: {title}")
        return drawn


def panels(tables: Tables, shares: Shares) -> str:
    """The same panels for the page, one below the other where it is narrow."""
    found = []
    for name in tables:
        for title, draw in PANELS.items():
            with rc_context(figures.STYLE):
                drawn = figures.blank(5, 3.9)
                draw(drawn.subplots(), name, tables, shares)
            caption = f"<figcaption>{TITLES[name]}: {title}</figcaption>"
            found.append(f'<figure class="panel">{caption}\n{figures.svg(drawn, name)}</figure>')
    return f'<div class="pair">{"".join(found)}</div>'


def html(report: str, drawn: str) -> str:
    """The report as a page of its own, with the panels in the place of the figure."""
    body = re.sub(r'<p><img src="search\.png"[^>]*></p>', lambda _: drawn, page.markdown(report))
    return page.assemble("The search", page.with_contents(body, SEARCH), {}, [])


@main_function
def main() -> None:
    found = design.load()
    with running("findings"):
        tables, longer = load_tables(found), load_longer(found)
        shares = {
            name: [settings_of(rows) for rows in rungs[:JUDGED]] for name, rungs in tables.items()
        }
        report, drawn = markdown(found, tables, longer, shares), figure(tables, shares)
        rows = [
            {"model": name, "rung": rung, "setting": setting} | asdict(one)
            for name, rungs in shares.items()
            for rung, settings in enumerate(rungs, start=1)
            for setting, one in settings.items()
        ]
        files.write_rows(FINDINGS / "settings.csv", rows)
        write_text(FINDINGS / "search.md", report)
        figures.save(drawn, FINDINGS / "search.png")
        write_text(FINDINGS / SEARCH.name, html(report, panels(tables, shares)))
        print(filled("rungs.md", tables=tables), end="")


if __name__ == "__main__":
    main()
