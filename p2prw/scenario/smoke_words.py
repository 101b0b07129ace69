"""A smoke step's map to the words of `p2prw smoke`: its options are its keys."""

from __future__ import annotations

import yaml

from p2prw.config_settings import settings_of
from p2prw.config_values import flag
from p2prw.config_yaml import Reader
from p2prw.scenario.words import negative

# What `run` does itself, and what would write over another row's file.
_NOT_KEYS = frozenset({"json", "json_stream", "quiet", "debug", "junit", "markdown", "config", "show_config", "report"})


def smoke_keys() -> tuple[str, ...]:
    """Return the keys of a smoke step."""
    return ("peer", *(setting.name for setting in settings_of("smoke") if setting.name not in _NOT_KEYS))


def smoke_words(reader: Reader, node: yaml.Node, seed: int, time_limit: str | None) -> tuple[str, ...]:
    """Return the words of one smoke step; seed and time limit stand in for what it does not say. RequestError."""
    settings = {setting.name: setting for setting in settings_of("smoke")}
    peer: list[str] = []
    words: list[str] = []
    given = set()
    for key, _, value in reader.entries(node, "smoke", smoke_keys()):
        given.add(key)
        # `device: [rxe0, soft0]`: an option that may be given many times.
        items = value.value if isinstance(value, yaml.SequenceNode) and key != "peer" else [value]
        for placed in (reader.scalar(item, f"smoke.{key}") for item in items):
            if key == "peer":
                peer.append(placed.text)
                continue
            setting = settings[key]
            if setting.is_flag:
                on = reader.checked(placed.place, flag, placed.text, f"smoke.{key}")
                words.append(setting.option if on else negative(setting))
                continue
            reader.checked(placed.place, setting.parse, placed.text, f"smoke.{key}")
            words += (setting.option, placed.text)
    if "seed" not in given:
        words += ("--seed", str(seed))
    if "time_limit" not in given and time_limit is not None:
        words += ("--time-limit", time_limit)
    return ("smoke", *peer, *words, "--json")
