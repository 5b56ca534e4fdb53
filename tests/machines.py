"""A small study, and machines that compute its cells: each is a network of its own with an sshd, in
which a clone with its own cache and environment lies. Real Dask and real Slurm, no stand-ins."""

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

from conftest import Clone, environment, free_port, make_clone, missing, wait_for

AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]
STUDY = """\
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
        missing("networks and Slurm need root, or sudo without a password")


def root(*command: str) -> None:
    subprocess.run([*AS_ROOT, *command], check=True, capture_output=True)


def make_study(path: Path) -> Clone:
    """A clone with a study of small cells, of which none has been computed."""
    clone = make_clone(path)
    clone.make_small()
    (path / "study/params.yaml").write_text(STUDY, encoding="utf-8")
    for name in (path / "study/cells").glob("*.json"):
        name.unlink()
    (path / "study/dvc.lock").unlink()
    clone.run("dvc", "repro", "prepare")
    clone.commit("a small study")
    return clone


@dataclass
class Computed:
    """A study that a single `dvc repro` has computed, with its lock and its cells."""

    home: Clone
    lock: bytes
    cells: dict[Path, bytes]

    @property
    def lock_here(self) -> bytes:
        return (self.home.path / "study/dvc.lock").read_bytes()

    def forget(self, keep: int = 0) -> None:
        """As if no cell had been computed, but for the first so many."""
        path = self.home.path
        shutil.rmtree(path / ".dvc/cache/runs", ignore_errors=True)
        (path / ".dvc/tmp/engine.jsonl").unlink(missing_ok=True)
        (path / "study/dvc.lock").unlink(missing_ok=True)
        if keep:
            (path / "study/dvc.lock").write_bytes(self.lock)
        for number, (cell, content) in enumerate(self.cells.items()):
            cell.unlink(missing_ok=True)
            if number < keep:
                cell.write_bytes(content)


def compute(path: Path) -> Computed:
    """Make a study, and let DVC compute it."""
    home = make_study(path)
    # One by one: in the graph of a few targets, DVC's order changes from process to process
    Clone(path / "study").run("dvc", "repro", "--quiet", "--single-item", "cell", "validation")
    cells = {cell: cell.read_bytes() for cell in sorted(path.glob("study/cells/*.json"))}
    return Computed(home, (path / "study/dvc.lock").read_bytes(), cells)


def study(clone: Clone, engine: str, audit: float = 0, **more: str) -> subprocess.Popen[str]:
    """Start `python -m study.engine` there."""
    own = {"ENGINE": engine, "AUDIT": str(audit), "PYTHONPATH": str(clone.path)} | more
    return clone.start("python", "-m", "study.engine", env=own)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """What a command says until its end."""
    said, errors = process.communicate(timeout=240)
    assert process.returncode == code, said + errors
    assert "Traceback" not in errors
    return said + errors


@dataclass
class Machine:
    """A network with an sshd, and a clone."""

    number: int
    clone: Clone
    keys: Path
    port: str = field(default_factory=free_port)

    @property
    def name(self) -> str:
        return f"study{os.getpid()}-{self.number}"[-15:]

    @property
    def here(self) -> str:
        """The address of this side, for the machine."""
        return f"{self._subnet}.1"

    @property
    def _subnet(self) -> str:
        """Another one in each process, because tests run two at a time."""
        return f"10.77.{2 * (os.getpid() % 126) + self.number}"

    @contextlib.contextmanager
    def full(self, folder: Path) -> Iterator[None]:
        """No space is left in a folder, as this machine sees it."""
        inside = ["nsenter", "--mount", "--target", str(self.pids()[0])]
        root(*inside, "mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder))
        yield
        self.stop()
        root(*inside, "umount", "--lazy", str(folder))

    def network(self, state: str) -> None:
        root("ip", "link", "set", self.name, state)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        inside = ["ip", "netns", "exec", self.name]
        try:
            root("ip", "netns", "add", self.name)
            other = ["peer", "name", "eth0", "netns", self.name]
            root("ip", "link", "add", self.name, "type", "veth", *other)
            root("ip", "addr", "add", f"{self.here}/24", "dev", self.name)
            root("ip", "link", "set", self.name, "up")
            root(*inside, "ip", "addr", "add", f"{self._subnet}.2/24", "dev", "eth0")
            root(*inside, "ip", "link", "set", "eth0", "up")
            root(*inside, "ip", "link", "set", "lo", "up")
            settings = self.keys / f"sshd{self.number}"
            settings.write_text(
                f"Port {self.port}\nHostKey {self.keys}/host\nPidFile none\nStrictModes no\n"
                f"AuthorizedKeysFile {self.keys}/user.pub\nUsePAM no\nPermitRootLogin yes\n"
                "PasswordAuthentication no\n",
                encoding="utf-8",
            )
            sshd = shutil.which("sshd") or "/usr/sbin/sshd"
            root("mkdir", "-p", "/run/sshd")
            root(*inside, sshd, "-f", str(settings))
            yield
        finally:
            self.stop(everything=True)
            for what in (["netns", "del", self.name], ["link", "del", self.name]):
                subprocess.run([*AS_ROOT, "ip", *what], capture_output=True)

    def ssh(self, command: str) -> subprocess.Popen[bytes]:
        to = f"{getpass.getuser()}@{self._subnet}.2"
        options = ["-p", self.port, "-i", str(self.keys / "user"), "-o", "StrictHostKeyChecking=no"]
        options += ["-o", "UserKnownHostsFile=/dev/null"]
        silent = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(["ssh", *options, to, command], stdout=subprocess.DEVNULL, **silent)

    def start(self, port: str, before: str = "") -> None:
        """Start a worker of Dask over SSH, with one thread, as `make worker` does."""
        path = self.clone.path
        self.ssh(
            f"cd '{path}' && export PATH='{path}/.venv/bin':/usr/bin:/bin MIRROR=off && exec "
            f"{before} python -m dask worker tcp://{self.here}:{port} --nthreads 1 --nworkers 1 "
            f"--no-dashboard >'{path}.log' 2>&1"
        )

    def pids(self) -> list[int]:
        found = subprocess.run(
            [*AS_ROOT, "ip", "netns", "pids", self.name], capture_output=True, text=True
        )
        return [int(line) for line in found.stdout.split()]

    def stop(self, everything: bool = False) -> None:
        """Kill what runs in this network, but for its sshd."""
        for pid in self.pids():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if everything or "sshd" not in process.name():
                    process.kill()

    def cell(self) -> psutil.Process | None:
        """The process that trains here."""
        for pid in self.pids():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if "study.cell" in process.cmdline() and process.name().startswith("python"):
                    return process
        return None

    def kill_worker(self) -> None:
        """With -9, while it computes a cell."""
        parent = wait_for(lambda: self.cell().parent())
        parent.kill()


def make_machine(number: int, home: Clone, folder: Path) -> Machine:
    """A clone of the study, with its own environment, cache and prepared images."""
    path = folder / f"machine {number}"
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
    return Machine(number, clone, folder)


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


def make_keys(folder: Path) -> None:
    for key in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key]
        subprocess.run(command, check=True)


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
