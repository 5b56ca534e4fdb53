"""How deeply a text is nested, before a parser sees it: parsers recurse, those in C as well.

Nothing here recurses, and each look is linear. A text that is no JSON, YAML or TOML is measured up
to its first error, because its parser comes no further.
"""

import contextlib
import itertools
import re

MOST = 100  # levels
MOST_NODES = 10**6  # for which the aliases of YAML stand
STRING = r'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?'
JSON_STRINGS = re.compile(STRING, re.DOTALL)
TOML_STRINGS = re.compile(  # and comments
    rf"\"{{3}}(?:[^\\]|\\.)*?\"{{3}}|{STRING}|'{{3}}.*?'{{3}}|'[^'\n]*'|#[^\n]*", re.DOTALL
)
STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


def of_json(text: str) -> int:
    return _of_brackets(JSON_STRINGS.sub("", text))


def _of_brackets(text: str) -> int:
    brackets = re.sub(r"[^][{}]+", "", text)
    return max(itertools.accumulate(map(STEPS.__getitem__, brackets)), default=0)


def of_toml(text: str) -> int:
    """At least the depth: that of the brackets, and that of the dots in a key."""
    plain = TOML_STRINGS.sub("", text)
    keys = re.findall(r"[^=\n,{]*=|^[ \t]*\[[^,\n]*$", plain, re.MULTILINE)
    return _of_brackets(plain) + max((key.count(".") for key in keys), default=0)


def of_yaml(text: str) -> int:
    """At least the depth. More than MOST also where aliases stand for more than MOST_NODES.

    A collection begins with a bracket, or further to the right than the one around it (a list in a
    mapping may begin below it). Most files are shallow by that alone, at the price of one look.
    """
    farthest = max(map(len, re.findall(r"^[ \t?:-]*", text, re.MULTILINE)))
    bound = 2 * farthest + 2 + text.count("[") + text.count("{")
    if bound <= MOST and not re.search("[*\r\x85\u2028\u2029]", text):
        return bound
    return _by_events(text)


def _by_events(text: str) -> int:
    """The depth by the part of YAML's parser that does not recurse."""
    from ruamel.yaml import YAML
    from ruamel.yaml import events as kinds
    from ruamel.yaml.error import YAMLError

    deepest, nodes, written = 0, 0, 0
    around: list[tuple[str | None, int]] = []  # the anchor of each collection, the nodes before it
    sizes: dict[str | None, int] = {}  # the nodes of each anchor
    with contextlib.suppress(YAMLError, ValueError):
        for event in YAML(typ="safe").parse(text):
            if isinstance(event, kinds.AliasEvent):
                nodes += sizes.get(event.anchor, 0)
            elif isinstance(event, kinds.CollectionStartEvent):
                around.append((event.anchor, nodes))
                deepest = max(deepest, len(around))
            elif isinstance(event, kinds.CollectionEndEvent):
                anchor, before = around.pop()
                sizes[anchor] = nodes - before
            nodes, written = nodes + 1, written + 1
            if deepest > MOST or nodes - written > MOST_NODES:
                return MOST + 1
    return deepest
