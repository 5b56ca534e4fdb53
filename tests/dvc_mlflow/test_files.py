"""A file is written completely or not at all, and has the md5 of DVC; errors are one line."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB
from dvc_objects.fs.local import LocalFileSystem

from dvc_mlflow import files
from dvc_mlflow.errors import InputError, StageError, main_function, one_line


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
from dvc_mlflow.files import write_bytes
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


def test_the_columns_of_a_table_are_those_that_hold_only_numbers(folder):
    Path("a.csv").write_text('x,name,"y, z",gap\n1,a,0.5,\n2,b,1e3,7\n', encoding="utf-8")
    assert files.read_columns(Path("a.csv")) == {"x": [1.0, 2.0], "y, z": [0.5, 1000.0]}
    for nothing in ("", "x,y\n"):
        Path("a.csv").write_text(nothing, encoding="utf-8")
        assert files.read_columns(Path("a.csv")) == {}


def test_the_md5_of_a_folder_leaves_out_the_files_that_dvc_ignores(folder):
    paths = ("kept", "a/kept.pyc", "a/__pycache__/b", "__pycache__/a/b", "a/out.tmp", "a/in.tmp")
    for name in paths:
        files.write_bytes(folder / "data" / name, name.encode())
    everything = files.md5(Path("data"))
    Path(".dvcignore").write_text("__pycache__/\n*.tmp\n!in.tmp\n", encoding="utf-8")
    assert files.inside(Path("data")) == ["a/in.tmp", "a/kept.pyc", "kept"]
    ignoring = files.md5(Path("data"))
    subprocess.run(["dvc", "init", "--no-scm", "--force", "--quiet"], check=True)
    Path(".dvcignore").write_text("__pycache__/\n*.tmp\n!in.tmp\n", encoding="utf-8")
    subprocess.run(["dvc", "add", "--quiet", "data"], check=True)
    assert ignoring in Path("data.dvc").read_text(encoding="utf-8")
    assert ignoring != everything


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


def test_a_mistake_of_the_code_keeps_its_traceback():
    @main_function
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_an_error_of_many_lines_becomes_one():
    assert one_line(ValueError("a\n  b\t c\n")) == "a b c"
