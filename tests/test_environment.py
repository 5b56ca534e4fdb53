"""Other machines: without git, without DVC around, with pip set up otherwise, with no reader."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import install
from conftest import ROOT, Clone, environment, free_port, make_clone, wait_for
from dvc_mlflow.commands import output_of
from dvc_mlflow.errors import StageError, did_you_mean
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


# --- git ---


def test_git_s_own_reason_is_given_in_one_line(checkout, tmp_path):
    other_owner = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
    python = shutil.which("python", path=environment()["PATH"])
    cases = [
        (other_owner, "detected dubious ownership in repository"),
        (without_git(tmp_path / "bin"), "git cannot be started"),
    ]
    for env, reason in cases:
        for command in ("mend", "damage"):  # these need no git
            assert checkout.run(python, "-m", "dvc_mlflow", command, env=env).stderr == ""
        refused = checkout.run(python, "-m", "dvc_mlflow", "verify", env=env, check=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: ")
        assert reason in refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["stages.base.numerics", "dvc_mlflow.errors", "numpy", "torch"])
def test_ctrl_c_during_the_imports_is_told_in_one_line(module):
    interrupt = f"""
import _thread, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
class Interrupt:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            _thread.interrupt_main()
sys.meta_path.insert(0, Interrupt)
import stages, stages.learn.training
"""
    done = subprocess.run([sys.executable, "-c", interrupt], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "error: interrupted; `dvc repro` resumes here\n"


def test_a_python_without_the_packages_is_told_to_be_the_wrong_one(checkout):
    python = shutil.which("python", path=environment()["PATH"])
    done = checkout.run(python, "-S", "-m", "stages.prepare", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "has no torch: activate the project's environment first (`. .venv" in done.stderr


def test_a_target_that_there_is_not_is_told_in_one_line(checkout):
    said = checkout.run("make", "train", check=False).stderr.splitlines()
    assert said[0] == "error: there is no target train: `make` lists those that there are"


def test_a_command_that_fails_says_why_itself(tmp_path):
    with pytest.raises(StageError, match=r"^`git rev-parse HEAD`: fatal: .*not a git repository"):
        output_of(["git", "rev-parse", "HEAD"], tmp_path)


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
    assert clone.run("python", "-m", "dvc_mlflow", "mend").stdout == ""  # said once
    assert clone.run("python", "-m", "dvc_mlflow", "damage").stderr == ""

    refused = clone.run("python", "-m", "dvc_mlflow", "verify", check=False)
    assert refused.stderr.startswith("error: the last commit is verified, and this is no git rep")
    assert refused.stderr.count("\n") == 1

    path = clone.path / files.METRICS
    before = path.read_bytes()
    path.write_bytes(before + b" ")
    found = clone.run("python", "-m", "dvc_mlflow", "damage", check=False).stderr
    clone.run("sh", "-c", found.split("`")[1])
    assert path.read_bytes() == before


# --- a stage that DVC did not start ---


@pytest.mark.slow
def test_a_stage_started_by_hand_says_that_dvc_will_not_know(copy):
    for command in (["-m", "stages.train", "mlp"], ["stages/train.py", "mlp"]):
        said = copy.run("python", *command, env={"PYTHONPATH": str(copy.path)}).stderr.splitlines()
        assert said[0].startswith("note: DVC did not start this and will not know of its results")
        assert "`dvc repro train_mlp`" in said[0]
    assert "note: " not in copy.run("dvc", "repro", "--force", "train_mlp").stderr
    cell = copy.run("python", "-m", "study.cell", "documented", "mlp", "7").stderr
    assert "`(cd study && dvc repro cell@documented-mlp-7)`" in cell


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["stages/plot", "stages/evaluate", "stages/prepare", "study/cell"]
)
def test_a_script_named_by_its_path_is_the_same_as_its_module(checkout, script):
    """These import NumPy before anything of ours."""
    env = {"PYTHONPATH": str(checkout.path)}
    path = checkout.path / "params.yaml"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("threads: 1", "threads: 0"), encoding="utf-8")
    given = ["documented", "mlp", "0"] if script == "study/cell" else []
    try:
        by_path = checkout.run("python", f"{script}.py", *given, env=env, check=False)
        module = script.replace("/", ".")
        by_name = checkout.run("python", "-m", module, *given, check=False)
    finally:
        path.write_text(before, encoding="utf-8")
    assert by_path.stderr == by_name.stderr
    assert "threads is 0, expected" in by_path.stderr


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
import sys, time, dvc_mlflow
from dvc_mlflow.errors import main_function
@main_function
def main():
    with dvc_mlflow.run("a"):
        file = open(sys.argv[1], "w")
        print("shown")
        print("as well", file=sys.stderr)
        file.write("a result")
        file.flush()
        time.sleep(float(sys.argv[2]))
main()
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", ">/dev/full"])
@pytest.mark.parametrize("of_stages", ["", "import stages\n"])
def test_a_stage_whose_streams_are_closed_computes_its_result(tmp_path, closed, of_stages):
    (tmp_path / "stage.py").write_text(of_stages + STAGE)
    done = Clone(tmp_path).run("sh", "-c", f"python stage.py out 0 {closed}")
    assert (tmp_path / "out").read_text() == "a result"
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["stage.py out 60", "-m dvc_mlflow mend"])
@pytest.mark.parametrize("of_stages", ["", "import stages\n"])
def test_ctrl_c_several_times_is_one_line(tmp_path, command, of_stages):
    (tmp_path / "stage.py").write_text(of_stages + STAGE)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.dvc-mlflow]\nhooks = 'own'\n")
    own = "import pathlib, time\ndef check():\n  pathlib.Path('out').touch()\n  time.sleep(60)\n"
    (tmp_path / "own.py").write_text(of_stages + own)
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


def test_a_reader_gets_each_line_of_a_stage_while_the_stage_runs():
    says_and_waits = "outlive_readers(); print('epoch 1'); sys.stdin.read()"
    command = f"import sys; from dvc_mlflow.errors import outlive_readers; {says_and_waits}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", command], **pipes) as process:
        readable, _, _ = select.select([process.stdout], [], [], 30)
        said = process.stdout.read1() if readable else b""
        process.stdin.close()
    assert said == b"epoch 1\n"


def test_a_report_whose_reader_goes_ends_without_a_word(checkout, tmp_path):
    errors = tmp_path / "errors"
    (checkout.path / "untracked").touch()  # verify has a line to say before it clones
    command = f"(python -m dvc_mlflow verify; echo $? >&2) 2>'{errors}' | true"
    checkout.run("bash", "-c", command)
    (checkout.path / "untracked").unlink()
    assert errors.read_text(encoding="utf-8") == f"{128 + signal.SIGPIPE}\n"


@pytest.mark.slow
def test_verify_whose_reader_goes_stops_what_it_started(checkout):
    process = subprocess.Popen(
        ["bash", "-c", "python -m dvc_mlflow verify | head -n 1"],
        cwd=checkout.path,
        env=environment({"TMPDIR": str(checkout.path.parent)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, errors = process.communicate(timeout=120)
    assert output.startswith("Running stage 'prepare'")
    assert errors == ""
    wait_for(lambda: not list(checkout.path.parent.glob("verify-*")))


# --- params.yaml ---


def test_the_nearest_name_is_suggested_and_a_distant_one_is_not():
    assert did_you_mean("publishd", ["documented", "published"]) == "; did you mean published?"
    assert did_you_mean(7, ["documented", "published"]) == ""


# --- make install ---


def shrink(clone: Clone) -> None:
    """One small package is all that the project needs, and its environment is not made yet."""
    (clone.path / ".venv").unlink()
    libraries = clone.path / "requirements/compute.txt"
    [tqdm] = re.findall(r"(?m)^tqdm==.*$", libraries.read_text(encoding="utf-8"))
    libraries.write_text(f"{tqdm}\n", encoding="utf-8")
    (clone.path / "requirements/figures.txt").write_text("", encoding="utf-8")
    path = clone.path / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\ndev = \[.*?\n\]", "\ndev = []", text, flags=re.S)
    path.write_text(text, encoding="utf-8")


def make_install(clone: Clone, *arguments: str, check: bool = True, **env: str):
    assert not (clone.path / ".venv").is_symlink()  # that of these tests is left alone
    return clone.run("make", "install", *arguments, env={"MAKEFLAGS": ""} | env, check=check)


def is_installed(clone: Clone) -> bool:
    code = "import tqdm, sys; sys.exit(sys.prefix not in tqdm.__file__)"
    command = [clone.path / ".venv/bin/python", "-c", code]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.weekly
@pytest.mark.slow
def test_make_install_takes_back_pip_s_settings_of_another_place(clone, tmp_path):
    shrink(clone)
    (tmp_path / "pip.conf").write_text("[global]\nuser = true\n", encoding="utf-8")
    env = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_USER": "1"}
    env |= {"PIP_REQUIRE_VIRTUALENV": "1", "PIP_NO_DEPS": "1"}
    env |= {f"PIP_{place}": str(tmp_path / place) for place in ("TARGET", "PREFIX", "ROOT")}
    make_install(clone, **env)
    assert is_installed(clone)
    assert not [place for place in ("TARGET", "PREFIX", "ROOT") if (tmp_path / place).exists()]

    (tmp_path / "pip.conf").write_text("[install]\nprefix = elsewhere\n", encoding="utf-8")
    (clone.path / ".venv/.installed").unlink()
    refused = make_install(clone, check=False, PIP_CONFIG_FILE=str(tmp_path / "pip.conf"))
    assert "error: pip's setting install.prefix='elsewhere' puts packages" in refused.stderr


@pytest.mark.weekly
@pytest.mark.slow
def test_make_install_begins_a_half_made_environment_anew(clone):
    shrink(clone)
    process = clone.start("make", "install", env={"MAKEFLAGS": ""})
    wait_for(lambda: (clone.path / ".venv/.installing").exists())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert "is begun anew" in make_install(clone).stdout
    assert is_installed(clone)
    assert make_install(clone).stdout == ""

    # Half a package, which pip takes for a whole one
    [package] = clone.path.glob(".venv/lib/python*/site-packages/tqdm")
    shutil.rmtree(package)
    (clone.path / ".venv/.installed").rename(clone.path / ".venv/.installing")
    make_install(clone)
    assert is_installed(clone)


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
    assert not (venv / ".installing").exists()

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
    *("WHAT=find", "REV=sync", "KEY=verify", "ATTEST=verify", "SCHEDULER=worker", "WORKERS=worker"),
    *("MODEL=serve", "PORT=serve", "PORT=ui", "PORT=scheduler", "ENGINE=study", "AUDIT=study"),
    *("MIRROR=repro", "VENV=attest", "PYTHON=environment"),
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
    python = tmp_path / (given if name == "VENV" else ".venv")
    (python / "bin").mkdir(parents=True)
    shown = f'#!/bin/sh\n[ "$2" = dvc ] || printf "<%s>" "$@" "${name}"\n'
    for program in ("python", "dvc"):
        (python / "bin" / program).write_text(shown, encoding="utf-8")
        (python / "bin" / program).chmod(0o755)
    others = {"ATTEST": "yes", "SCHEDULER": "there:1", "INSTALLED": "Makefile"}
    given_here = {name: given} if in_environment else {}
    arguments = [f"{key}={value}" for key, value in others.items() if key != name]
    arguments += [] if in_environment else [f"{name}={given}"]
    (tmp_path / "study").mkdir()
    said = Clone(tmp_path).run("make", target, *arguments, env=given_here, check=False)
    assert given in said.stdout + said.stderr
    assert not [*tmp_path.rglob("bad")]


def test_make_install_names_a_machine_that_cannot_be_used(clone, tmp_path):
    (clone.path / ".venv").unlink()

    def refusal(*arguments: str, **env: str) -> str:
        refused = make_install(clone, *arguments, check=False, **env)
        [line] = [text for text in refused.stderr.splitlines() if not text.startswith("make")]
        assert "pip install" not in refused.stdout
        return line

    cases = [
        ("sys.version_info = (3, 10)", ", needed is 3.11 or newer: make PYTHON="),
        ("sys.maxsize = 2**31 - 1", " is a 32-bit Python, and PyTorch is made for 64 bits only"),
        # Debian's python3 without python3-venv
        (
            'sys.modules["ensurepip"] = None',
            "its module venv or ensurepip is missing: on Debian and Ubuntu, `apt inst",
        ),
    ]
    python = tmp_path / "python3"
    for lack, line in cases:
        python.write_text(
            f"#!/bin/sh\nexec '{shutil.which('python3')}' -c "
            f"'import sys; {lack}; exec(sys.argv[2])' \"$@\"\n",
            encoding="utf-8",
        )
        python.chmod(0o755)
        assert line in refusal(f"PYTHON={python}")
    absent = refusal(f"PYTHON={tmp_path}/python9")
    assert "python9 in PATH: install Python 3.11 or newer, or name one" in absent

    uname = tmp_path / "uname"
    for system in ("MINGW64_NT-10.0-26100", "MSYS_NT-10.0-26100", "CYGWIN_NT-10.0-26100"):
        uname.write_text(f"#!/bin/sh\necho {system}\n", encoding="utf-8")
        uname.chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{environment()['PATH']}"
        assert "on Windows this runs in WSL" in refusal(PATH=path)
    assert not (clone.path / ".venv").exists()
