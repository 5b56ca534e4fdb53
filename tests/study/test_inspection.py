"""What other machines send is checked before it is written, and trusted only if it was verified."""

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import chdir
from dataclasses import asdict, dataclass, field
from hashlib import md5
from pathlib import Path

import pytest
from machines import STUDY

from conftest import ROOT, flip_bit, make_clone
from dvc_mlflow.files import write_bytes
from stages.base.files import DATA_PREPARED
from study import missing, places, worker
from study.engine import Computation
from study.inspection import LARGEST
from study.worker import Reply


def sent(order, at: str, content: bytes | None = None) -> dict:
    """A file as a worker sends it, or the committed cell."""
    content = (ROOT / order.path).read_bytes() if content is None else content
    return asdict(Reply(order.stage, f"host of {at}", at, 1.0, content, md5(content).hexdigest()))


@dataclass
class Room(places.Place):
    """Machines that answer at once: what each sends for an order, by its address."""

    machines: dict = field(default_factory=dict)

    def submit(self, order, key, only=()):
        at = next(at for at in self.machines if at in only or not only)
        answered = Future()
        answered.set_result((at, json.dumps(self.machines[at](order, at), default=bytes.hex)))
        return answered

    def addresses(self):
        return [*self.machines]

    def dismiss(self, address):
        self.machines.pop(address, None)


@pytest.fixture(scope="module")
def home(raw, tmp_path_factory):
    """A clone with a study of four cells, none of which is here."""
    path = make_clone(tmp_path_factory.mktemp("study") / "home").path
    shutil.rmtree(path / "study/cells")
    (path / "study/dvc.lock").unlink()
    (path / "study/params.yaml").write_text(STUDY, encoding="utf-8")
    write_bytes(path / DATA_PREPARED / "images", b"")
    (path / missing.JOURNAL.parent).mkdir()
    return path


@pytest.fixture
def cells(home, monkeypatch):
    monkeypatch.setattr(worker, "ROOT", home)
    with chdir(home):
        with missing.opened() as repo:
            found = missing.stale(repo)
        yield found
        worker.stop.clear()
        missing.JOURNAL.unlink(missing_ok=True)
        for folder in ("study/cells", ".dvc/cache"):
            shutil.rmtree(folder, ignore_errors=True)


def computed(cells, audit=0.0, **machines) -> Computation:
    room = Room("room", ThreadPoolExecutor(1), client=True, machines=machines)
    computation = Computation(cells, room, audit)
    computation.run()
    for cell in cells:
        assert cell.path.read_bytes() == (ROOT / cell.path).read_bytes()
    return computation


NESTED = json.loads("[" * 300 + "]" * 300)
COLUMNS = ("epoch", "train_accuracy", "train_loss")


@pytest.mark.parametrize(
    ("reason", "reply", "cell"),
    [
        (" is of cell@b from one", {"stage": "cell@b"}, {}),
        ("Input should be an object", ["a list"], {}),
        ("Invalid JSON: recursion limit", NESTED, {}),
        ("content: Input should be a valid bytes", {"content": 1}, {}),
        ("content: Data should have at most", {"content": bytes(LARGEST + 1)}, {}),
        ("seconds: Input should be a finite", {"seconds": float("nan")}, {}),
        ("more: Extra inputs are not permitted", {"more": 1}, {}),
        ("worker: String should match", {"worker": "host\n[4/4] of another"}, {}),
        (" from two", {"address": "two"}, {}),
        ("does not have the md5", {"md5": "0" * 32}, {}),
        ("Invalid JSON: recursion limit", {}, b"[" * 300),
        ("should be an object", {}, b"[1]"),
        ("test_loss: Input should be a finite", {}, {"test_loss": float("inf")}),
        ("test_accuracy: Input should be less", {}, {"test_accuracy": 1.1}),
        ("test_accuracy is not the one of", {}, {"test_accuracy": 0.5}),
        ("scores.test_accuracy is missing", {}, {"scores": {"test_images": [1]}}),
        ("history: Input should be an object", {}, {"history": [1]}),
        ("epochs in each column", {}, {"history": {key: [1] for key in COLUMNS}}),
        ("errors has 1 images", {}, {"errors": {"index": [1], "label": [2], "predicted": [3]}}),
        ("sha256.1: String should match", {}, {"sha256": ["0" * 64 + "  weights", "abc"]}),
    ],
)
def test_a_reply_that_is_not_the_cell_is_refused_and_the_cell_asked_for_elsewhere(
    cells, reason, reply, cell
):
    def spoiled(order, at):
        content = cell
        if isinstance(cell, dict):
            content = json.dumps(json.loads((ROOT / order.path).read_bytes()) | cell).encode()
        return sent(order, at, content=content) | reply if isinstance(reply, dict) else reply

    [fault] = computed(cells, one=spoiled, two=sent).faults
    assert reason in fault and " gets no more cells: its " in fault
    assert cells[0].stage.name in fault and "\n" not in fault
    assert {note.worker for note in missing.read_journal().values()} == {"host of two"}


def test_what_a_dismissed_machine_has_sent_does_not_verify_what_others_send(cells, capsys):
    def wrong_once(order, at):
        return "text" if order.stage == cells[1].stage.name else sent(order, at)

    computed(cells, 1.0, one=wrong_once, two=sent, three=sent)
    said = capsys.readouterr().out
    assert "host of one gets no more cells" in said
    came = [line for line in said.splitlines() if line.startswith("[")]
    assert len(came) == 4 and "host of one" not in "".join(came)


def test_the_first_cell_of_a_machine_is_verified(cells, capsys):
    computed(cells, 0.25, one=sent, two=sent)
    said = capsys.readouterr().out.splitlines()
    [verified] = [line for line in said if ", the same from host of two" in line]
    assert f" {cells[0].stage.name} from host of one " in verified


def here() -> list[bool]:
    with missing.opened() as repo:
        return [cell.here for cell in missing.stale(repo)]


def test_only_a_whole_file_that_a_whole_line_notes_for_the_same_deps_has_come(cells):
    computed(cells, one=sent)
    cells[0].path.write_bytes(b"damaged")
    of_others = missing.read_journal()[cells[1].stage.name].model_copy(update={"key": "0" * 64})
    missing.note(cells[2].stage.name)  # taken back
    torn = (of_others.model_dump_json().encode(), b"[1]", b"\xff", b'{"stage": []}', b"[" * 300)
    with missing.JOURNAL.open("ab") as file:
        file.writelines(b"\n" + line for line in torn)
    assert here() == [False, False, False, True]


def test_a_damaged_object_of_the_cache_is_taken_for_no_cell(cells):
    computed(cells, one=sent)
    with missing.opened() as repo:
        missing.take_over(repo, missing.stale(repo))
    Path("study/dvc.lock").unlink()
    assert here() == [True, True, True, True]  # out of the run cache
    name = md5(cells[0].path.read_bytes()).hexdigest()
    kept = Path(".dvc/cache/files/md5", name[:2], name[2:])
    flip_bit(kept)
    kept.chmod(0o444)  # DVC believes what is read-only
    assert here() == [False, True, True, True]
