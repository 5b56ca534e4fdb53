"""From a run to its bytes: commits that are computed again, in a small repository of real DVC."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from repositories import COMMAND, make_repository
from world import said_by

from conftest import forget_the_folder
from dvc_mlflow import difference, sync, verify

# `make` writes the same each time; `drift` differs in a file that git ignores
STAGES = """
stages:
  make:
    cmd: cp given.txt made.txt && mkdir -p made && cp given.txt made/a.txt
    deps: [given.txt]
    outs: [made.txt, made]
  drift:
    cmd: python drift.py
    deps: [drift.py, made.txt]
    outs: [text.txt, array.npy, image.png]
    metrics: [drift.json: {cache: false}]
  last:
    cmd: cat drift.json made.txt > last.txt
    deps: [drift.json, made.txt]
    outs: [last.txt]
"""
DRIFT = """
import json, uuid
import numpy as np
from PIL import Image
unseeded = uuid.uuid4().int % 200
json.dump({"fixed": 1, "scores": [{"loss": unseeded}]}, open("drift.json", "w"))
open("text.txt", "w").write(f"first\\n{unseeded}\\n")
array = np.zeros((2, 3))
array[1, 2] = unseeded
np.save("array.npy", array)
Image.fromarray(np.full((2, 2), unseeded, np.uint8)).save("image.png")
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository whose stages have run, and whose data is in DVC's cache."""
    files = {"dvc.yaml": STAGES, "drift.py": DRIFT, "given.txt": "given\n"}
    made = make_repository(tmp_path_factory.mktemp("verified") / "a repository", files)
    made.run("dvc", "add", "given.txt")
    made.run("dvc", "repro")
    made.commit("the results")
    return made


@pytest.fixture
def entered(repository, standing_in, monkeypatch):
    """This process stands in the repository, whose results are logged."""
    monkeypatch.setenv("MIRROR", "on")
    with standing_in(repository) as client:
        sync.sync()
        runs = client.search_runs([its.experiment_id for its in client.search_experiments()])
        yield {run.data.tags["stage"]: run.info.run_id for run in runs}


def verified(what: str) -> dict[str, str]:
    """What `verify` says of each out, and at last."""
    lines = said_by(lambda: verify.verify(what))
    rows = [re.match(r"\S+ +(\S+) +((?:same|other|not ).*)", line) for line in lines]
    return {row[1]: row[2] for row in rows if row} | {"end": lines[-1]}


@pytest.mark.slow
def test_a_run_of_one_stage_is_computed_with_those_before_it_and_nothing_else(entered, repository):
    same = {"made.txt": "same", "made": "same"}
    end = "all 2 outs are the committed ones, to the bit"
    assert verified(entered["make"]) == {**same, "end": end}
    before = repository.run("git", "status", "--porcelain").stdout
    told = verified("HEAD")
    assert {name: told[name] for name in same} == same
    patterns = {
        "drift.json": r"other bytes: scores\.0\.loss is \d+, was \d+",
        "text.txt": r"other bytes: line 2 is \d+, was \d+",
        "array.npy": r"other bytes: value\[1, 2\] is \d+\.0, was \d+\.0 \(1 of 6 values differ\)",
        "image.png": r"other bytes: pixel\[0, 0\] is \d+, was \d+ \(4 of 4 values differ\)",
        "last.txt": "other bytes: line 1 is .*",
        "end": "5 of 7 outs are not computed to the same bytes",
    }
    for name, pattern in patterns.items():
        assert re.fullmatch(pattern, told[name]), told[name]
    assert verified(entered["pipeline"]).keys() == told.keys()
    assert repository.run("git", "status", "--porcelain").stdout == before


@pytest.mark.slow
def test_a_stage_that_fails_is_told_with_its_command_and_its_last_words(entered, repository):
    repository.edit("dvc.yaml", "python drift.py", "no-such-program drift.py")
    repository.edit("dvc.yaml", "  last:\n", "  last:\n    frozen: true\n")
    repository.commit("a program that is not here")
    told = verified("HEAD")
    assert told["made.txt"] == "same"
    assert re.match("not computed: failed to run: no-such-program drift.py, exited with 127: .*"
                    "not found", told["text.txt"])  # fmt: skip
    assert told["last.txt"] == "not computed: the stage is frozen"
    assert told["end"] == "5 of 7 outs are not computed to the same bytes"
    repository.edit("dvc.yaml", "no-such-program", "python")
    repository.edit("dvc.yaml", "    frozen: true\n", "")
    repository.commit("it is back")


@pytest.mark.slow
def test_what_cannot_be_verified_is_told_in_one_line(entered, repository, tmp_path):
    foreign = "0" * 32
    assert re.fullmatch(
        f"{foreign} is no run or model of sqlite:///.* and no commit of this repository",
        verified(foreign)["end"],
    )
    from mlflow import MlflowClient

    client = MlflowClient()
    other = client.create_run("0", tags={"stage": "make", "project": ".", "result": "e" * 32})
    assert verified(other.info.run_id)["end"] == (
        f"no commit of this repository holds the results of run {other.info.run_id}"
    )
    client.delete_run(other.info.run_id)
    repository.run("dvc", "remote", "add", "--default", "away", str(tmp_path / "nowhere"))
    repository.commit("a remote")
    for path in (repository.path / "given.txt", repository.path / ".dvc/cache/files"):
        path.rename(tmp_path / path.name)
    forget_the_folder()
    line = r"given\.txt of commit \w{10} is neither in git, nor in the cache of DVC, nor in the "
    told = verified("HEAD")["end"]
    for path in (repository.path / "given.txt", repository.path / ".dvc/cache/files"):
        (tmp_path / path.name).rename(path)
    assert re.fullmatch(rf"{line}remote away \(.*nowhere\), as far as it can be reached", told)


@pytest.mark.slow
def test_a_shallow_clone_says_how_to_get_the_commit(entered, repository, tmp_path):
    first = repository.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
    repository.run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q",
                   "--allow-empty", "-m", "another")  # fmt: skip
    clone = str(tmp_path / "clone")
    repository.run("git", "clone", "--quiet", "--depth=1", f"file://{repository.path}", clone)
    told = repository.run("env", "-C", clone, *COMMAND, "verify", first, check=False)
    assert told.returncode == 2 and told.stderr.endswith(
        "no commit of this repository: this clone is shallow, `git fetch --unshallow` brings its "
        "history\n"
    )


# --- where files differ ---


def save(path: Path, content: object) -> None:
    from safetensors.numpy import save_file

    if path.suffix == ".npz":
        np.savez(path, **content)  # type: ignore[arg-type]
    elif path.suffix == ".safetensors":
        save_file(content, path)
    elif path.suffix == ".png":
        Image.fromarray(np.array(content, np.uint8)).save(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


NANS, ZEROS = np.array([np.nan, 0.0]), np.array([np.nan, -0.0])


@pytest.mark.parametrize(
    ("name", "was", "now", "told"),
    [
        ("a.json", {"a": [1, 2]}, {"a": [1, 2.0]}, "a.1 is 2.0, was 2"),
        ("a.json", {"a": 1, "b": 2}, {"a": 1}, "b is missing"),
        ("a.json", '{"a": NaN}', '{"a":  NaN}', 'line 1 is {"a": NaN}, was {"a": NaN}'),
        ("a.json", "{", "[", "line 1 is [, was {"),
        ("a.yaml", "a: {b: x}", "a: {b: y}", "a.b is y, was x"),
        ("a.csv", "x,y\n1,2\n3,4\n", "x,y\n1,2\n3,5\n", "row 2, column y is 5, was 4"),
        ("a.tsv", "x\ty\n1\t2\n", "x\ty\n1\t2\n3\t4\n", "row 2, column x is new"),
        ("a.npz", {"w": NANS}, {"w": ZEROS}, "w[1] is -0.0, was 0.0 (1 of 2 values differ)"),
        ("a.npz", {"w": NANS}, {"w": NANS[:1]}, "w is float64[1], was float64[2]"),
        ("a.safetensors", {"b": NANS}, {"b": ZEROS},
         "b[1] is -0.0, was 0.0 (1 of 2 values differ)"),
        ("a.png", [[1, 2]], [[1], [2]], "the size is 1 x 2 L, was 2 x 1 L"),
        ("a.txt", "x" * 99 + "a", "x" * 99 + "b",
         f"line 1 is ... {'x' * 30}b ..., was ... {'x' * 30}a ..."),
        ("a.txt", "a\r\n", "a\n", "byte 1, of 3 bytes; now 2"),
        ("a.pkl", b"\x80\x04a", b"\x80\x04b", "byte 2"),
    ],
)  # fmt: skip
def test_the_first_difference_is_told_in_the_terms_of_the_format(tmp_path, name, was, now, told):
    for folder, content in (("was", was), ("now", now)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text("same")
        save(tmp_path / folder / name, content)
    paths = tmp_path / "was", tmp_path / "now"
    assert difference.first(*paths) == f"{name}: {told}"
    assert difference.first(paths[0], paths[0]) == ""
