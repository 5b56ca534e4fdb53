"""A small study, and machines that compute its cells: each is a clone with its own cache and
environment, and a worker of Dask. Real Dask and real Slurm, no stand-ins."""

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from conftest import Clone, environment, free_port, make_clone, missing, wait_for

AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]
STUDY = """\
models: [lenet5, mlp]
seeds: [0]
recipes: [documented]
ablations: []
ablation_seeds: [0]
differences: []
validation_size: 100
"""
CELLS = 4
# Loaded when the environment of a machine starts: flips one bit of one weight of each new network
WRONG_BIT = """
import importlib.util, os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "stages.networks.models" or "WRONG_BIT" not in os.environ:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def patched(module):
            execute(module)
            right = module.build
            def build(*arguments):
                network = right(*arguments)
                weights = next(network.parameters()).data
                weights.view(module.torch.int32).flatten()[7] ^= 1 << 22
                return network
            module.build = build
        spec.loader.exec_module = patched
        return spec
sys.meta_path.insert(0, Finder())
"""


def installed(*programs: str) -> None:
    """Skip where a program is not installed, or may not be started."""
    for program in programs:
        if not (shutil.which(program) or shutil.which(program, path="/usr/sbin")):
            missing(f"{program} is not installed: Debian has it (see .ci/run)")
    if AS_ROOT and subprocess.run([*AS_ROOT, "true"], capture_output=True).returncode:
        missing("Slurm needs root, or sudo without a password")


def root(*command: str) -> None:
    subprocess.run([*AS_ROOT, *command], check=True, capture_output=True)


def make_study(path: Path) -> Clone:
    """A clone with a small study and search, of which nothing has been computed."""
    clone = make_clone(path)
    clone.make_small()
    (path / "study/params.yaml").write_text(STUDY, encoding="utf-8")
    for name in (path / "study/cells").glob("*.json"):
        name.unlink()
    (path / "study/dvc.lock").unlink()
    yaml, search = YAML(), path / "study/search.yaml"
    rungs = {"mlp": [{"trials": 2, "epochs": 1}]}
    yaml.dump(yaml.load(search) | {"validation_size": 100, "rungs": rungs, "longer": {}}, search)
    clone.run("python", "-m", "study.design", "mlp", env={"PYTHONPATH": str(path)})
    clone.run("dvc", "repro", "prepare")
    Clone(path / "study").run("dvc", "repro", "--quiet", "bits", env={"MIRROR": "off"})
    clone.commit("a small study")
    return clone


@dataclass
class Computed:
    """A study that a single `dvc repro` has computed, with its lock and its cells."""

    home: Clone
    empty: bytes  # the lock without a cell
    lock: bytes
    cells: dict[Path, bytes]

    @property
    def lock_here(self) -> bytes:
        return (self.home.path / "study/dvc.lock").read_bytes()

    def forget(self, keep: int = 0) -> None:
        """As if no cell had been computed, but for the first so many."""
        path = self.home.path
        shutil.rmtree(path / ".dvc/cache/runs", ignore_errors=True)
        (path / "study/dvc.lock").write_bytes(self.lock if keep else self.empty)
        for number, (cell, content) in enumerate(self.cells.items()):
            cell.unlink(missing_ok=True)
            if number < keep:
                cell.write_bytes(content)


def compute(path: Path) -> Computed:
    """Make a study, and let DVC compute it."""
    home, lock = make_study(path), path / "study/dvc.lock"
    empty = lock.read_bytes()
    # One by one: in the graph of a few targets, DVC's order changes from process to process
    Clone(path / "study").run("dvc", "repro", "--quiet", "--single-item", "cell", "validation")
    cells = {cell: cell.read_bytes() for cell in sorted(path.glob("study/cells/*.json"))}
    return Computed(home, empty, lock.read_bytes(), cells)


def study(clone: Clone, engine: str, audit: float = 0, **more: str) -> subprocess.Popen[str]:
    """Start `python -m study.engine` there."""
    own = {"ENGINE": engine, "AUDIT": str(audit), "PYTHONPATH": str(clone.path)} | more
    return clone.start("python", "-m", "study.engine", env=own)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """What a command says until its end."""
    said, errors = process.communicate(timeout=900)
    assert process.returncode == code, said + errors
    assert "Traceback" not in errors
    return said + errors


@dataclass
class Machine:
    """A clone, and its worker if one was started."""

    clone: Clone
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, scheduler: str, *before: str) -> None:
        """Start a worker of Dask with one thread, as `make worker` does."""
        path = self.clone.path
        worker = [*before, str(path / ".venv/bin/python"), "-m", "dask", "worker"]
        worker += [f"tcp://127.0.0.1:{scheduler}", "--nthreads", "1", "--no-nanny"]
        worker += ["--no-dashboard"]
        own = {"PATH": f"{path}/.venv/bin:/usr/bin:/bin", "PYTHONPATH": ""}
        self.started.append(self.clone.start(*worker, env=own))

    def stop(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        self.started.clear()

    def cell(self) -> psutil.Process | None:
        """The process that trains here."""
        for process in psutil.Process(self.started[-1].pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "study.cell" in process.cmdline():
                    return process
        return None

    def kill_worker(self) -> None:
        """With -9, while it computes a cell."""
        parent = wait_for(lambda: self.cell().parent(), 300)
        parent.kill()


def make_machine(home: Clone, path: Path) -> Machine:
    """A clone of the study, with its own environment, cache and prepared images."""
    subprocess.run(["git", "clone", "--quiet", home.path, path], check=True)
    shutil.copytree(home.path / "data/raw", path / "data/raw", dirs_exist_ok=True)
    python = path / ".venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path / ".venv"], check=True)
    own = next((path / ".venv/lib").glob("python*/site-packages"))
    (own / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    (own / "wrong_bit.py").write_text(WRONG_BIT, encoding="utf-8")
    (own / "wrong_bit.pth").write_text("import wrong_bit\n", encoding="utf-8")
    clone = Clone(path)
    clone.run(str(python), "-m", "dvc", "repro", "--quiet", "prepare", env={"PYTHONPATH": ""})
    return Machine(clone)


@contextlib.contextmanager
def scheduler(folder: Path) -> Iterator[str]:
    """A scheduler of Dask that knows nothing of the study; its port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", "scheduler", "--port", port, "--dashboard-address", ":0"],
        cwd=folder,
        env=environment({"PYTHONPATH": ""}),
        stderr=(folder / "scheduler.log").open("w"),
    )
    try:
        wait_for(lambda: "Scheduler at" in (folder / "scheduler.log").read_text())
        yield port
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A controller and two nodes of Slurm, and munge, on this machine; the environment for it."""
    installed("slurmctld", "slurmd", "munged", "sbatch")
    host = subprocess.run(["hostname", "-s"], capture_output=True, text=True).stdout.strip()
    ports = [free_port() for _ in range(3)]
    nodes = "".join(
        f"NodeName=n{number} NodeAddr=127.0.0.1 NodeHostname={host} Port={port} CPUs=1 "
        "RealMemory=2500\n"
        for number, port in enumerate(ports[1:])
    )
    file = folder / "slurm.conf"
    file.write_text(
        f"""\
ClusterName=study
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={getpass.getuser() if not AS_ROOT else "root"}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
MailProg=/bin/true
{nodes}PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""",
        encoding="utf-8",
    )
    started: list[subprocess.Popen[bytes]] = []
    own = {"SLURM_CONF": str(file)}
    munge = not Path("/run/munge/munge.socket.2").exists()
    if munge:
        root("mkdir", "-p", "/run/munge")
        root("chown", "munge:", "/run/munge")
    commands = [["munged", "--foreground"]] if munge else []
    commands += [["slurmctld", "-D"], *(["slurmd", "-D", "-N", f"n{at}"] for at in (0, 1))]
    (folder / "state").mkdir()
    try:
        for name, *arguments in commands:
            user = (
                ["runuser", "-u", "munge", "--"]
                if name == "munged"
                else ["env", f"SLURM_CONF={file}"]
            )
            program = shutil.which(name) or f"/usr/sbin/{name}"
            log = (folder / f"{name}-{len(started)}.log").open("w")
            started.append(
                subprocess.Popen([*AS_ROOT, *user, program, *arguments], stdout=log, stderr=log)
            )
            if name == "munged":
                wait_for(Path("/run/munge/munge.socket.2").exists)
        idle = ["sinfo", "-h", "-t", "idle", "-o", "%D"]
        wait_for(
            lambda: subprocess.run(idle, env=environment(own), capture_output=True).stdout == b"2\n"
        )
        yield own
    finally:
        subprocess.run(["scancel", "--user", getpass.getuser()], env=environment(own))
        time.sleep(1)
        for process in reversed(started):
            subprocess.run([*AS_ROOT, "kill", str(process.pid)], capture_output=True)
            process.wait()


# --- networks ---


@dataclass
class Host:
    """A network namespace with a name of its own and a clone."""

    name: str
    address: str
    clone: Clone

    @property
    def space(self) -> str:
        """The name of the namespace, of which each process that runs tests has its own."""
        return f"{self.name}-{os.getpid()}"

    @property
    def inside(self) -> list[str]:
        named = ["unshare", "--uts", "sh", "-c", f'hostname {self.name} && exec "$@"', "sh"]
        return ["ip", "netns", "exec", self.space, *named]

    def link(self, state: str) -> None:
        root("ip", "-n", self.space, "link", "set", f"{self.name}-0", state)

    def join(self, **environment: str) -> subprocess.Popen[str]:
        command = [*self.inside, sys.executable, "-m", "stages.learn.launch"]
        return self.clone.start(*command, env=environment)


@contextlib.contextmanager
def connected(home: Clone, other: Clone) -> Iterator[list[Host]]:
    """Two hosts, wa and wb, with a cable between them."""
    both = [Host("wa", "10.9.0.1", home), Host("wb", "10.9.0.2", other)]
    try:
        for host in both:
            root("ip", "netns", "add", host.space)
        here, there = (["name", f"{host.name}-0", "netns", host.space] for host in both)
        root("ip", "link", "add", *here, "type", "veth", "peer", *there)
        for host in both:
            address = ["addr", "add", f"{host.address}/24", "dev", f"{host.name}-0"]
            root("ip", "-n", host.space, *address)
            root("ip", "-n", host.space, "link", "set", "lo", "up")
            host.link("up")
        yield both
    finally:
        for host in both:
            listed = ["ip", "netns", "pids", host.space]
            pids = subprocess.run(listed, capture_output=True, text=True).stdout.split()
            for pid in pids:
                os.kill(int(pid), signal.SIGKILL)
            root("ip", "netns", "del", host.space)
