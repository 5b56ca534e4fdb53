"""Other machines: without git, without DVC around, with pip set up otherwise, with no reader."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import install
from conftest import ROOT, Clone, environment, free_port, make_clone, wait_for
from stages.base import files

HEAD_FIRST = ["bash", "-c", '"$@" | head -n 1; echo "${PIPESTATUS[0]}"', "-"]
CLOSED = ["bash", "-c", '"$@" 2>&1 | true; echo "${PIPESTATUS[0]}"', "-"]


@pytest.fixture(scope="module")
def checkout(raw, tmp_path_factory) -> Clone:
    """A clone of which nothing has been run; tests leave it as they found it."""
    return make_clone(tmp_path_factory.mktemp("environment") / "a clone")


def without_git(folder: Path) -> dict[str, str]:
    """The environment of a machine that has python and a shell, and no git."""
    folder.mkdir()
    for name in ("sh", "env"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return {"PATH": str(folder)}


# --- what is missing or wrong is one line ---

OTHER_OWNER = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
VERIFY, MEND, DAMAGE = (f"-m dvc_guard {command}" for command in ("verify", "mend", "damage"))


@pytest.mark.parametrize(
    ("program", "arguments", "env", "line"),
    [
        ("python", VERIFY, OTHER_OWNER, ": fatal: detected dubious ownership in repository"),
        ("python", VERIFY, "no git", "git cannot be started (No such file or directory)"),
        ("python", MEND, OTHER_OWNER, ""),  # these need no git
        ("python", MEND, "no git", ""),
        ("python", DAMAGE, OTHER_OWNER, ""),
        ("python", DAMAGE, "no git", ""),
        ("python", "-S -m stages.prepare", {}, "has no torch: activate the project's environment"),
        ("make", "train", {}, "there is no target train: `make` lists those that there are"),
    ],
)
def test_what_is_missing_is_told_in_one_line(checkout, tmp_path, program, arguments, env, line):
    path = shutil.which(program, path=environment()["PATH"])
    env = without_git(tmp_path / "bin") if env == "no git" else env
    ended = checkout.run(str(path), *arguments.split(), env=env, check=False)
    told = [text for text in ended.stderr.splitlines() if not text.startswith("make: ")]
    if line:
        assert ended.returncode and len(told) == 1 and told[0].startswith("error: ")
        assert line in told[0]
    else:
        assert (ended.returncode, told) == (0, [])


def test_ctrl_c_during_the_imports_is_told_in_one_line():
    interrupt = """
import _thread, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
class Interrupt:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            _thread.interrupt_main()
sys.meta_path.insert(0, Interrupt)
import stages, stages.learn.training
"""
    done = subprocess.run([sys.executable, "-c", interrupt], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "error: interrupted; `dvc repro` resumes here\n"


@pytest.mark.weekly
@pytest.mark.slow
def test_a_zip_file_of_the_project_runs_and_is_told_apart_from_a_clone(clone, small_run):
    clone.make_small()
    shutil.rmtree(clone.path / ".git")
    assert "is not a git repository" in clone.run("dvc", "status", check=False).stderr  # DVC alone
    ran = clone.run("make", "repro", "INSTALLED=params.yaml")
    assert "this is no git repository: DVC does without" in ran.stdout
    assert "Traceback" not in ran.stderr
    assert clone.outs() == small_run.outs()
    assert clone.run("python", "-m", "dvc_guard", "mend").stdout == ""  # said once
    assert clone.run("python", "-m", "dvc_guard", "damage").stderr == ""
    refused = clone.run("python", "-m", "dvc_guard", "verify", check=False)
    assert refused.stderr.startswith("error: the last commit is verified, and this is no git rep")
    assert refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_stage_started_by_hand_says_that_dvc_will_not_know(copy):
    said = copy.run("python", "-m", "stages.train", "mlp").stderr.splitlines()
    assert said[0].startswith("note: DVC did not start this and will not know of its results")
    assert "`dvc repro train_mlp`" in said[0]
    assert "note: " not in copy.run("dvc", "repro", "--force", "train_mlp").stderr


# --- output that nobody reads ---


@pytest.mark.slow
@pytest.mark.parametrize("reader", [HEAD_FIRST, CLOSED])
def test_a_training_whose_reader_goes_finishes_all_the_same(copy, reader):
    expected = copy.outs()
    for path in (files.model_path("mlp"), files.training_path("mlp")):
        (copy.path / path).unlink()
    said = copy.run(*reader, "python", "-m", "stages.train", "mlp")
    assert said.stdout.splitlines()[-1] == "0"
    assert "Traceback" not in said.stderr and "BrokenPipe" not in said.stderr
    assert copy.outs() == expected


STAGE = """
import sys, time
from dvc_guard import alone
from dvc_kit.errors import main_function
@main_function
def main():
    with alone.holding("a"):
        file = open(sys.argv[1], "w")
        print("shown")
        print("as well", file=sys.stderr)
        file.write("a result")
        file.flush()
        time.sleep(float(sys.argv[2]))
main()
"""


@pytest.mark.parametrize("command", ["stage.py out 60", "-m dvc_guard mend"])
def test_ctrl_c_several_times_is_one_line(tmp_path, command):
    (tmp_path / "stage.py").write_text("import stages\n" + STAGE)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.dvc-mlflow]\nhooks = 'own'\n")
    own = "import pathlib, time\ndef check():\n  pathlib.Path('out').touch()\n  time.sleep(60)\n"
    (tmp_path / "own.py").write_text(own)
    interruptible = "import os, signal, sys; signal.signal(2, signal.default_int_handler); "
    started = f"{interruptible}os.execvp('python', ['python', *sys.argv[1:]])"
    with Clone(tmp_path).start("python", "-c", started, *command.split()) as process:
        wait_for((tmp_path / "out").exists)
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGINT
    assert re.fullmatch(r"(shown\nas well\n|as well\n|note: .*\n)*error: interrupted.*\n", errors)


def test_a_report_whose_reader_goes_ends_without_a_word(checkout, tmp_path):
    errors = tmp_path / "errors"
    (checkout.path / "untracked").touch()  # verify has a line to say before it clones
    command = f"(python -m dvc_guard verify; echo $? >&2) 2>'{errors}' | true"
    checkout.run("bash", "-c", command)
    (checkout.path / "untracked").unlink()
    assert errors.read_text(encoding="utf-8") == f"{128 + signal.SIGPIPE}\n"


# --- make install ---


def make_install(clone: Clone, *arguments: str, check: bool = True, **env: str):
    assert not (clone.path / ".venv").is_symlink()  # that of these tests is left alone
    return clone.run("make", "install", *arguments, env={"MAKEFLAGS": ""} | env, check=check)


def is_installed(clone: Clone) -> bool:
    code = "import tqdm, sys; sys.exit(sys.prefix not in tqdm.__file__)"
    command = [clone.path / ".venv/bin/python", "-c", code]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
def test_an_environment_that_worked_outlives_old_commits_failures_and_kills_offline(clone):
    nowhere = f"http://127.0.0.1:{free_port()}"
    offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": nowhere, "PIP_FIND_LINKS": ""}
    offline |= {"PIP_EXTRA_INDEX_URL": nowhere, "PIP_RETRIES": "0", "MAKEFLAGS": ""}
    venv = clone.path / ".venv"
    venv.unlink()
    shutil.copytree(sys.prefix, venv, symlinks=True, copy_function=install.link)
    (venv / ".installed").unlink(missing_ok=True)  # made by hand
    make_install(clone, **offline)

    newer = time.time() + 60
    for path in clone.path.glob("*.*"):
        os.utime(path, (newer, newer))
    (venv / ".installing").touch()  # by `make` at an older commit
    assert make_install(clone, **offline).stdout == ""

    for number in (None, signal.SIGINT, signal.SIGKILL):
        clone.edit("pyproject.toml", '"pytest==', '"pytest==1000.')
        process = clone.start("make", "install", env=offline)
        if number:
            wait_for((clone.path / ".venv.before").exists)
            [package] = venv.glob("lib/python*/site-packages/tqdm")
            shutil.rmtree(package)  # pip was about to replace it
            os.killpg(process.pid, number)
        errors = process.communicate()[1].splitlines()
        assert process.returncode
        if number != signal.SIGKILL:
            [line] = [text for text in errors if not text.startswith("make")]
            assert line.startswith("error: ") and "is as it was" in line
        clone.edit("pyproject.toml", '"pytest==1000.', '"pytest==')
        assert make_install(clone, **offline).stdout == ""
        assert is_installed(clone) and not (clone.path / ".venv.before").exists()


# --- what a user gives to make ---

GIVEN_TO = (
    *("WHAT=find", "REV=sync", "ATTEST=verify", "SCHEDULER=worker", "WORKERS=worker"),
    *("MODEL=serve", "PORT=serve", "PORT=ui", "PORT=scheduler", "ENGINE=study", "AUDIT=study"),
    *("MIRROR=repro", "VENV=attest", "PYTHON=environment", "IMAGE=predict", "FORMAT=predict"),
    *("HOST=serve", "HOST=ui", "RENDEZVOUS=join"),
)
GIVEN = 'it\'s "a" $b ${b} $(touch bad) `touch bad`; touch bad #'


@pytest.mark.parametrize("given", [GIVEN, "--all", f"{GIVEN}\ntouch bad\n"])
@pytest.mark.parametrize("in_environment", [False, True])
@pytest.mark.parametrize("given_to", GIVEN_TO)
def test_every_variable_of_make_is_data(tmp_path, given_to, in_environment, given):
    name, target = given_to.split("=")
    shutil.copy(ROOT / "Makefile", tmp_path)
    if name == "VENV":  # which is not taken from the environment, and no name of a script is --all
        in_environment, given = False, given.lstrip("-")
    if name == "HOST":  # nor is this, because tcsh and conda set it to something else
        in_environment = False
    python = tmp_path / (given if name == "VENV" else ".venv")
    (python / "bin").mkdir(parents=True)
    shown = f'#!/bin/sh\n[ "$2" = dvc ] || printf "<%s>" "$@" "${name}"\n'
    for program in ("python", "dvc"):
        (python / "bin" / program).write_text(shown, encoding="utf-8")
        (python / "bin" / program).chmod(0o755)
    others = {"ATTEST": "yes", "SCHEDULER": "there:1", "IMAGE": "-", "INSTALLED": "Makefile"}
    given_here = {name: given} if in_environment else {}
    arguments = [f"{key}={value}" for key, value in others.items() if key != name]
    arguments += [] if in_environment else [f"{name}={given}"]
    (tmp_path / "study").mkdir()
    said = Clone(tmp_path).run("make", target, *arguments, env=given_here, check=False)
    assert given in said.stdout + said.stderr
    assert not [*tmp_path.rglob("bad")]


PYTHON3 = """#!/bin/sh
exec '{real}' -c 'import sys; {lack}; exec(sys.argv[2])' "$@"
"""
MACHINES = [
    ("python3", "sys.version_info = (3, 10)", ", needed is 3.11 or newer: make PYTHON="),
    ("python3", "sys.maxsize = 2**31 - 1", " is a 32-bit Python, and PyTorch is made for 64 bits"),
    # Debian's python3 without python3-venv
    ("python3", 'sys.modules["ensurepip"] = None', "on Debian and Ubuntu, `apt install python3-ve"),
    ("python9", "", "python9 in PATH: install Python 3.11 or newer, or name one"),
    ("uname", "MINGW64_NT-10.0-26100", "on Windows this runs in WSL"),
]


@pytest.mark.parametrize(("program", "lack", "line"), MACHINES)
def test_make_install_names_a_machine_that_cannot_be_used(tmp_path, program, lack, line):
    for name in ("Makefile", "install.py"):
        shutil.copy(ROOT / name, tmp_path)
    path = tmp_path / "bin" / program
    path.parent.mkdir()
    if lack:
        text = f"#!/bin/sh\necho {lack}\n" if program == "uname" else PYTHON3
        path.write_text(text.format(real=shutil.which("python3"), lack=lack), encoding="utf-8")
        path.chmod(0o755)
    env = {"PATH": f"{path.parent}{os.pathsep}{environment()['PATH']}"}
    given = [] if program == "uname" else [f"PYTHON={path}"]
    refused = make_install(Clone(tmp_path), *given, check=False, **env)
    [told] = [text for text in refused.stderr.splitlines() if not text.startswith("make")]
    assert line in told and "pip install" not in refused.stdout
    assert not (tmp_path / ".venv").exists()
