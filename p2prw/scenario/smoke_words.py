"""A smoke step's map to the words of `p2prw smoke`: its options are its keys."""

from __future__ import annotations

import yaml

from p2prw.config_settings import settings_of
from p2prw.config_values import flag
from p2prw.config_yaml import Reader
from p2prw.errors import RequestError
from p2prw.scenario.words import negative

# What `run` does itself, and what would write over another row's file.
_NOT_KEYS = frozenset({"json", "json_stream", "quiet", "debug", "junit", "markdown", "config", "show_config", "report"})


def smoke_keys() -> tuple[str, ...]:
    """Return the keys of a smoke step."""
    return ("peer", *(setting.name for setting in settings_of("smoke") if setting.name not in _NOT_KEYS))


def smoke_words(reader: Reader, node: yaml.Node) -> tuple[str, ...]:
    """Return the words of one smoke step. RequestError with its place."""
    settings = {setting.name: setting for setting in settings_of("smoke")}
    if not settings:
        raise RequestError(
            "smoke steps are not in this release", why="`p2prw smoke` is not", fix="remove the step", code="not_built"
        )
    peer: list[str] = []
    words: list[str] = []
    for key, _, value in reader.entries(node, "smoke", smoke_keys()):
        placed = reader.scalar(value, f"smoke.{key}")
        if key == "peer":
            peer.append(placed.text)
            continue
        setting = settings[key]
        if setting.is_flag:
            words.append(setting.option if reader.checked(placed.place, flag, placed.text, key) else negative(setting))
            continue
        reader.checked(placed.place, setting.parse, placed.text, f"smoke.{key}")
        words += (setting.option, placed.text)
    return ("smoke", *peer, *words, "--json")
