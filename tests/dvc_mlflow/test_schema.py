"""All names in the stores of users stand in one file."""

import re

from conftest import ROOT
from dvc_mlflow import schema

# Words of dvc.lock, of the socket's messages and of the command line that are tags elsewhere


def test_no_two_tags_of_a_run_have_the_same_name_and_the_readme_lists_each():
    assert len({*schema.RUN}) == len(schema.RUN)
    table = (ROOT / "dvc_mlflow/README.md").read_text("utf-8").partition("Tags of a run:")[2]
    first = " ".join(line.split("|")[1] for line in table.split("\n\n")[1].splitlines())
    listed = {name.replace("PATH", "") for name in re.findall("`([^`]+)`", first)}
    assert listed == {*schema.RUN}
