"""What was damaged is found, named and told apart from what is only missing."""

import json
from contextlib import chdir
from pathlib import Path

import pytest
from filelock import FileLock
from repositories import make_repository
from tiny import make_project

from dvc_guard import alone, damage, mend, verify
from dvc_kit import files
from dvc_kit.errors import StageError
from stages import hooks


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder that no git repository holds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def write_lock(content: dict[str, bytes]) -> None:
    """The outs of a stage each, and a dvc.lock that holds them."""
    files.write_text(Path(".dvc/config"), "")
    declared, locked = {}, {}
    for path, body in content.items():
        files.write_bytes(Path(path), body)
        stage = f"make-{Path(path).name}"
        declared[stage] = {"cmd": "make", "outs": [path]}
        locked[stage] = {"cmd": "make", "outs": [{"path": path, "md5": files.md5(Path(path))}]}
    files.write_text(Path("dvc.yaml"), json.dumps({"stages": declared}))
    files.write_text(Path("dvc.lock"), json.dumps({"schema": "2.0", "stages": locked}))


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
    ("path", "stage", "cache"),
    [
        ("models/mlp.safetensors", "train_mlp", ".dvc/cache"),
        ("data/prepared/counts.csv", "prepare", ".dvc/cache"),
        ("study/cells/fast-mlp-0.json", "cell@fast-mlp-0", "study/.dvc/cache"),
    ],
)
def test_a_damaged_object_in_the_cache_of_a_project_is_found_and_removed(
    monkeypatch, tmp_path, capsys, path, stage, cache
):
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.path)
    project.write("study/.dvc/config", "")  # a cache of its own
    md5 = project.md5(path)
    kept = Path(cache, "files/md5", md5[:2], md5[2:])
    files.write_bytes(kept, b"damaged")
    cure = rf"dvc-guard damage --remove && dvc repro {stage}\)?`"
    with pytest.raises(StageError, match=rf"{md5[2:]} is damaged .* of stage {stage}\): .*{cure}$"):
        damage.damage()
    Path("reports/metrics.json").write_text("damaged")  # which is not removed
    damage.damage(remove=True)
    assert capsys.readouterr().out.endswith(f"{md5[2:]} is removed\n")
    assert not kept.exists()
    assert Path("reports/metrics.json").read_text() == "damaged"
    project.git("checkout", "reports/metrics.json")
    assert damage.damage() is None


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


WHOLE = "{stages: {one: {cmd: make, outs: [{path: a, md5: 1}]}}}"
UNREADABLE = [None, "", "stages:", "stages: {a: b}", "[]", "a: [", "\t", "\0"]
TORN = [  # which can be read, although an entry is not whole
    "{stages: {one: {cmd: make}}}",
    "{stages: {one: {cmd: make, outs: []}, two: {cmd: make, outs: [{path: b, md: 2}]}}}",
    "{stages: {one: {cmd: make, outs: [{path: a}]}}}",
    "{stages: {one: {cmd: make, outs: [{md5: 1}]}}}",
    "{stages: {one: {cmd: make, deps: [{path: c}], outs: [{path: a, md5: 1}]}}}",
]


@pytest.mark.parametrize("text", [WHOLE, *UNREADABLE, *TORN])
def test_a_lock_is_whole_or_is_named_and_mended(text, capsys):
    files.write_text(Path(".dvc/config"), "")
    files.write_text(Path("dvc.yaml"), "stages: {one: {cmd: make, outs: [a]}}")
    path = Path("dvc.lock")
    if text is not None:
        path.write_text(text, encoding="utf-8")
    if text in UNREADABLE and text != "stages: {a: b}":  # in which no stage is the declared one
        with pytest.raises(
            StageError, match=r"^dvc\.lock cannot be read \(.*\): `git checkout dvc"
        ):
            damage.locked(Path())
    assert mend.is_whole(path) == (text == WHOLE)
    copy = alone.copy_of(path)
    if text not in (WHOLE, None):
        for kept in (None, "torn too"):
            if kept:
                files.write_text(copy, kept)
            with pytest.raises(StageError, match=r"^dvc\.lock cannot be read, and git gives no"):
                mend.mend_dvc_lock(path)
    files.write_text(copy, WHOLE)
    mend.mend_dvc_lock(path)
    if text in (WHOLE, None):  # a file that is not there is none that `dvc` stumbles over
        assert capsys.readouterr().out == "" and path.exists() == (text == WHOLE)
    else:
        assert path.read_text() == WHOLE
        assert "it is the one from before its last stage began now" in capsys.readouterr().out


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
