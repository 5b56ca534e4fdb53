"""The command line of the guard."""

import pytest

from conftest import Clone


@pytest.fixture
def repository(tmp_path) -> Clone:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    return Clone(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("", 2, "the following arguments are required: command; `dvc-guard --help` shows what"),
        ("damage remove", 2, "unrecognized arguments: remove; "),
        ("mend --project no", 2, "no is not the folder of a DVC project; here are ."),
        ("attest", 1, "reports/rebuilds is empty: "),
        ("damage", 0, ""),
        ("mend", 0, ""),
    ],
)
def test_a_command_says_in_one_line_what_is_wrong(repository, arguments, code, said):
    ended = repository.run("python", "-m", "dvc_guard", *arguments.split(), check=False)
    assert ended.returncode == code
    assert ended.stderr.startswith(f"error: {said}" if said else "")
    assert ended.stderr.count("\n") == bool(said)
