"""The files of study/templates, with values in their gaps."""

import re
from pathlib import Path
from typing import Any

import jinja2

from stages.base.params import TITLES
from stages.show.tables import interval, percent, table


def aligned(text: str, align: str) -> str:
    """Lines of cells as a Markdown table, see :func:`stages.show.tables.table`.

    A number that is rounded to zero has no sign.
    """
    given = filter(None, re.sub(r"[+-](?=0\.0+\b)", "", text).splitlines())
    lines = [[cell.strip() for cell in line.split("|")] for line in given]
    return table(" | ".join(lines[0]), align, lines[1:]) + "\n"


def number(value: float, digits: int, scale: float = 1) -> str:
    return f"{scale * value:.{digits}f}"


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
)
TEMPLATES.filters |= {"aligned": aligned, "number": number, "percent": percent}
TEMPLATES.globals |= {"titles": TITLES, "interval": interval}


def filled(template: str, **values: Any) -> str:
    return TEMPLATES.get_template(template).render(values)
