"""What was damaged is found, named and told apart from what is only missing."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path

import pytest
from filelock import FileLock
from test_other_repository import make_repository
from tiny import make_project

from dvc_mlflow import alone, damage, files, mend, tables, verify
from dvc_mlflow.errors import StageError
from stages import hooks


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder that no git repository holds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def write_lock(content: dict[str, bytes], text: str = "schema: '2.0'\nstages:\n") -> None:
    """The outs of a stage each, and a dvc.lock that holds them."""
    files.write_text(Path("dvc.yaml"), "stages: {}")
    files.write_text(Path(".dvc/config"), "")
    for path, body in content.items():
        files.write_bytes(Path(path), body)
        out = f"  make-{Path(path).name}:\n    cmd: make\n    outs:\n    - path: {path}\n"
        text += f"{out}      md5: {files.md5(Path(path))}\n"
    Path("dvc.lock").write_text(text, encoding="utf-8")


# --- damage ---


def test_an_out_that_is_not_the_locked_one_is_damaged_and_a_missing_one_is_not():
    write_lock({"reports/a": b"1", "reports/b": b"2", "c": b"3"})
    outs = damage.locked(Path())
    assert outs == {(f"make-{Path(path).name}", path): files.md5(Path(path))
                    for path in ("reports/a", "reports/b", "c")}  # fmt: skip
    assert damage.in_folder(outs) == []
    Path("reports/b").write_bytes(b"20")
    Path("c").unlink()
    [found] = damage.in_folder(outs)
    assert str(found) == (
        "reports/b is damaged (reports/b of stage make-b): `rm -r reports/b && dvc repro make-b`"
    )


@pytest.mark.parametrize("content", ["", "stages:", "stages: {a: b}", "a: [", "\t", None])
def test_a_lock_that_cannot_be_read_is_one_line(content):
    write_lock({"a": b"1"})
    if content is None:
        Path("dvc.lock").unlink()
    else:
        Path("dvc.lock").write_text(content, encoding="utf-8")
    with pytest.raises(StageError, match=r"^dvc\.lock cannot be read \(.*\): `git checkout dvc"):
        damage.locked(Path())


CACHED = ("a b", "it's", "c;d", "$(touch x)", "-e", "tab\t", "f*", "w x/y z")
NAMES = (  # DVC takes the last three for other things where they are targets
    *(*CACHED, "new\nline", "ü", "f?", "[ab]", "%d", "i#j", "k@l", "~p", "q&r", '"s', "t  u", "v "),
    *("esc\x1b", ":(top)o", "m:n", "g\\h"),
)
NEIGHBOURS = ("a", "b", "d", "line", "fg", "h", "g/h", "r", "x", "y")


@pytest.mark.slow
def test_a_printed_cure_can_be_pasted_whatever_the_name_and_touches_nothing_else(folder):
    repository = make_repository(folder / "a repository", {})
    small = [f"git/{name}" for name in NAMES]
    outs, paths = [*CACHED, *({path: {"cache": False}} for path in small)], [*CACHED, *small]
    make = (
        f"from pathlib import Path\nfor name in {paths!r}:\n    path = Path(name)\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n    path.write_text('of ' + name)\n"
    )
    files.write_text(repository.path / "make.py", make)
    stage = {"make": {"cmd": "python make.py", "outs": outs}}
    files.write_text(repository.path / "dvc.yaml", json.dumps({"stages": stage}))
    repository.run("dvc", "repro")
    repository.commit("results")
    with chdir(repository.path):
        for name in {*NEIGHBOURS, *(f"git/{name}" for name in NEIGHBOURS)}:
            files.write_text(Path(name), "a neighbour")

        def contents() -> dict[str, bytes]:
            names = [name for name in files.inside(Path()) if not name.startswith((".dvc", ".git"))]
            return {name: Path(name).read_bytes() for name in names}

        before = contents()
        assert before.keys() >= {*paths}
        for path in paths:
            Path(path).chmod(0o644)
            Path(path).write_text("damaged")
        lines = [str(found) for found in damage.in_folder(damage.locked())]
        assert [line.count("\n") for line in lines] == [0] * len(paths)
        cures = [line.partition(": `")[2].removesuffix("`") for line in lines]
        repository.run("sh", "-e", "-c", "\n".join(cures))
        assert contents() == before


def test_a_project_of_which_nothing_was_run_has_no_damage_and_a_lost_lock_is_one(folder):
    project = make_project(folder / "project")
    for lock in ("dvc.lock", "study/dvc.lock"):
        (project.path / lock).unlink()
    with chdir(project.path):
        with pytest.raises(
            StageError, match=r"^dvc\.lock cannot be read \(.*\): `git checkout dvc"
        ):
            damage.damage()
        project.git("rm", "--quiet", "--cached", "dvc.lock", "study/dvc.lock")
        damage.damage()


# --- verify ---


@pytest.mark.parametrize(
    ("computed", "here", "verdict"),
    [
        ("1", "1", "same"),
        ("1", None, "same"),  # not in this folder
        ("1", "2", "the file here differs"),
        ("2", "1", "DIFFERS"),
        ("2", "2", "DIFFERS"),
        ("2", None, "DIFFERS"),
    ],
)
def test_an_out_differs_where_it_was_computed_or_only_here(computed, here, verdict):
    assert verify.Out("plot", "a.png", "1", computed, here).verdict == verdict


def test_a_table_has_straight_columns_and_no_spaces_at_the_end():
    rows = [
        ("out", "dvc.lock", "computed", ""),
        ("reports/figures", "1" * 36, "1" * 36, "same"),
        ("a", "1" * 32, "missing", "DIFFERS"),
    ]
    assert tables.text(rows).splitlines() == [
        f"{'out':15}  {'dvc.lock':36}  computed",
        f"reports/figures  {'1' * 36}  {'1' * 36}  same",
        f"a{' ' * 14}  {'1' * 32}      missing{' ' * 29}  DIFFERS",
    ]


def test_a_file_that_is_not_here_has_no_md5():
    Path("a").write_bytes(b"abc")
    assert verify.here("a") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321
    assert verify.here("b") is None


# --- mend ---


def test_a_lock_is_whole_where_each_entry_has_a_path_and_an_md5():
    write_lock({"a": b"1", "b": b"2"})
    path = Path("dvc.lock")
    text = path.read_text(encoding="utf-8")
    assert mend.is_whole(path)
    for torn in (
        *("", "stages:\n", "[]", "\0"),
        text.replace("      md5: c81e", "      md: c81e"),
        text[: text.rindex("      md5")],
        text[: text.rindex("    outs")],
        text[: text.rindex(files.md5(Path("b")))],
        text.replace("    outs:\n    - path: b", "    deps:\n    - path: b"),
        f"{text}    deps:\n    - path: c\n",
    ):
        assert torn != text
        path.write_text(torn, encoding="utf-8")
        assert not mend.is_whole(path)
    path.unlink()
    assert not mend.is_whole(path)


def test_the_damage_of_each_project_is_reported_at_once(monkeypatch, tmp_path):
    monkeypatch.chdir(make_project(tmp_path / "project").path)
    assert damage.damage() is None
    paths = ("models/mlp.safetensors", "study/cells/fast-mlp-0.json", "study/report/study.md")
    for path in paths:
        Path(path).write_text("damaged")
    with pytest.raises(StageError) as told:
        damage.damage()
    lines = str(told.value).split("\nerror: ")
    assert [line.split(" is damaged (")[0] for line in lines] == [*paths[:2], "study/report"]
    assert lines[0].endswith(
        "`rm -r models/mlp.safetensors && dvc checkout models/mlp.safetensors`"
    )
    assert lines[1].endswith("(study/cells/fast-mlp-0.json of stage cell@fast-mlp-0): `git checkout"
                             " -- study/cells/fast-mlp-0.json`")  # fmt: skip
    assert [str(found) for found in verify.other_projects()] == lines[1:]


@pytest.mark.parametrize(
    ("path", "stage"),
    [("models/mlp.safetensors", "train_mlp"), ("data/prepared/counts.csv", "prepare")],
)
def test_a_damaged_object_in_the_cache_is_found_and_removed(
    monkeypatch, tmp_path, capsys, path, stage
):
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.path)
    md5 = project.md5(path)
    kept = Path(".dvc/cache/files/md5", md5[:2], md5[2:])
    kept.write_bytes(b"damaged")
    cure = f"`dvc-mlflow damage --remove && dvc repro {stage}`"
    with pytest.raises(StageError, match=rf"{md5[2:]} is damaged .* of stage {stage}\): {cure}$"):
        damage.damage()
    Path("reports/metrics.json").write_text("damaged")  # which is not removed
    damage.damage(remove=True)
    assert capsys.readouterr().out.endswith(f"{md5[2:]} is removed\n")
    assert not kept.exists()
    assert Path("reports/metrics.json").read_text() == "damaged"
    project.git("checkout", "reports/metrics.json")
    assert damage.damage() is None


def test_damage_is_found_in_a_cache_that_only_one_project_has(monkeypatch, tmp_path):
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.path)
    project.write("study/.dvc/config", "")
    md5 = project.md5("study/cells/fast-mlp-0.json")
    kept = Path("study/.dvc/cache/files/md5", md5[:2], md5[2:])
    files.write_bytes(kept, b"damaged")
    with pytest.raises(StageError, match=rf"{md5[2:]} is damaged .* of stage cell@fast-mlp-0\): "):
        damage.damage()


def test_mend_repairs_each_project_and_checks_the_settings_first(monkeypatch, tmp_path, capsys):
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.path)
    monkeypatch.setattr(hooks, "check", lambda: print("checked"))
    for folder in (Path(), Path("study")):
        (folder / "dvc.lock").write_text("torn")
        (folder / ".dvc/tmp").mkdir(exist_ok=True)
        (folder / ".dvc/tmp/rwlock").write_text("{")
    mend.mend()
    assert capsys.readouterr().out.splitlines() == [
        "checked",
        ".dvc/tmp/rwlock could not be read; it is removed",
        "dvc.lock could not be read; it is the one of the last commit now",
        "study/.dvc/tmp/rwlock could not be read; it is removed",
        "study/dvc.lock could not be read; it is the one of the last commit now",
    ]
    assert project.git("status", "--porcelain") == ""


def test_stages_that_start_together_keep_whole_copies_of_the_locks():
    write_lock({"a": b"1"})

    def start(stage: str) -> None:
        for _ in range(20):
            with alone.holding(stage):
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, ["prepare", "train_lenet5", "train_mlp", "evaluate"]))
    assert alone.copy_of(Path("dvc.lock")).read_bytes() == Path("dvc.lock").read_bytes()


def test_a_torn_lock_is_taken_back_from_the_copy_of_before_its_last_stage(capsys):
    path = Path("dvc.lock")
    mend.mend_dvc_lock(path)  # there is none
    write_lock({"a": b"1"})
    whole = path.read_bytes()
    mend.mend_dvc_lock(path)
    assert capsys.readouterr().out == ""
    files.write_bytes(alone.copy_of(path), whole)
    path.write_bytes(whole[:-3].replace(b"outs", b"out"))
    mend.mend_dvc_lock(path)
    assert path.read_bytes() == whole
    assert "it is the one from before its last stage began now" in capsys.readouterr().out
    alone.copy_of(path).write_bytes(b"torn too")
    path.write_bytes(b"torn")
    with pytest.raises(StageError, match=r"^dvc\.lock cannot be read, and git gives no older one"):
        mend.mend_dvc_lock(path)


@pytest.mark.parametrize("content", ["", "{", '{"a": '])
def test_a_torn_list_of_running_commands_is_removed_unless_one_is_running(content, capsys):
    path = Path("rwlock")
    mend.mend_rwlock(path)  # there is none
    path.write_text(json.dumps({"read": {}}), encoding="utf-8")
    mend.mend_rwlock(path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"read": {}}
    path.write_text(content, encoding="utf-8")
    with FileLock("lock"), pytest.raises(StageError, match=r"^rwlock is torn, and another `dvc`"):
        mend.mend_rwlock(path)
    assert path.exists()
    assert capsys.readouterr().out == ""
    mend.mend_rwlock(path)
    assert not path.exists()
    assert capsys.readouterr().out == "rwlock could not be read; it is removed\n"


def test_a_folder_is_in_git_where_it_or_one_above_it_is_a_repository(folder, monkeypatch):
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert not mend.is_in_git()
    (folder / ".git").mkdir()
    assert mend.is_in_git()
    monkeypatch.chdir(folder)
    assert mend.is_in_git()
