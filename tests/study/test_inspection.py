"""What other machines send is checked before it is written, and trusted only if it was verified."""

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import chdir
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path

import pytest
from machines import STUDY

from conftest import ROOT, flip_bit, make_clone
from dvc_kit.files import write_bytes
from stages.base.files import DATA_PREPARED
from study import missing, places, worker
from study.engine import Computation
from study.team import Team


def sent(order, at: str, content: bytes | None = None) -> dict:
    """A file as a worker sends it, or the committed cell."""
    content = (ROOT / order.path).read_bytes() if content is None else content
    sent = {"stage": order.stage, "worker": f"host of {at}", "address": at, "seconds": 1.0}
    return sent | {"content": content}


@dataclass
class Room(places.Place):
    """Machines that answer at once: what each sends for an order, by its address."""

    machines: dict = field(default_factory=dict)

    def submit(self, order, key, only=()):
        at = next(at for at in self.machines if at in only or not only)
        answered = Future()
        answered.set_result((at, self.machines[at](order, at)))
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
    return path


@pytest.fixture(scope="module")
def all_cells(home):
    with chdir(home), missing.opened() as repo:
        return missing.stale(repo)


@pytest.fixture
def cells(home, all_cells, monkeypatch):
    monkeypatch.setattr(worker, "ROOT", home)
    with chdir(home):
        yield all_cells
        worker.stop.clear()
        for folder in ("study/cells", ".dvc/cache/runs"):
            shutil.rmtree(folder, ignore_errors=True)
        objects = filter(Path.is_file, Path(".dvc/cache/files").rglob("*"))
        for path in (*objects, Path("study/dvc.lock")):
            path.unlink(missing_ok=True)


def computed(cells, audit=0.0, **machines) -> list[str]:
    room = Room("room", ThreadPoolExecutor(1), client=True, machines=machines)
    faults = Computation(cells, room, audit).run()
    for cell in cells:
        assert cell.path.read_bytes() == (ROOT / cell.path).read_bytes()
    return faults


COLUMNS = ("epoch", "train_accuracy", "train_loss")


@pytest.mark.parametrize(
    ("reason", "reply", "cell"),
    [
        (" is of cell@b from one", {"stage": "cell@b"}, {}),
        ("content: Input should be a valid bytes", {"content": 1}, {}),
        ("more: Extra inputs are not permitted", {"more": 1}, {}),
        ("Input should be a valid dictionary", ["a list"], {}),
        (" from two", {"address": "two"}, {}),
        ("should be an object", {}, b"[1]"),
        ("test_accuracy is not the one of", {}, {"test_accuracy": 0.5}),
        ("scores.test_accuracy is missing", {}, {"scores": {"test_images": [1]}}),
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

    [fault] = computed(cells, one=spoiled, two=sent)
    assert reason in fault and " gets no more orders: its " in fault
    assert cells[0].stage.name in fault and "\n" not in fault


def test_what_a_dismissed_machine_has_sent_does_not_verify_what_others_send(cells, capsys):
    def wrong_once(order, at):
        return "text" if order.stage == cells[1].stage.name else sent(order, at)

    computed(cells, 1.0, one=wrong_once, two=sent, three=sent)
    said = capsys.readouterr().out
    assert "host of one gets no more orders" in said
    came = [line for line in said.splitlines() if line.startswith("[")]
    assert len(came) == 4 and "host of one" not in "".join(came)


def test_the_first_cell_of_a_machine_is_verified(cells, capsys):
    computed(cells, 0.25, one=sent, two=sent)
    said = capsys.readouterr().out.splitlines()
    [verified] = [line for line in said if ", the same from host of two" in line]
    assert f" {cells[0].stage.name} from host of one " in verified


@pytest.mark.parametrize(("share", "verified"), [(0.5, 1), (1.0, 2)])
def test_an_audit_is_a_share_of_what_is_computed_now(cells, share, verified, capsys):
    computed(cells[:2], one=sent)
    capsys.readouterr()
    with missing.opened() as repo:
        computed(missing.stale(repo), share, one=sent, two=sent)
    assert capsys.readouterr().out.count(", the same from host of two") == verified


def here() -> list[bool]:
    with missing.opened() as repo:
        return [cell.here for cell in missing.stale(repo)]


def test_what_came_is_found_by_the_next_engine_and_by_dvc_in_its_run_cache(cells):
    computed(cells, one=sent)
    cells[0].path.write_bytes(b"damaged")
    cells[1].path.unlink()
    cells[2].forget()
    assert not cells[2].path.exists()
    assert here() == [True, True, False, True]
    Path("study/params.yaml").write_text(STUDY.replace("100", "101"), encoding="utf-8")
    assert here() == [True, True, False, False]  # this one holds out so many images
    Path("study/params.yaml").write_text(STUDY, encoding="utf-8")
    with missing.opened() as repo:
        missing.take_over([cell for cell in missing.stale(repo) if cell.here])
    assert here() == [False]


def test_all_that_a_wrong_machine_made_is_made_again(cells, monkeypatch, capsys):
    def wrong(order, at):
        cell = json.loads((ROOT / order.path).read_bytes())
        if order.stage == cells[2].stage.name:  # the others are well by accident
            cell["history"]["train_loss"][1] += 1e-6
        return sent(order, at, content=json.dumps(cell).encode())

    def only_one(self, reply, share, of):
        """The audit is of the cell that is wrong."""
        return reply.stage == cells[2].stage.name and bool(self.others([reply]))

    here_too = Room("here", ThreadPoolExecutor(1), machines={"": sent})
    monkeypatch.setattr(places, "local", lambda: here_too)
    monkeypatch.setattr(Team, "audits", only_one)
    [fault] = computed(cells, 1.0, one=wrong, two=sent)
    assert fault.startswith("host of one gets no more orders: its ")
    assert " from epoch 2 on, in train_loss: " in fault
    came = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    of_two = {line.split()[1] for line in came if " from host of two " in line}
    assert of_two >= {cell.stage.name for cell in cells[:3]}


def test_a_damaged_object_of_the_cache_is_taken_for_no_cell(cells):
    computed(cells, one=sent)
    name = md5(cells[0].path.read_bytes()).hexdigest()
    kept = Path(".dvc/cache/files/md5", name[:2], name[2:])
    flip_bit(kept)
    kept.chmod(0o444)  # DVC believes what is read-only
    assert here() == [False, True, True, True]
