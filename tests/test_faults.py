"""What is killed, cut, flipped, filled up or run twice: nothing is lost, the bytes are the same.

Each fault is injected for real. What DVC alone does about it is asserted too, where that is what
the protection is for.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tiny import make_project

from conftest import ROOT, STAGES, Clone, flip_bit, make_clone, missing, wait_for, weekly
from dvc_guard import alone
from dvc_kit.files import md5
from stages.base import files

pytestmark = pytest.mark.slow
TRAINER = alone.FOLDER / "train_mlp.pt"


def namespace(*flags: str) -> list[str]:
    """The command that runs another in namespaces of its own."""
    command = ["unshare", "--map-root-user", *flags]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        missing("unshare may not make namespaces here")
    return command


def make_long(clone: Clone) -> None:
    """A training of the MLP that goes on until something happens to it, or for half a minute."""
    clone.edit("recipes.yaml", "epochs: 2", "epochs: 3000", count=-1)


def start_training(clone: Clone, *command: str) -> subprocess.Popen[str]:
    """Start a training and wait until it has finished some epochs."""
    process = clone.start(*(command or ("dvc", "repro", "train_mlp")))
    wait_for(lambda: (clone.path / TRAINER).exists() or process.poll() is not None)
    time.sleep(0.3)
    assert process.poll() is None, process.communicate()
    return process


def trainers(clone: Clone) -> list[psutil.Process]:
    """The processes that train in a clone."""
    every = [*psutil.process_iter(["cmdline", "cwd"])]
    here = [one for one in every if one.info["cwd"] == str(clone.path)]
    return [one for one in here if "stages.train" in (one.info["cmdline"] or ())]


def finish(clone: Clone) -> str:
    """Let the long training go on, by an end that comes sooner; what it says. It would come out of
    the run cache otherwise."""
    clone.edit("recipes.yaml", "epochs: 3000", "epochs: 2", count=-1)
    return clone.run("dvc", "repro", "--force", "--no-run-cache", "train_mlp").stdout


# --- killed ---


@pytest.mark.parametrize("sent", [signal.SIGKILL, *weekly(signal.SIGTERM, signal.SIGINT)])
def test_a_training_whose_process_group_is_killed_goes_on_where_it_was(copy, sent):
    copy.commit("small")
    copy.edit("recipes.yaml", "epochs: 2", "epochs: 60", count=-1)
    process = start_training(copy)
    os.killpg(process.pid, sent)
    _, errors = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in errors
    if sent == signal.SIGINT:
        assert "error: interrupted; `dvc repro` resumes here" in errors
    assert not (copy.path / files.model_path("mlp")).exists()  # DVC removes it first

    again = copy.run("dvc", "repro", "train_mlp").stdout
    assert "train_mlp resumes after epoch " in again
    assert not (copy.path / TRAINER).exists()
    interrupted = md5(copy.path / files.model_path("mlp"))
    copy.run("dvc", "repro", "--force", "--no-run-cache", "--single-item", "train_mlp")
    assert md5(copy.path / files.model_path("mlp")) == interrupted


def test_a_trainer_ends_soon_after_its_dvc_and_the_next_dvc_repro_waits_for_that(copy):
    expected = copy.outs()
    make_long(copy)
    process = start_training(copy)
    [left] = trainers(copy)
    process.kill()
    process.wait()
    assert left.is_running()  # what DVC alone leaves behind
    assert "Running stage 'train_mlp'" in finish(copy)
    assert copy.outs() == expected
    assert not left.is_running()


# --- twice at once ---


def test_a_second_trainer_of_a_stage_is_refused_in_one_line(copy):
    make_long(copy)
    process = start_training(copy)
    direct = copy.run("python", "-m", "stages.train", "mlp", check=False)
    assert direct.returncode == 4
    assert direct.stderr == (
        "error: train_mlp already runs in this folder, started by another command: wait for it\n"
    )
    # DVC refuses by itself, as long as it can see the other's process
    assert "is busy" in copy.run("dvc", "repro", "train_mlp", check=False).stderr
    apart = copy.run(*namespace("--pid", "--fork", "--mount-proc"), "dvc", "repro", "train_mlp",
                     check=False)  # fmt: skip
    assert "had been killed. Auto removed it" in apart.stderr
    assert "error: train_mlp already runs in this folder" in apart.stderr
    assert process.poll() is None
    assert len(trainers(copy)) == 1
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


# --- torn ---


def test_a_torn_rwlock_stops_every_dvc_command_and_make_repro_removes_it(copy):
    (copy.path / ".dvc/tmp/rwlock").write_text('{"write": {"', encoding="utf-8")
    assert "JSON structure is corrupted" in copy.run("dvc", "repro", check=False).stderr
    said = copy.run("make", "repro", "INSTALLED=params.yaml").stdout
    assert ".dvc/tmp/rwlock could not be read; it is removed" in said
    assert "up to date" in said


@pytest.mark.parametrize("share", [0.6, *weekly(0.0, 0.3, 0.95)])
@pytest.mark.parametrize("kept", [True, False])
def test_a_torn_dvc_lock_is_taken_back(copy, share, kept):
    copy.commit("small")
    path = copy.path / "dvc.lock"
    content = path.read_bytes()
    if not kept:
        shutil.rmtree(copy.path / alone.FOLDER)
    path.write_bytes(content[: int(share * len(content))])
    if not share:  # what DVC leaves when it is killed between emptying and writing it
        refused = copy.run("dvc", "repro", check=False)
        assert "'./dvc.lock' validation failed" in refused.stderr
    said = copy.run("python", "-m", "dvc_guard", "mend").stdout
    origin = "from before its last stage began" if kept else "of the last commit"
    assert said == f"dvc.lock could not be read; it is the one {origin} now\n"
    # What the copy from before the last stage lacks, that stage is run for again
    copy.run("dvc", "repro")
    assert path.read_bytes() == content


def test_make_repro_mends_first_and_a_failed_sync_costs_nothing(tmp_path):
    project = make_project(tmp_path / "project")
    shutil.copy(ROOT / "Makefile", project.path)
    (project.path / ".venv").symlink_to(sys.prefix)
    (project.path / "dvc.lock").write_text("torn", encoding="utf-8")
    nowhere = {"MIRROR": "on", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    installed = ["-o", "installed", "-o", ".venv/.installed"]
    ended = project.run("make", *installed, "repro", env=nowhere)
    assert "dvc.lock could not be read; it is the one of the last commit now" in ended.stdout
    assert "127.0.0.1:9" in ended.stderr and "# Comparison 0" in ended.stdout


# --- damaged ---


def cures(text: str) -> list[str]:
    """The commands that a report gives."""
    return [line.split("`")[1] for line in text.splitlines() if "`" in line]


def test_a_flipped_bit_here_in_the_cache_or_in_a_remote_is_found_and_the_cure_works(copy, tmp_path):
    copy.commit("small")
    copy.run("dvc", "remote", "add", "--default", "--local", "store", str(tmp_path / "a store"))
    copy.run("dvc", "push")
    assert copy.repro() == []
    path = copy.path / files.model_path("mlp")
    before, times = path.read_bytes(), path.stat()
    flip_bit(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "up to date" in copy.run("dvc", "repro").stdout  # DVC looks at size and time
    [cure] = cures(copy.run("python", "-m", "dvc_guard", "damage", check=False).stderr)
    copy.run("sh", "-c", cure)
    assert path.read_bytes() == before
    # Of prepared five and its listing, two models, two predictions; for the run cache, the four
    # small results of the trainings, which are not pushed
    for store, count in (copy.path / ".dvc/cache", 10 + 4), (tmp_path / "a store", 10):
        objects = [path for path in (store / "files/md5").rglob("*") if path.is_file()]
        assert len(objects) == count
        for path in sorted(objects, key=lambda path: path.suffix):  # the listing last
            if path.suffix == ".dir":
                # DVC says that all is well
                assert "up to date" in copy.run("dvc", "repro").stdout
            flip_bit(path)
            path.chmod(0o444)
        found = copy.run("python", "-m", "dvc_guard", "damage", check=False)
        assert found.returncode == 1
        for stage in ("prepare", "train_lenet5", "train_mlp", "evaluate"):
            assert f"of stage {stage})" in found.stderr
        while found.returncode:  # a damaged listing hides what it lists
            for command in cures(found.stderr):
                copy.run("sh", "-c", command)
            found = copy.run("python", "-m", "dvc_guard", "damage", check=False)
        assert found.stderr == ""


# --- a disk that is full or read-only ---


@pytest.mark.parametrize(
    ("limit", "stage", "half", "line"),
    [
        ("mount -t tmpfs -o size=64k none models", "train_mlp", "models/mlp*", "No space left on"),
        # KiB: less than a prepared split has
        ("ulimit -f 500", "prepare", "data/prepared/.*tmp", "File too large"),
    ],
)
def test_a_disk_that_takes_no_more_leaves_no_half_written_out(copy, limit, stage, half, line):
    expected = copy.outs()
    repro = f"dvc repro --force --no-run-cache --single-item {stage}"
    command = f"{limit} && ! {repro} && ! ls {half} 2>&-"
    result = copy.run(*namespace("--mount"), "bash", "-c", command)
    assert f"cannot be written ({line}" in result.stderr
    assert "Traceback" not in result.stderr
    copy.run("dvc", "repro")
    assert copy.outs() == expected


def test_a_read_only_checkout_is_refused_in_one_line(copy):
    expected = copy.outs()
    readonly = 'mount --bind . . && mount -o remount,ro,bind . && cd "$PWD" && '

    def run(command: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        return copy.run(*namespace("--mount"), "sh", "-c", f"{readonly}{command}", check=check)

    result = run("python -m stages.train mlp")
    assert result.returncode == 3
    assert "cannot be written (Read-only file system)" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "unexpected error" in run("dvc repro --force train_mlp").stderr  # DVC alone
    by_make = run("make repro INSTALLED=params.yaml")
    assert by_make.stderr.startswith("error: .dvc/tmp cannot be written (Read-only file system)")
    run("python -m dvc_guard damage", check=True)  # has nothing to write here
    assert copy.outs() == expected


# --- surroundings ---


def test_any_path_and_the_c_locale_without_utf8_give_the_same_outs(small_run, raw, tmp_path):
    clone = make_clone(tmp_path / 'it\'s "mine" $HOME 漢字 ünï')
    clone.make_small()
    surroundings = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    surroundings |= {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "HOME": str(tmp_path)}
    # DVC alone cannot: it needs UTF-8 for such a path, which the Makefile switches on
    assert "can't encode" in clone.run("dvc", "repro", env=surroundings, check=False).stderr
    make = ["taskset", "--cpu-list", "0", "make", "repro", "INSTALLED=params.yaml"]
    old_umask = os.umask(0o077)
    try:
        said = clone.run(*make, env=surroundings).stdout
    finally:
        os.umask(old_umask)
    assert said.count("Running stage") == len(STAGES)
    assert clone.outs() == small_run.outs()
    locks = [(one.path / "dvc.lock").read_bytes() for one in (clone, small_run)]
    assert locks[0] == locks[1]
