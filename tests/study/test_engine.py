"""The study on many machines: the same bytes, whatever happens to them."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from socket import gethostname

import pytest
from machines import (
    CELLS,
    Computed,
    Machine,
    compute,
    ended,
    make_machine,
    scheduler,
    slurm,
    study,
)

from conftest import Clone, missing, wait_for
from dvc_kit.errors import InputError
from study import engine, inspection, places

slow = pytest.mark.slow


# --- in a moment ---


EPOCHS = {"epoch": [1, 2, 3]}
CELL = {
    "test_loss": 0.1,
    "errors": {"index": [3]},
    "history": EPOCHS | {"train_loss": [0.3, 0.2, 0.1]},
    "sha256": ["weights ab", "outputs cd"],
}


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {"history": EPOCHS | {"train_loss": [0.3, 0.2, 0.15]}},
            "from epoch 3 on, in train_loss: [0.1] and ",
        ),
        ({"history": EPOCHS | {"train_loss": [0.3]}}, "from epoch 2 on, in train_loss: [0.2]"),
        ({"sha256": ["weights ae", "outputs cd"]}, "in the weights after the last epoch, or in"),
        ({"test_loss": 0.2, "errors": {}}, "in errors"),
    ],
)
def test_the_place_where_two_files_of_a_cell_begin_to_differ_is_named(changed, line):
    cells = [json.dumps(cell).encode() for cell in (CELL, CELL | changed)]
    assert inspection.first_difference(*cells).startswith(line)


@pytest.mark.parametrize("given", ["-0.1", "1.1", "nan", "5 %", "x"])
def test_an_audit_that_is_no_share_is_refused(given, monkeypatch):
    monkeypatch.setenv("AUDIT", given)
    with pytest.raises(InputError, match=f"AUDIT is {re.escape(given)}, expected a share"):
        engine.read_audit()


@pytest.mark.parametrize("given", ["ray", "dask://", "dask://host", "slurm:", "slurm:x", "local:0"])
def test_an_engine_that_there_is_not_is_refused_with_those_that_there_are(given):
    with pytest.raises(InputError, match=f"ENGINE is {given}, expected local, local:CORES, dask:"):
        places.open_place(given, 1)


# --- on real machines ---


@dataclass
class Network:
    """The study at home, and two machines with a scheduler between them."""

    study: Computed
    machines: list[Machine]
    port: str

    @property
    def home(self) -> Clone:
        return self.study.home

    def start(self, number: int, *before: str) -> None:
        self.machines[number].start(self.port, *before)

    def command(self, audit: float = 0) -> subprocess.Popen[str]:
        """`python -m study.engine` at home."""
        return study(self.home, f"dask://127.0.0.1:{self.port}", audit)

    def came(self) -> int:
        return sum(path.exists() for path in self.study.cells)

    def kept(self) -> int:
        """How many cells DVC's run cache has."""
        entries = (self.home.path / ".dvc/cache/runs").glob("*/*/*")
        return sum(not entry.suffix for entry in entries)  # one that is being written has a suffix

    def is_locked(self) -> bool:
        return self.study.lock_here != self.study.empty


@pytest.fixture(scope="module")
def computed(raw, tmp_path_factory):
    return compute(tmp_path_factory.mktemp("study") / "home")


@pytest.fixture(scope="module")
def network(computed, tmp_path_factory):
    has_packages()
    folder = tmp_path_factory.mktemp("network")
    computed.forget()
    machines = [make_machine(computed.home, folder / name) for name in ("machine 1", "machine 2")]
    with scheduler(folder) as port:
        yield Network(computed, machines, port)


def has_packages() -> None:
    try:
        import dask_jobqueue  # noqa: F401
        import distributed  # noqa: F401
    except ImportError:
        missing("Dask is not installed: pip install -c constraints.txt -e '.[engines]'")


@pytest.fixture
def idle(network):
    """The network with no worker, and no cell computed."""
    network.study.forget()
    yield network
    for machine in network.machines:
        machine.stop()
        machine.clone.run("git", "checkout", "--quiet", "--force", "main")
        machine.clone.run("git", "clean", "--quiet", "-fd")


@slow
def test_what_came_is_kept_through_kills(idle):
    """A worker is killed, another one joins, then the coordinator is killed."""
    idle.start(0, "taskset", "-c", "0")
    first = idle.command()
    idle.machines[0].kill_worker()
    idle.start(1)  # a laptop that joins later
    wait_for(lambda: idle.kept() >= 2, 600)
    os.killpg(first.pid, signal.SIGKILL)
    said, _ = first.communicate()
    before = {line.split()[1] for line in said.splitlines() if line.startswith("[")}
    assert not idle.is_locked()

    said = ended(idle.command())
    came = [line.split()[1] for line in said.splitlines() if line.startswith("[")]
    kept = CELLS - len(came)
    assert kept >= 2 and f"missing cells of the study: {len(came)};" in said
    assert len(came) == len({*came}) and not before & {*came}
    assert idle.study.lock_here == idle.study.lock
    # DVC has taken all over: nothing is left to do, and its run cache restores all cells
    assert ended(idle.command()) == ""
    (idle.home.path / "study/dvc.lock").write_bytes(idle.study.empty)
    first, second, *_ = idle.study.cells
    first.unlink()
    second.write_text("another")
    assert "missing" not in ended(idle.command())
    assert idle.study.lock_here == idle.study.lock
    assert {path: path.read_bytes() for path in idle.study.cells} == idle.study.cells


@slow
def test_a_worker_with_one_wrong_bit_is_named_and_its_cells_are_computed_elsewhere(idle):
    idle.start(0)
    idle.start(1, "env", "WRONG_BIT=1")
    said = ended(idle.command(audit=0.3), code=1)
    wrong = str(idle.machines[1].clone.path)
    [named] = [
        line for line in said.splitlines() if "gets no more orders" in line and "error" not in line
    ]
    assert f":{wrong} gets no more orders: its " in named
    assert re.search(r" differs from that of .* from epoch [12] on, in train_", named)
    assert str(idle.machines[0].clone.path) not in named.partition("differs")[0]
    assert said.splitlines()[-1].startswith("error: all cells are there, but: ")
    assert idle.study.lock_here == idle.study.lock


@slow
def test_a_worker_that_is_not_fit_is_named_with_the_cure_and_no_cell_is_lost(idle):
    """Its clone is one commit behind. See test_worker.py for the other reasons."""
    clone = idle.machines[0].clone
    clone.run("git", "checkout", "--quiet", "HEAD~1")
    idle.start(0)
    said = ended(idle.command(), code=1)
    assert f"error: no worker is left. {gethostname()}:{clone.path} gets no more orders: " in said
    assert "its clone has commit " in said
    assert not idle.is_locked() and not idle.came()


@slow
def test_a_rung_of_the_search_comes_to_the_same_table_on_another_machine(idle):
    table = idle.home.path / "study/search/mlp-1.csv"

    def rung(engine: str) -> tuple[str, bytes]:
        own = {"ENGINE": engine, "PYTHONPATH": str(idle.home.path)}
        said = ended(idle.home.start("python", "-m", "study.search", "mlp", "1", env=own))
        content = table.read_bytes()
        table.unlink()
        return said, content

    idle.start(0)
    said, there = rung(f"dask://127.0.0.1:{idle.port}")
    assert said.count(f" from {gethostname()}:{idle.machines[0].clone.path} in ") == 2
    assert rung("local:2")[1] == there


@slow
def test_slurm_computes_the_same_bytes_and_an_audit_finds_none_wrong(computed, tmp_path):
    has_packages()
    computed.forget(keep=CELLS - 2)
    with slurm(tmp_path) as own:
        said = ended(study(computed.home, "slurm:2", 0.2, **own))
    assert "missing cells of the study: 2; ENGINE=slurm:2" in said
    assert said.count(", the same from ") == 1
    assert computed.lock_here == computed.lock
    # Slurm has ended now
    computed.forget(keep=CELLS - 1)
    said = ended(study(computed.home, "slurm", **own), code=1)
    assert said.splitlines()[-1].startswith("error: Slurm does not answer (")


@slow
def test_all_cores_of_this_machine_give_the_bytes_of_one(computed):
    """Two cells at once in one folder, each with its run in MLflow."""
    computed.forget(keep=CELLS - 2)
    print(ended(study(computed.home, "local", MIRROR="on")))  # pytest shows it if this fails
    assert computed.lock_here == computed.lock
    show = """if True:
        import mlflow
        mlflow.set_tracking_uri("sqlite:///mlflow.db")
        print(*mlflow.search_runs(search_all_experiments=True).status)
    """
    assert computed.home.run("python", "-c", show).stdout.split() == ["FINISHED", "FINISHED"]


@slow
def test_an_engine_that_is_not_there_is_one_line(computed):
    has_packages()
    computed.forget(keep=CELLS - 1)
    nowhere = "dask://127.0.0.1:9"
    said = ended(study(computed.home, nowhere), code=1)
    assert said.splitlines()[-1].startswith(f"error: the scheduler of ENGINE={nowhere} does not")
    hidden = (
        "import sys, runpy; sys.modules['distributed'] = None; "
        "runpy.run_module('study.engine', run_name='__main__')"
    )
    own = {"ENGINE": nowhere, "PYTHONPATH": str(computed.home.path)}
    said = ended(computed.home.start(sys.executable, "-c", hidden, env=own), code=1)
    assert said.splitlines()[-1].startswith(f"error: ENGINE={nowhere} needs distributed: ")
