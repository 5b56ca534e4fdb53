"""A model that is served is built from committed weights, and answers only images."""

import base64
import hashlib
import itertools
import json
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
import requests
import torch
import uvicorn
from tiny import make_project, make_results

from conftest import forget_the_history, free_port, wait_for
from dvc_kit.errors import InputError, StageError
from dvc_mlflow import store, sync
from stages import serve
from stages.base.params import Recipe
from stages.networks import models

JSON = "application/json"


def images(count: int = 1, rows: int = 28, columns: int = 28, pixel: object = 0) -> list:
    return [[[pixel] * columns for _ in range(rows)] for _ in range(count)]


def body(inputs: object, **more: object) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def one_pixel(value: object) -> list:
    """Two images that are black but for the last pixel."""
    found = images(2)
    found[1][27][27] = value
    return found


BAD_TYPES = (None, "", "text/csv", "application/json2", f"{JSON}; charset=utf-16")


def test_images_of_28_by_28_whole_numbers_from_0_to_255_are_taken():
    for count, pixel in itertools.product((1, 2, 28), (0, 1, 255)):
        assert serve.refusal(JSON, body(images(count, pixel=pixel))) is None
    for content_type in ("Application/JSON", "APPLICATION/JSON ;charset=UTF-8"):
        assert serve.refusal(content_type, body(images()).decode().encode("utf-8-sig")) is None
    for content_type in BAD_TYPES:  # before the body is read
        assert serve.refusal(content_type, b"not even JSON")[0] == 415
    row = len(json.dumps([[255] * 28] * 28))  # three digits a pixel, with a comma and a space
    assert 10_000 * (row + 2) < serve.LARGEST_BODY < 2**30


MANY, NO_LIST = "there are too many lists and texts", "should be a valid array"
REFUSED = {  # what is sent, and a part of the reason
    "27 rows": (images(rows=27), "inputs.0: List should have at least 28 items"),
    "29 columns": (images(columns=29), "inputs.0.0: List should have at most 28 items"),
    "resized": (images(2, 32, 32), "inputs.0.0: List should have at most 28 items"),
    "without the dimension of the batch": (images()[0], f"inputs.0.0: Input {NO_LIST}"),
    "nested deep": (b"[" * 900 + b"]" * 900, "Invalid JSON: recursion limit exceeded"),
    "no image": ([], "inputs: List should have at least 1 item"),
    "a number": (0, f"inputs: Input {NO_LIST}"),
    "-1": (one_pixel(-1), "inputs.1.27.27: Input should be greater than or equal to 0"),
    "256": (one_pixel(256), "inputs.1.27.27: Input should be less than or equal to 255"),
    "2**64": (one_pixel(2**64), "Input should be less than or equal to 255"),
    "a half": (one_pixel(0.5), "Input should be a valid integer"),
    "a text": (one_pixel("7"), "Input should be a valid integer"),
    "null": (one_pixel(None), "Input should be a valid integer"),
    "NaN": (one_pixel(float("nan")), "Input should be a valid integer"),
    "true": (one_pixel(True), "Input should be a valid integer"),
    "extra key": (body(images(), params={}), "params: Extra inputs are not permitted"),
    "no object": (json.dumps(images()).encode(), "Input should be an object"),
    "not UTF-8": (b'{"inputs": "\xff\xfe"}', "Invalid JSON: invalid unicode code point"),
    "UTF-16": (body(images()).decode().encode("utf-16"), "Invalid JSON"),
    "nested too deep": (b"[" * 200_000, MANY),
    "many small objects": (body([{}] * 2_000), MANY),
    "many short texts": (body([""] * 2_000), MANY),
    "a number of 5,000 digits": (b'{"inputs": [%s]}' % (b"9" * 5_000), "Invalid JSON: number"),
}


@pytest.mark.parametrize(("sent", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_images_is_refused_with_what_it_is_and_what_is_expected(sent, said):
    status, reason = serve.refusal(JSON, sent if isinstance(sent, bytes) else body(sent))
    assert status == 400 and said in reason
    assert "integers from 0 to 255 of shape (N, 28, 28)" in reason


# --- the model is built from committed weights ---

MLP = "models/mlp.safetensors"


@pytest.fixture
def project(standing):
    forget_the_history()
    store.find_experiment()  # as the command does
    return standing[0]


@pytest.fixture
def client(standing):
    return standing[1]


def model_of(client, name: str):
    (model,) = client.search_logged_models(["1"], filter_string=f"name = '{name}'")
    return model


def artifacts(model) -> Path:
    return Path(urlparse(model.artifact_location).path)


def answers(folder: Path, images: np.ndarray) -> np.ndarray:
    """What the model in a folder says."""
    import mlflow

    return mlflow.pyfunc.load_model(str(folder)).predict(images)


def expected(weights: Path, images: np.ndarray) -> np.ndarray:
    recipe = Recipe.model_construct(dropout=0.5, softmax_before_loss=False)
    classifier = models.Classifier(models.load_model("mlp", recipe, weights)).eval()
    return classifier(torch.from_numpy(images)).detach().numpy()


def some_images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)


def test_each_name_of_a_model_gives_the_model_of_its_commit(client, project, tmp_path):
    commit = project.git("rev-parse", "HEAD")[:10]
    md5 = hashlib.md5((project.path / MLP).read_bytes()).hexdigest()
    version = next(
        found.version
        for found in client.search_model_versions("name = 'mnist'")
        if found.tags["model"] == "mlp"
    )
    for at, what in enumerate((model_of(client, "mlp").model_id, f"models:/mnist/{version}")):
        folder = tmp_path / str(at)
        said, drawing = serve.build(what, folder)
        assert base64.b64encode((project.path / MLP).read_bytes()).decode() in drawing
        assert said == f"{what} is {MLP} (md5 {md5}) of commit {commit}"
        found = answers(folder, some_images())
        assert np.allclose(found, expected(project.path / MLP, some_images()), atol=1e-6)
        assert (folder / "extra_files/mlp.safetensors").read_bytes() == (
            project.path / MLP
        ).read_bytes()
    champion, _ = serve.build("models:/mnist@champion", tmp_path / "champion")
    assert champion.startswith("models:/mnist@champion is models/lenet5.safetensors (md5 ")
    assert Path.cwd() == project.path


def test_nothing_that_lies_in_the_store_is_served(client, project, tmp_path):
    """Neither what somebody has changed there, nor what is missing."""
    model = model_of(client, "mlp")
    shutil.copytree(artifacts(model), tmp_path / "kept")
    for path in [*artifacts(model).rglob("*"), artifacts(model) / "new.py"]:
        if not path.is_dir():
            path.write_bytes(b"evil")
    try:
        serve.build(model.model_id, tmp_path / "model")
    finally:
        shutil.rmtree(artifacts(model))
        (tmp_path / "kept").rename(artifacts(model))
    built = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert not [path for path in built if b"evil" in path.read_bytes()]
    found = answers(tmp_path / "model", some_images())
    assert np.allclose(found, expected(project.path / MLP, some_images()), atol=1e-6)


def test_a_model_of_an_older_commit_needs_no_settings_of_today(standing_in, tmp_path):
    project = make_project(tmp_path / "project", seed=1)
    old = project.git("rev-parse", "HEAD")[:10]
    shutil.copy(project.path / MLP, tmp_path / "old weights")
    with standing_in(project) as client:
        sync.sync()
        what = model_of(client, "mlp").model_id
        project.edit("recipes.yaml", "\ndocumented:", "\nrenamed:")
        project.edit("params.yaml", "\nrecipe: documented", "\nrecipe: renamed")
        make_results(project, seed=2)
        project.commit("another recipe")
        told, _ = serve.build(what, tmp_path / "model")
        assert told.endswith(f" of commit {old}")
        found = answers(tmp_path / "model", some_images())
        assert np.allclose(found, expected(tmp_path / "old weights", some_images()), atol=1e-6)
        assert not np.allclose(found, expected(project.path / MLP, some_images()), atol=1e-3)


def test_weights_that_cannot_be_had_are_told_with_the_command_that_brings_them(
    client, project, tmp_path
):
    md5 = project.md5(MLP)
    kept = project.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    kept.rename(tmp_path / "kept")
    (project.path / MLP).rename(tmp_path / "weights")
    try:
        with pytest.raises(
            StageError, match=rf"^{MLP} of commit .*`git checkout .* dvc pull {MLP}"
        ):
            serve.build(model_of(client, "mlp").model_id, tmp_path / "model")
    finally:
        (tmp_path / "kept").rename(kept)
        (tmp_path / "weights").rename(project.path / MLP)
    assert Path.cwd() == project.path


def test_what_no_commit_holds_and_what_is_no_model_is_refused(client, project, tmp_path):
    for tags in ({"md5": "md5 of others", "file": MLP}, {}):
        model = client.create_logged_model("1", name="other", tags=tags)
        with pytest.raises(StageError, match=r"is refused: its bytes match no dvc\.lock"):
            serve.build(model.model_id, tmp_path)
        client.delete_logged_model(model.model_id)
    with pytest.raises(InputError, match=r"^models:/mnist/99 is no model of sqlite:"):
        serve.build("models:/mnist/99", tmp_path)


# --- real sockets ---


@pytest.fixture(scope="module")
def address(standing, tmp_path_factory):
    """That of the real application, with a model that a commit holds."""
    forget_the_history()
    store.find_experiment()
    folder, port = tmp_path_factory.mktemp("app") / "model", int(free_port())
    _, drawing = serve.build("models:/mnist@champion", folder)
    app = serve.application(folder, drawing)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def post(address: str, data: object, **headers: str) -> requests.Response:
    told = {"Content-Type": JSON} | headers
    return requests.post(f"{address}/invocations", data, headers=told, timeout=60)


def test_the_real_application_answers_good_images_and_refuses_bad_ones(address, monkeypatch):
    for content in (body(images(2)), body(images(2)).decode().encode("utf-8-sig")):
        answer = post(address, content)
        assert answer.status_code == 200 and np.shape(answer.json()["predictions"]) == (2, 10)
    bad = body(one_pixel(True))
    refused = post(address, bad)
    status, reason = serve.refusal(JSON, bad)
    assert (refused.status_code, refused.json()) == (status, {"message": reason})
    assert "draw" in requests.get(address, timeout=60).text
    monkeypatch.setattr(serve, "LARGEST_BODY", len(content))
    assert post(address, content).status_code == 200
    for parts in (content + b" ", iter([content, b" "])):  # also if its length is not told
        assert post(address, parts).status_code == 413


HOSTS = dict.fromkeys(("localhost", "LOCALHOST:5001", "127.0.0.1:80", "[::1]:5001"), 200) | (
    dict.fromkeys(("evil.example:5001", "localhost.evil.example", "xlocalhost"), 403)
)


@pytest.mark.parametrize(("host", "status"), HOSTS.items())
def test_a_request_for_another_host_is_refused_and_told_which_are_allowed(address, host, status):
    for answer in (
        requests.get(f"{address}/ping", headers={"Host": host}, timeout=60),
        requests.get(address, headers={"Host": host}, timeout=60),
        post(address, body(images()), Host=host),
    ):
        assert answer.status_code == status
        assert ("expected localhost, 127.0.0.1 or [::1]" in answer.text) == (status == 403)


@pytest.mark.parametrize(
    ("told", "host", "named"),
    [
        ("192.0.2.1:5001", "0.0.0.0", True),  # no page can take an address in numbers as its name
        ("[2001:db8::1]:5001", "0.0.0.0", True),
        ("Digits.example:5001", "digits.example", True),
        (f"{socket.gethostname()}:5001", "0.0.0.0", True),
        ("evil.example:5001", "0.0.0.0", False),
        ("192.0.2.1.evil.example", "0.0.0.0", False),
        ("192.0.2.1:5001", "127.0.0.1", False),
        (socket.gethostname(), "127.0.0.1", False),
    ],
)
def test_a_server_for_other_machines_answers_to_its_addresses_and_names(told, host, named):
    assert serve.is_named(told, host) == named


def test_others_are_answered_while_a_body_is_checked(address, monkeypatch):
    begun, answered = threading.Event(), threading.Event()

    def check(content_type, content):
        begun.set()
        assert answered.wait(30)

    monkeypatch.setattr(serve, "refusal", check)
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(post, address, body(images()))
        assert begun.wait(30)
        assert requests.get(f"{address}/ping", timeout=60).status_code == 200
        answered.set()
        assert checked.result().status_code == 200


# --- what it is started with ---

USAGE = (2, "usage: python -m stages.serve [MODEL [PORT [HOST]]]\n")
STARTED = {
    **{("models:/mnist/1", port): USAGE for port in ("0", "65536", "-1", "80.5", "http", "")},
    ("models:/mnist/1", "5001", "127.0.0.1", "more"): USAGE,
    # The next step is the store, in the project's folder wherever it was started from
    (): (1, "no model is registered in sqlite:///"),
    ("models:/mnist/1", "65535"): (2, "models:/mnist/1 is no model of sqlite:///"),
}


@pytest.mark.parametrize(("arguments", "ends"), STARTED.items())
def test_a_model_and_a_port_may_be_named(arguments, ends, empty_store, monkeypatch, capsys):
    import mlflow

    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store}")
    monkeypatch.chdir(empty_store.parent)
    monkeypatch.setattr("sys.argv", ["serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        serve.main()
    mlflow.set_tracking_uri(before)
    code, line = ends
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith(f"error: {line}")
