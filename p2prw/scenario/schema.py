"""The JSON Schema of scenario files, made from the tables that the reader uses: it cannot go stale.

It says what an editor can know: keys, kinds of values, words. What depends on several places at once (a server that is
named, a size that fits) is the reader's. Values may hold ${variables}, so each may also be text with one in it.
"""

from __future__ import annotations

from typing import Any

from p2prw.config_settings import Setting, keys_of
from p2prw.config_values import words_of
from p2prw.engine.memory.spec import MEMORY_KINDS
from p2prw.scenario.keys import FILE_KEYS, ON_FAILURE, STEP_KEYS
from p2prw.scenario.option_words import step_keys

SCHEMA_ID = "p2prw-scenario/1"
_VARIABLE = {"type": "string", "pattern": r"\$\{"}
_SCALAR: dict[str, Any] = {"type": ["string", "number", "boolean"]}
# units.parse_size and units.parse_duration.
_SIZE = r"^\s*(0[xX][0-9a-fA-F]+|[0-9]+(\.[0-9]+)?)\s*([kKmMgGtT]?([iI]?[bB])?)\s*$"
_TIME = r"^\s*[0-9]+(\.[0-9]+)?\s*([uU][sS]|[mM][sS]|[sS]|[mM]|[hH])?\s*$"
_FLAG_WORDS = r"^\s*([tT][rR][uU][eE]|[fF][aA][lL][sS][eE]|[yY][eE][sS]|[nN][oO]|[oO][nN]|[oO][fF][fF]|0|1)\s*$"


def scenario_schema() -> dict[str, Any]:
    """Return the schema."""
    device, transfer, serve, bench = (_section(name) for name in ("device", "transfer", "serve", "bench"))
    transfer["properties"]["peer"] = {
        **_SCALAR,
        "description": "HOST[:PORT]/REGION[+OFFSET], or ${NAME.address}/REGION.",
    }
    del serve["properties"]["ready_file"]  # run has its own
    serve["properties"]["regions"] = {"type": "object", "additionalProperties": {"$ref": "#/$defs/region"}}
    steps = {"type": "array", "items": {"$ref": "#/$defs/step"}, "minItems": 1}
    file_values: dict[str, Any] = {
        "name": _SCALAR,
        "seed": _either(
            {"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^(0[xX][0-9a-fA-F]+|[0-9]+)$"}
        ),
        "time_limit": _text(_TIME),
        "on_failure": _either({"enum": list(ON_FAILURE)}, _VARIABLE),
        "vars": {
            "type": "object",
            "additionalProperties": _SCALAR,
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
        },
        "device": {"$ref": "#/$defs/device"},
        "buffers": {"type": "object", "additionalProperties": {"$ref": "#/$defs/buffer"}},
        "serve": {"$ref": "#/$defs/serve"},
        "transfer": {"$ref": "#/$defs/transfer"},
        "bench": bench,
        "steps": steps,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "A scenario of `p2prw run`",
        "type": "object",
        "properties": _described(file_values, FILE_KEYS),
        "required": ["steps"],
        "additionalProperties": False,
        "$defs": {
            "device": device,
            "transfer": transfer,
            "serve": serve,
            "smoke": _closed(dict.fromkeys(step_keys("smoke"), _either(_SCALAR, {"type": "array", "items": _SCALAR}))),
            "bench": _closed(dict.fromkeys(step_keys("bench"), _SCALAR)),
            "buffer": _either({"type": "string"}, _buffer()),
            "region": _either({"type": "string"}, _region()),
            "step": _step(steps),
        },
    }


def _step(steps: dict[str, Any]) -> dict[str, Any]:
    texts = _either({"type": "string"}, {"type": "array", "items": {"type": "string"}})
    matrix = {
        "type": "object",
        "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
        "additionalProperties": {"type": "array", "items": _SCALAR, "minItems": 1, "uniqueItems": True},
    }
    values: dict[str, Any] = {
        "name": _SCALAR,
        "serve": {"$ref": "#/$defs/serve"},
        **{key: {"$ref": "#/$defs/transfer"} for key in ("write", "read", "transfer")},
        "smoke": {"$ref": "#/$defs/smoke"},
        "bench": {"$ref": "#/$defs/bench"},
        "parallel": steps,
        "op": _either({"enum": ["write", "read"]}, _VARIABLE),
        "device": {"$ref": "#/$defs/device"},
        "matrix": matrix,
        "repeat": _either({"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[1-9][0-9]*$"}, _VARIABLE),
        "expect": texts,
        "skip_unless": texts,
        "time_limit": _text(_TIME),
    }
    step = _closed(_described(values, STEP_KEYS))
    alone = {"required": ["parallel"], "propertyNames": {"enum": ["parallel", "name"]}}
    step["oneOf"] = [
        *(
            {"required": [action], "not": {"required": ["op"]}}
            for action in ("serve", "write", "read", "smoke", "bench")
        ),
        {"required": ["transfer", "op"]},
        alone,
    ]
    return step


def _section(name: str) -> dict[str, Any]:
    return _closed({key: {**_value(setting), "description": setting.help} for key, setting in keys_of(name).items()})


def _value(setting: Setting) -> dict[str, Any]:
    if setting.is_flag:
        return _either({"type": "boolean"}, {"enum": [0, 1]}, {"type": "string", "pattern": _FLAG_WORDS}, _VARIABLE)
    words = words_of(setting.parse)
    if words:
        return _either({"enum": list(words)}, _VARIABLE)
    if setting.metavar == "SIZE":
        return _text(_SIZE)
    if setting.metavar == "TIME":
        return _text(_TIME[:-1] + "|^none$") if setting.name == "time_limit" else _text(_TIME)
    return dict(_SCALAR)


def _text(pattern: str) -> dict[str, Any]:
    return _either({"type": "number", "minimum": 0}, {"type": "string", "pattern": pattern}, _VARIABLE)


def _buffer() -> dict[str, Any]:
    keys = ("path", "pci", "bar", "heap", "gpu", "size", "offset", "hugepages", "numa", "pattern")
    kinds = _either({"enum": list(MEMORY_KINDS)}, _VARIABLE)
    return {**_closed({"kind": kinds, **dict.fromkeys(keys, _SCALAR)}), "required": ["kind"]}


def _region() -> dict[str, Any]:
    access = _either({"enum": ["r", "w", "rw"]}, _VARIABLE)
    region = _closed({"buffer": _SCALAR, "memory": _SCALAR, "access": access})
    return {**region, "oneOf": [{"required": ["buffer"]}, {"required": ["memory"]}]}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _described(values: dict[str, Any], words: dict[str, str]) -> dict[str, Any]:
    assert values.keys() == words.keys(), "a key without a word, or a word without a key"
    return {key: {**value, "description": words[key]} for key, value in values.items()}


def _either(*choices: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": list(choices)}
