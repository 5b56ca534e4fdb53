"""The distribution dvc-mlflow: what it consists of, and that it works where nothing else is."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT, environment

PROJECT = tomllib.loads((ROOT / "dvc_mlflow/pyproject.toml").read_text("utf-8"))
HOUSES = ("dvc_guard", "dvc_kit", "dvc_mlflow")
BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]))
"""
TOOLS = ("check-wheel-contents==0.6.3", "pyroma==5.0.1", "twine==7.0.0")
REQUIRED = [text for text in PROJECT["project"]["dependencies"] if ">=" in text]
SETS = {
    "lowest": [text.replace(">=", "==") for text in REQUIRED],
    "newest": [],  # whatever pip takes today
}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    ended = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, encoding="utf-8"
    )
    assert ended.returncode == 0, f"{command}:\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from that alone."""
    folder = tmp_path_factory.mktemp("built")
    # A copy, because setuptools also takes what an earlier installation has noted in *.egg-info
    copy, unwanted = folder / "dvc_mlflow", shutil.ignore_patterns("*.egg-info", "build")
    shutil.copytree(ROOT / "dvc_mlflow", copy, ignore=unwanted)
    name = run(sys.executable, "-c", BUILD, folder, cwd=copy).splitlines()[-1]
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(sys.executable, *build, "--wheel-dir", folder, folder / name)
    [wheel] = folder.glob("*.whl")
    return folder / name, wheel


def modules() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for house in HOUSES
        for path in (ROOT / house).glob("*.py")
    }


def test_the_wheel_has_our_modules_their_types_and_the_license(built):
    with zipfile.ZipFile(built[1]) as wheel:
        [info] = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
        files = {name for name in wheel.namelist() if not name.startswith(info)}
        assert files == modules() | {f"{house}/py.typed" for house in HOUSES}
        license_text = wheel.read(f"{info}/licenses/LICENSE")
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert license_text == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("Requires-Dist") == PROJECT["project"]["dependencies"]


def test_the_source_distribution_has_the_changelog_and_the_test_of_an_installation(built):
    with tarfile.open(built[0]) as source:
        assert all(member.isfile() or member.isdir() for member in source)
        names = {member.name.partition("/")[2] for member in source}
    assert names > {"CHANGELOG.md", "LICENSE", "README.md", "linked/tests/test_installed.py"}


def test_the_readme_needs_no_other_file_on_the_page_of_an_index():
    text = (ROOT / "dvc_mlflow/README.md").read_text("utf-8")
    assert re.findall(r"\]\((?!https://)", text) == []


def try_in_an_environment_of_its_own(built, folder: Path, *of_pip: str) -> Path:
    """Install the wheel there, and run the test that the source distribution has; its Python."""
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv/bin/python"
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*install, built[1], "pytest", *of_pip)
    with tarfile.open(built[0]) as source:
        source.extractall(folder, filter="data")
    [unpacked] = folder.glob("dvc_mlflow-*")
    told = run(python, "-m", "pytest", "-q", "-rs", unpacked / "linked/tests", cwd=folder)
    assert "1 passed" in told
    return python


@pytest.mark.slow
def test_the_installed_wheel_mirrors_a_repository(built, tmp_path):
    try_in_an_environment_of_its_own(built, tmp_path, "-c", str(ROOT / "constraints.txt"))


@pytest.mark.slow
@pytest.mark.weekly
@pytest.mark.parametrize("name", SETS)
def test_the_lowest_and_the_newest_versions_work_with_what_pip_installs_today(
    built, tmp_path, name
):
    try_in_an_environment_of_its_own(built, tmp_path, *SETS[name])


@pytest.mark.slow
@pytest.mark.weekly
def test_an_index_would_take_both_distributions(built, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    tools = tmp_path / "venv/bin"
    run(tools / "python", "-m", "pip", "install", "--quiet", *TOOLS)
    assert run(tools / "twine", "check", "--strict", *built).count("PASSED") == 2
    run(tools / "check-wheel-contents", "--ignore", "W009", built[1])  # three packages are meant
    told = run(tools / "pyroma", "--min", "8", built[0]).splitlines()
    lacking = [line for line in told if line.startswith("Your package")]
    # No public address is known, neither of a person nor of the repository
    assert [re.search("author-email|url", line)[0] for line in lacking] == ["author-email", "url"]
