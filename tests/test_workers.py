"""Any number of workers: real processes, and namespaces as machines."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from machines import Host, connected
from shared import trained

from conftest import Clone, flip_bit, free_port, make_clone, missing, qemu, wait_for, weekly
from dvc_kit.errors import InputError
from dvc_kit.files import md5
from stages.learn import launch

slow = pytest.mark.slow
rare = [slow, pytest.mark.weekly]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same by one process, computed once."""
    known = {}

    def of(model: str, recipe: str) -> list:
        if (model, recipe) not in known:
            folder = tmp_path_factory.mktemp("alone")
            [known[model, recipe]] = trained(folder, model, recipe, [1])
        return known[model, recipe]

    return of


@pytest.mark.parametrize(
    ("model", "recipe", "threads"),
    [
        ("mlp", "plain", [1, 2]),
        pytest.param("lenet5", "full", [2, 1, 3], marks=slow),
        pytest.param("mlp", "taught", [3, 1, 1], marks=slow),
        pytest.param("lenet5", "taught", [1, 2], marks=rare),
        pytest.param("mlp", "full", [1, 4, 1, 1, 2], marks=rare),
        pytest.param("lenet5", "full", [1, 9, 1, 2, 1, 1, 5], marks=rare),
        pytest.param("lenet5", "plain", [9, 1, 1, 1, 1], marks=rare),
    ],
)
def test_workers_compute_the_bits_of_one_process(tmp_path, alone, model, recipe, threads):
    for found in trained(tmp_path, model, recipe, threads):
        assert found == alone(model, recipe)


@slow
@pytest.mark.parametrize("before", [["env", "KERNELS=off"], *weekly(["Nehalem"])])
def test_a_worker_without_kernels_or_avx_beside_one_with_them_changes_no_bit(
    tmp_path, alone, before
):
    other = qemu(*before) if len(before) == 1 else before
    for found in trained(tmp_path, "lenet5", "plain", [3, 1], {1: other}):
        assert found == alone("lenet5", "plain")


# --- a stage, and torchrun's agents ---

EPOCHS = 6
CHECKPOINT = ".dvc/tmp/stages/train_mlp.pt"
RESULTS = ("models/mlp.safetensors", "reports/train_mlp.json", "reports/history_mlp.csv")


def results(clone: Clone) -> list[str]:
    return [md5(clone.path / name) for name in RESULTS]


def start(clone: Clone, *before: str, **environment: str) -> subprocess.Popen:
    """The training, as DVC starts it."""
    return clone.start(*before, sys.executable, "-m", "stages.train", "mlp", env=environment)


def ended(process: subprocess.Popen, code: int = 0) -> str:
    said, errors = process.communicate(timeout=600)
    assert process.returncode == code, said + errors
    assert "Traceback" not in errors
    return said + errors


@pytest.fixture(scope="module")
def made(raw, tmp_path_factory):
    """A clone in which only the images are prepared, and the results of one process."""
    clone = make_clone(tmp_path_factory.mktemp("home") / "home")
    clone.make_small()
    clone.edit("params.yaml", "threads: 0", "threads: 2")
    clone.edit("recipes.yaml", "epochs: 2", f"epochs: {EPOCHS}", count=-1)
    clone.commit("short epochs")
    clone.run("dvc", "repro", "--quiet", "prepare")
    ended(start(clone))
    return clone, results(clone)


@pytest.fixture
def home(made):
    clone, _ = made
    for name in RESULTS:
        (clone.path / name).unlink(missing_ok=True)
    yield clone
    clone.run("git", "checkout", "--", "recipes.yaml")
    (clone.path / CHECKPOINT).unlink(missing_ok=True)


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """Those that an agent has started, the first one first."""
    found = psutil.Process(process.pid).children(recursive=True)
    found = [one for one in found if "TORCHELASTIC_RUN_ID" in one.environ()]
    return sorted(found, key=lambda one: int(one.environ()["LOCAL_RANK"]))


@slow
@pytest.mark.parametrize("at", [0, *weekly(1)])
def test_a_killed_worker_costs_an_epoch_at_most(made, home, at):
    process = start(home, WORKERS="3")
    wait_for((home.path / CHECKPOINT).is_file, 300)
    workers_of(process)[at].kill()
    [resumed] = re.findall(r"resumes after epoch (\d) of", ended(process))
    assert 1 <= int(resumed) < EPOCHS
    assert results(home) == made[1]
    assert not (home.path / CHECKPOINT).exists()


@slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, *weekly(signal.SIGINT, signal.SIGTERM)])
def test_workers_end_with_the_process_that_dvc_has_started(made, home, sent):
    process = start(home, WORKERS="2")
    wait_for((home.path / CHECKPOINT).is_file, 300)
    workers = workers_of(process)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    if sent == signal.SIGINT:
        assert errors.splitlines()[-1] == "error: interrupted; `dvc repro` resumes here"
    assert process.returncode and "Traceback" not in errors
    assert "resumes after epoch" in ended(start(home, WORKERS="2"))
    assert results(home) == made[1]


@slow
def test_an_error_of_the_workers_is_one_line_and_ends_all(home):
    home.edit("recipes.yaml", "learning_rate: 0.01", "learning_rate: 1.0e+30", count=-1)
    said = ended(start(home, WORKERS="2"), 1)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "no model is written" in errors[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORKERS", value) for value in ("0", "-1", "65", "two", "²")]
    + [("RENDEZVOUS", value) for value in ("here", ":1", "here:", "a:99999", "192.0.2.1:4")],
)
def test_what_is_asked_for_is_checked(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name} is {re.escape(value)}, [^\n]*$"):
        launch.train("mlp")


@pytest.fixture
def machines(home, tmp_path):
    """Two machines, connected by a cable. The second one has another number of cores."""
    if os.geteuid() or not shutil.which("ip", path="/usr/sbin:/usr/bin"):
        missing("namespaces need root and iproute2")
    shutil.copytree(home.path, tmp_path / "b", symlinks=True)
    other = Clone(tmp_path / "b")
    other.edit("params.yaml", "threads: 2", "threads: 3")
    with connected(home, other) as both:
        yield both


def lengthen(machines: list[Host], epochs: int) -> list[str]:
    """Let a training have so many epochs; the results of one process."""
    for machine in machines:
        machine.clone.edit("recipes.yaml", f"epochs: {EPOCHS}", f"epochs: {epochs}", count=-1)
    ended(start(machines[0].clone))
    expected = results(machines[0].clone)
    for name in RESULTS:
        (machines[0].clone.path / name).unlink()
    return expected


def rendezvous() -> dict[str, str]:
    return {"RENDEZVOUS": f"10.9.0.1:{free_port()}"}


@slow
def test_a_machine_waits_for_home_and_the_network_stops_for_20_s(machines):
    home, other = machines
    where, expected = rendezvous(), lengthen(machines, 60)
    joined = other.join(**where)  # and waits
    process = start(home.clone, *home.inside, WORKERS="2", **where)
    wait_for((home.clone.path / CHECKPOINT).is_file, 300)
    assert len(workers_of(joined)) == 1
    other.link("down")
    time.sleep(20)
    other.link("up")
    said = ended(process)
    assert results(home.clone) == expected
    assert "a worker does not answer; they are on wa, wb" in said and "resumes" not in said
    assert "3 workers, 5 threads, on wa, wb" in said
    joined.send_signal(signal.SIGINT)
    heard = ended(joined, -signal.SIGINT)
    assert heard.count(f"waits for `make repro RENDEZVOUS={where['RENDEZVOUS']}`") >= 1
    assert "3 workers, " in heard and heard.endswith("error: interrupted\n")


@slow
@pytest.mark.weekly
def test_a_machine_joins_later_and_is_switched_off(machines):
    home, other = machines
    where, log = rendezvous(), home.clone.path / "said.log"
    expected = lengthen(machines, 300)
    shell = ["sh", "-c", f'exec "$@" >{log.name}', "sh"]
    process = start(home.clone, *home.inside, *shell, **where)
    wait_for((home.clone.path / CHECKPOINT).is_file, 300)
    joined = other.join(**where)
    wait_for(lambda: "\nepoch" in log.read_text("utf-8").split("2 workers, 5 threads")[1], 300)
    for one in [*workers_of(joined), psutil.Process(joined.pid)]:
        one.kill()
    ended(process)
    assert results(home.clone) == expected
    groups = re.findall(r"(\d) workers, (\d) threads, on", log.read_text("utf-8"))
    assert groups == [("1", "2"), ("2", "5"), ("1", "2")]


@slow
@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("stages/learn/average.py", '"""', '"""Other. ', "other code than wa: check out the same"),
        ("data", "", "", "other images than wa: `dvc repro prepare` there"),
    ],
)
def test_a_machine_with_something_else_is_named_and_left_out(made, machines, file, old, new, said):
    home, other = machines
    if file == "data":
        flip_bit(other.clone.path / "data/prepared/train.safetensors")
    else:
        other.clone.edit(file, old, new)
    where = rendezvous()
    joined = other.join(**where)
    process = start(home.clone, *home.inside, **where)
    assert f"error: the worker on wb has {said}" in ended(joined, 1)
    assert f"warning: the worker on wb has {said}" in ended(process)
    assert results(home.clone) == made[1]
