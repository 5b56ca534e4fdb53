"""A file is written completely or not at all, has the md5 of DVC, and is read in each format;
errors are one line."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB
from dvc_objects.fs.local import LocalFileSystem

from dvc_kit import files
from dvc_kit.errors import InputError, StageError, main_function
from dvc_mlflow import curves


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_is_replaced_at_once_and_nothing_is_left_beside_it(folder):
    path = folder / "new" / "folder" / "file"
    files.write_bytes(path, b"first")
    with path.open("rb") as reader:
        files.write_bytes(path, b"second")
        assert reader.read() == b"first"  # who has it open reads the old one to its end
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_its_name_is(folder, monkeypatch):
    synced, real = [], os.fsync

    def recorded(file):
        synced.append((os.fstat(file).st_size, Path("file").exists()))
        real(file)

    monkeypatch.setattr(os, "fsync", recorded)
    files.write_bytes(Path("file"), b"content")
    assert synced == [(7, False)]


def test_what_cannot_be_written_is_one_line_that_names_it_and_the_old_file_stays(folder):
    (folder / "a file").write_bytes(b"whole")
    with pytest.raises(StageError, match=r"^a file/below cannot be written \(File exists\)"):
        files.write_bytes(Path("a file/below"), b"more")
    (folder / "a folder").mkdir()
    with pytest.raises(StageError, match=r"^a folder cannot be written \(Is a directory\)"):
        files.write_bytes(Path("a folder"), b"more")
    assert sorted(path.name for path in folder.iterdir()) == ["a file", "a folder"]
    assert (folder / "a file").read_bytes() == b"whole"


WRITE_OFTEN = """
import sys
from pathlib import Path
from dvc_kit.files import write_bytes
for _ in range(200):
    write_bytes(Path("shared"), sys.argv[1].encode() * 50_000)
"""


def test_two_processes_that_write_one_path_at_once_both_succeed_and_each_reader_sees_a_whole_file(
    folder,
):
    command = [sys.executable, "-c", WRITE_OFTEN]
    writers = [subprocess.Popen([*command, name], stderr=subprocess.PIPE) for name in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if Path("shared").exists():
            seen.add(Path("shared").read_bytes())
    assert [writer.communicate()[1] for writer in writers] == [b"", b""]
    assert seen <= {b"a" * 50_000, b"b" * 50_000} and seen
    assert [path.name for path in folder.iterdir()] == ["shared"]


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def doubled(at: int) -> bytes:
    """A line of YAML whose value is twice that of the line before."""
    return b"a%d: &a%d [*%b, *%b]\n" % (at + 1, at + 1, *[b"a%d" % at if at else b"a"] * 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"),
        *((name, deep(101)) for name in ("a.json", "a.yaml")),  # one level more than is read
        *((name, b"- " * 101 + b"a") for name in ("a.yaml", "a.yml")),
        ("a.yaml", b"".join(b" " * at + b"a:\r" for at in range(101))),
        ("a.yaml", b"a: &a [1, 1]\n" + b"".join(map(doubled, range(20))) + b"b: *a20\n"),
        ("a.toml", b"a = " + deep(101)),
        ("a.toml", b"[" + b"a." * 101 + b"a]"),
        ("a.json", b" " * (files.LARGEST + 1)),
        ("a.toml", b"#" + b"\xc3\xa9" * (files.LARGEST // 2)),  # fewer characters than bytes
        ("a.yaml", b"a: ["),
        ("a.toml", b"a = "),
        ("a.yaml", b"\xff\xfe"),
        ("a.json", None),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_that_names_it(name, content):
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(StageError, match=rf"^{name} cannot be read \([^\n]+\)$"):
        files.read_tree(Path(name))


# --- tables ---


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'n,"y, z"\n1,a\n2,\n'),
        ("t.csv", '\ufeffn,"y, z"\r\n1,a\r\n2,\r\n'),
        ("t.tsv", "n\ty, z\n1\ta\n2\t\n"),
        ("t.json", '[{"n": "1", "y, z": "a"}, {"n": "2", "y, z": ""}]'),
        ("t.json", '{"k": 1, "deep": {"rows": [{"n": "1", "y, z": "a"}, {"n": "2", "y, z": ""}]}}'),
        ("t.yaml", "- {n: '1', 'y, z': a}\n- {n: '2', 'y, z': ''}\n"),
    ],
)
def test_a_table_has_the_same_columns_in_each_format_of_dvc(name, text):
    Path(name).write_bytes(text.encode())
    assert curves.read(Path(name)) == {"n": ["1", "2"], "y, z": ["a", ""]}


def test_the_md5_of_a_folder_leaves_out_the_files_that_dvc_ignores(folder):
    paths = ("kept", "a/kept.pyc", "a/__pycache__/b", "__pycache__/a/b", "a/out.tmp", "a/in.tmp")
    for name in paths:
        files.write_bytes(folder / "data" / name, name.encode())
    everything = files.md5(Path("data"))
    Path(".dvcignore").write_text("__pycache__/\n*.tmp\n!in.tmp\n", encoding="utf-8")
    assert files.inside(Path("data")) == ["a/in.tmp", "a/kept.pyc", "kept"]
    ignoring = files.md5(Path("data"))
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "--force", "--quiet"], check=True)
    Path(".dvcignore").write_text("__pycache__/\n*.tmp\n!in.tmp\n", encoding="utf-8")
    subprocess.run([*dvc, "add", "--quiet", "data"], check=True)
    assert ignoring in Path("data.dvc").read_text(encoding="utf-8")
    assert ignoring != everything


def test_a_file_is_read_again_after_an_edit_that_its_size_and_time_hide(folder, monkeypatch):
    monkeypatch.setattr(files, "SETTLED", 0)
    path = folder / "edited"
    path.write_bytes(b"before")
    assert files.md5(path) == hashlib.md5(b"before").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
        files.md5(path)
    before = path.stat()
    time.sleep(0.05)  # the clock of the file system ticks
    path.write_bytes(b"after!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files.md5(path) == hashlib.md5(b"after!").hexdigest()


def test_a_file_that_has_just_changed_is_read_again(folder, monkeypatch):
    # On many systems, a second change within some milliseconds has the time of the first one
    path = folder / "edited"
    path.write_bytes(b"content")
    files.md5(path)
    was_read = []
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: was_read.append(1) or hashlib.md5())
    files.md5(path)
    assert was_read


def test_the_md5_of_a_file_or_a_folder_is_dvcs(folder):
    for name, content in {"b/z": b"1", "b/a/y": b"2", "b.c": b"3", "a": b""}.items():
        files.write_bytes(folder / "data" / name, content)
    fs = LocalFileSystem()
    odb = HashFileDB(fs, str(folder / "odb"))
    for path in (folder / "data", folder / "data" / "b" / "z"):
        _, _, built = build(odb, str(path), fs, "md5", dry_run=True)
        assert files.md5(path) == built.hash_info.value
    assert files.md5(folder / "data" / "b" / "z") == hashlib.md5(b"1").hexdigest()


# --- how a stage says that it cannot go on ---


@pytest.mark.parametrize(("error", "code"), [(StageError, 1), (InputError, 2)])
def test_a_failure_is_its_line_and_its_exit_code(error, code, capsys):
    @main_function
    def main() -> None:
        print("begun")
        raise error("it is so")

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert capsys.readouterr() == ("begun\n", "error: it is so\n")
