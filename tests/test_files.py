"""What is written is whole, is the same every time, and reads back."""

import hashlib
import json
import math
import re

import numpy as np
import pytest
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB
from dvc_objects.fs.local import LocalFileSystem
from PIL import Image
from ruamel.yaml import YAML

from conftest import ROOT
from stages import files
from stages.errors import InputError, StageError, main_function, one_line
from stages.files import rounded
from stages.params import MODEL_NAMES


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_result_lies_where_dvc_yaml_says_that_it_is_written():
    outs = {}
    for project in (ROOT, ROOT / files.STUDY):
        stages = YAML(typ="safe").load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        for name, stage in stages.items():
            listed = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
            paths = [next(iter(out)) if isinstance(out, dict) else out for out in listed]
            outs[name] = {(project / path).relative_to(ROOT) for path in paths}
    for model in MODEL_NAMES:
        trained = {files.model_path(model), files.history_path(model), files.training_path(model)}
        assert outs[f"train_{model}"] == trained
        assert {files.predictions_path(model), files.confusion_path(model)} < outs["evaluate"]
    assert {files.METRICS, files.COMPARISON} < outs["evaluate"]
    assert files.FIGURES in outs["plot"]
    assert outs["prepare"] == {files.DATA_PREPARED}
    template = {"recipe": "record", "model": "mlp", "seed": "3"}
    [cell] = outs["cell"]
    named = re.sub(r"\$\{item\.(\w+)\}", lambda found: template[found[1]], cell.as_posix())
    assert files.cell_path(**template).as_posix() == named


def test_floats_are_rounded_to_6_significant_digits_wherever_they_are():
    assert rounded(1234.5678) == 1234.57
    assert rounded(0.00012345678) == 0.000123457
    assert rounded(-2 / 3) == -0.666667
    assert rounded(1e300) == 1e300
    value = {"a": [1 / 3, (2 / 3, "1.23456789")], "b": {"c": 10 / 3}, "d": 123456789, "e": True}
    assert rounded(value) == {
        "a": [0.333333, [0.666667, "1.23456789"]],
        "b": {"c": 3.33333},
        "d": 123456789,
        "e": True,
    }


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
        files.write_bytes(files.Path("a file/below"), b"more")
    (folder / "a folder").mkdir()
    with pytest.raises(StageError, match=r"^a folder cannot be written \(Is a directory\)"):
        files.write_bytes(files.Path("a folder"), b"more")
    assert sorted(path.name for path in folder.iterdir()) == ["a file", "a folder"]
    assert (folder / "a file").read_bytes() == b"whole"


def test_json_is_sorted_with_short_lists_of_numbers_on_one_line(folder):
    value = {"b": [1, 2.0, 1e-7, -3], "a": {"d": ["x", "y"], "c": 2 / 3}, "e": []}
    files.write_json(folder / "x.json", value)
    text = (folder / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "a": {"c": 0.666667, "d": ["x", "y"]},
        "b": [1, 2, 1e-7, -3],
        "e": [],
    }
    assert re.findall(r'"(\w)":', text) == ["a", "c", "d", "b", "e"]
    assert '  "b": [1, 2.0, 1e-07, -3],\n' in text
    assert '    "d": [\n      "x",\n      "y"\n    ]\n' in text
    assert text.endswith("}\n")


def test_a_number_that_json_lacks_is_refused(folder):
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            files.write_json(folder / "x.json", {"a": [value]})
    assert not (folder / "x.json").exists()


def test_rows_with_fewer_columns_leave_theirs_empty_and_columns_read_back_as_numbers(folder):
    path = folder / "x.csv"
    files.write_rows(path, [{"a": 1, "b": 2 / 3, "c": "x, y"}, {"c": "z", "a": 2}])
    assert path.read_bytes() == b'a,b,c\n1,0.666667,"x, y"\n2,,z\n'
    files.write_csv(path, ["a", "b"], [[1, 0.5], (2, 1 / 3)])
    assert files.read_csv(path) == {"a": [1.0, 2.0], "b": [0.5, 0.333333]}
    files.write_csv(path, ["a", "b"], [])
    assert files.read_csv(path) == {}


def test_fingerprints_are_lines_of_sha256sum_and_read_back_whatever_the_name(folder):
    pairs = [("first batch", files.sha256(b"abc")), ("two  spaces", files.sha256(b""))]
    lines = files.fingerprint_lines(pairs)
    assert lines[0] == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  first batch"  # FIPS 180
    )
    assert files.read_fingerprints(lines) == dict(pairs)


def test_the_md5_of_a_file_or_a_folder_is_dvcs(folder):
    for name, content in {"b/z": b"1", "b/a/y": b"2", "b.c": b"3", "a": b""}.items():
        files.write_bytes(folder / "data" / name, content)
    fs = LocalFileSystem()
    odb = HashFileDB(fs, str(folder / "odb"))
    for path in (folder / "data", folder / "data" / "b" / "z"):
        _, _, built = build(odb, str(path), fs, "md5", dry_run=True)
        assert files.md5(path) == built.hash_info.value
    assert files.md5(folder / "data" / "b" / "z") == hashlib.md5(b"1").hexdigest()


def test_a_picture_is_a_png_of_its_pixels(folder):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    files.write_png(folder / "x.png", Image.fromarray(pixels))
    with Image.open(folder / "x.png") as image:
        assert image.format == "PNG"
        assert (np.asarray(image) == pixels).all()


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
