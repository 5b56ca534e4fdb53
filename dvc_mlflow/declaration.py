"""A dvc.yaml as DVC reads it, without the parts that DVC cannot read."""

from typing import Any

from dvc_kit.errors import one_line


def is_ignored(repo: Any, path: str) -> bool:
    """Whether a file or one of its folders is named by .dvcignore.

    Args:
        repo: DVC's object for the project.
        path: A path that begins with the folder of the project.
    """
    below = repo.fs.relpath(path, repo.root_dir).split("/")
    folders = (repo.fs.join(repo.root_dir, *below[:at]) for at in range(1, len(below)))
    rules = repo.dvcignore
    return rules.is_ignored_file(path) or any(map(rules.is_ignored_dir, folders))


def read(declared: Any) -> list[str]:
    """Read a dvc.yaml, and leave out every part that does not have the form that DVC wants.

    Args:
        declared: DVC's `ProjectFile` for it. Its `contents` are what is left.

    Returns:
        For each part that is left out its keys and DVC's reason.

    Raises:
        DvcException: Nothing of it can be read.
    """
    from voluptuous import MultipleInvalid

    check, left_out = declared.SCHEMA, list[str]()
    declared.SCHEMA = lambda contents: contents
    contents = declared.contents
    while True:
        try:
            check(contents)
            return left_out
        except MultipleInvalid as invalid:
            error = invalid.errors[0]
            keys = [getattr(key, "schema", key) for key in error.path]  # some have a wrapper
            if not keys:  # it is no mapping at all
                del declared.SCHEMA, declared.contents
                declared.contents  # noqa: B018 (raises as DVC does)
            left_out.append(f"{'.'.join(map(str, keys))}: {error.error_message}")
            _leave_out(contents, keys, error.error_message == "extra keys not allowed")


def _leave_out(contents: Any, keys: list[Any], is_extra: bool) -> None:
    """Take away the part with a mistake: a key that DVC does not know, or else a whole stage or an
    entry of a section."""
    lost = keys if is_extra else keys[:2]
    for key in lost[:-1]:
        contents = contents[key]
    del contents[lost[-1]]


def items(group: str, definition: Any) -> list[str]:
    """The names of the stages that a definition of DVC's resolver makes."""
    named = getattr(definition, "get_generated_names", None)
    return [*named()] if named else [group]


def reason(error: BaseException) -> str:
    """DVC's reason in one line, with what it otherwise prints below it."""
    cause = getattr(error, "exc", None)
    cause = getattr(cause, "__cause__", None) or cause
    if cause is None:
        return one_line(error)
    mark = getattr(cause, "problem_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{one_line(error)}: {one_line(getattr(cause, 'problem', None) or cause)}{place}"
