"""Variables in a YAML tree, matrices and the names of rows. Pure: nodes in, nodes out, places kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import yaml

from p2prw.config_values import nearest
from p2prw.errors import RequestError

Lookup = Callable[[str], str | None]

_VARIABLE = re.compile(r"\$\$|\$\{([^{}]*)\}|\$(?=\{)")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def substitute(text: str, lookup: Lookup, known: Sequence[str], place: str) -> str:
    """Return `text` with each ${name} replaced; `$$` is one `$`. RequestError for a name that is not known."""

    def replace(match: re.Match[str]) -> str:
        if match.group() == "$$":
            return "$"
        name = (match.group(1) or "").strip()
        value = lookup(name) if name else None
        if value is None:
            near = nearest(name, known)
            raise RequestError(
                f"{place}: there is no variable {name!r}",
                why=f"known here: {', '.join(known)}" if known else "the file has no vars",
                fix=f"did you mean ${{{near}}}?" if near else "vars: {name: value}   (a plain $ is written $$)",
                code="unknown_variable",
            )
        return value

    return _VARIABLE.sub(replace, text)


def expand(node: yaml.Node, lookup: Lookup, known: Sequence[str], place: Callable[[yaml.Node], str]) -> yaml.Node:
    """Return the tree with variables filled in, in values only; every node keeps its place in the file."""
    if isinstance(node, yaml.ScalarNode):
        if "$" not in node.value:
            return node
        value = substitute(node.value, lookup, known, place(node))
        # Quoted from here on: what came out of a variable is text, even where it looks like null.
        return yaml.ScalarNode(node.tag, value, node.start_mark, node.end_mark, style='"')
    if isinstance(node, yaml.MappingNode):
        pairs = [(key, expand(value, lookup, known, place)) for key, value in node.value]
        return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)
    items = [expand(item, lookup, known, place) for item in node.value]
    return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)


def combinations(matrix: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Return every combination, the last key running fastest; one empty one for no matrix."""
    return [dict(zip(matrix, values, strict=True)) for values in product(*matrix.values())]


def row_name(step: str, values: Mapping[str, str], repeat: int, repeats: int) -> str:
    """Return `step[size=4K,op=read]#2`: unique in a scenario, and the same in every run of it."""
    inside = ",".join(f"{key}={value}" for key, value in values.items())
    return step + (f"[{inside}]" if inside else "") + (f"#{repeat}" if repeats > 1 else "")
