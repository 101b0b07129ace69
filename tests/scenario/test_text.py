"""Variables in YAML trees, matrices, names."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from p2prw.errors import RequestError
from p2prw.scenario.text import combinations, expand, row_name, substitute

VALUES = {"size": "4K", "empty": ""}


def filled(text):
    return substitute(text, VALUES.get, list(VALUES), "f.yaml:1:2")


def test_variables():
    assert filled("host,size=${size}") == "host,size=4K"
    assert filled("${ size }${empty}|") == "4K|"
    assert filled("$$ ${size} $${size} $x") == "$ 4K ${size} $x"


@pytest.mark.parametrize("text", ["${siez}", "${}", "${size", "${a${size}}"])
def test_unknown_variables_have_a_place(text):
    with pytest.raises(RequestError, match=r"^f\.yaml:1:2: there is no variable"):
        filled(text)


def test_the_nearest_variable_is_named():
    with pytest.raises(RequestError) as caught:
        filled("${siez}")
    assert caught.value.fix == "did you mean ${size}?"


@given(st.text(alphabet="ab$ {}:", max_size=20))
def test_escaped_text_comes_back(text):
    assert filled(text.replace("$", "$$")) == text


def test_only_values_change_and_places_stay():
    root: Any = yaml.compose("{'${size}': [a, {b: '${size}'}]}", Loader=yaml.SafeLoader)
    new = expand(root, VALUES.get, list(VALUES), str)
    (key, value), (_, old) = new.value[0], root.value[0]
    assert key.value == "${size}"
    inner, before = value.value[1].value[0][1], old.value[1].value[0][1]
    assert inner.value == "4K" and inner.start_mark.column == before.start_mark.column


def test_a_variable_that_looks_like_null_is_text():
    root: Any = yaml.compose("a: ${v}", Loader=yaml.SafeLoader)
    new = expand(root, {"v": "null"}.get, ["v"], str)
    assert new.value[0][1].style == '"'


def test_matrices_multiply_and_the_last_key_runs_fastest():
    assert combinations({}) == [{}]
    rows = combinations({"size": ["1", "2"], "op": ["w", "r"]})
    assert [(row["size"], row["op"]) for row in rows] == [("1", "w"), ("1", "r"), ("2", "w"), ("2", "r")]


def test_names():
    assert row_name("a", {}, 1, 1) == "a"
    assert row_name("a", {"size": "4K", "op": "w"}, 2, 3) == "a[size=4K,op=w]#2"
