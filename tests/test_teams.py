"""What one person computed, another gets: `dvc push`, a clone, `dvc pull`, nothing to do."""

import getpass
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from conftest import Clone, environment, flip_bit, free_port, missing


def assert_shared(copy: Clone, tmp_path: Path, *remote: str) -> None:
    """Three lines on either side; and what is damaged in ``tmp_path / "store"`` is mended."""
    copy.run("dvc", "remote", "add", "--default", "store", remote[0])
    for option in remote[1:]:
        copy.run("dvc", "remote", "modify", "--local", "store", *option.split("="))
    copy.commit("small, with a remote")
    copy.run("dvc", "push")

    subprocess.run(["git", "clone", "--quiet", copy.path, tmp_path / "another's"], check=True)
    other = Clone(tmp_path / "another's")
    for option in remote[1:]:
        other.run("dvc", "remote", "modify", "--local", "store", *option.split("="))
    other.run("dvc", "pull")
    assert "up to date" in other.run("dvc", "repro").stdout
    assert other.outs() == copy.outs()
    look = ("python", "-m", "dvc_guard", "damage")
    assert other.run(*look).stderr == ""

    digest = copy.outs()["models/mlp.safetensors"]
    flip_bit(tmp_path / "store" / "files" / "md5" / digest[:2] / digest[2:])
    said = other.run(*look, check=False).stderr
    assert f"/store/files/md5/{digest[:2]}/{digest[2:]} is damaged (models/mlp" in said
    assert "of stage train_mlp)" in said
    assert ("ssh://" in said) == remote[0].startswith("ssh://")
    other.run("sh", "-c", said.split("`")[1])
    assert other.run(*look).stderr == ""


@pytest.mark.slow
def test_a_folder_as_remote_gives_a_clone_all_that_dvc_repro_needs(copy, tmp_path):
    assert_shared(copy, tmp_path, str(tmp_path / "store"))


@pytest.fixture
def ssh_server(tmp_path):
    """A real sshd on loopback; its port, and the key that it lets in."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if not sshd:
        missing("sshd is not installed: Debian has it in openssh-server")
    try:
        import dvc_ssh  # noqa: F401
    except ImportError:
        missing("dvc-ssh is not installed: pip install -e '.[dev,ssh]'")
    for key in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True
        )
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    port = free_port()
    (tmp_path / "sshd_config").write_text(
        f"""\
Port {port}
ListenAddress 127.0.0.1
HostKey {tmp_path / "host"}
AuthorizedKeysFile {tmp_path / "authorized"}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
""",
        encoding="utf-8",
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, as root, gives up its rights
    process = subprocess.Popen(
        [sshd, "-D", "-e", "-f", tmp_path / "sshd_config"], env=environment()
    )
    time.sleep(1)
    assert process.poll() is None
    yield port, tmp_path / "user"
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_an_ssh_server_as_remote_gives_a_clone_all_that_dvc_repro_needs(copy, tmp_path, ssh_server):
    port, key = ssh_server
    url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/store"
    assert_shared(copy, tmp_path, url, f"keyfile={key}")
