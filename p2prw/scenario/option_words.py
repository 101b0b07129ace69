"""A smoke or bench step's map to the words of that command: its options are its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from p2prw.config_bench import bench_request
from p2prw.config_settings import Setting, settings_of
from p2prw.config_smoke import smoke_request
from p2prw.config_values import flag
from p2prw.config_yaml import Reader
from p2prw.engine.bench.checks import check_request
from p2prw.scenario.model import fill_addresses
from p2prw.scenario.words import negative, option_words, seeded_faults, settings_in

# What `run` does itself, and what would write over another row's file.
_NOT_KEYS = frozenset(
    {"json", "json_stream", "quiet", "debug", "junit", "config", "show_config", "report", "overwrite"}
    # Of bench: columns instead of a result.
    | {"format", "report_gbits", "no_peak", "cpu_freq", "plot"}
)


def step_keys(command: str) -> tuple[str, ...]:
    """Return the keys of a step of this command."""
    return ("peer", *(setting.name for setting in settings_of(command) if setting.name not in _NOT_KEYS))


def smoke_words(
    reader: Reader,
    node: yaml.Node,
    environ: Mapping[str, str],
    addresses: Mapping[int, str],
    seed: int,
    time_limit: str | None,
) -> tuple[str, ...]:
    """Return the words of one smoke step, `device:`, seed and time limit standing in for what it does not say.

    The whole request is checked as `p2prw smoke` will. RequestError.
    """
    peer, given = _read(reader, node, "smoke")
    given.setdefault("seed", ("--seed", str(seed)))
    if time_limit is not None:
        given.setdefault("time_limit", ("--time-limit", time_limit))
    settings = settings_in("smoke", reader.found(), environ, _line("smoke", given))
    smoke_request(settings, None if peer is None else fill_addresses(peer, addresses), seed)
    said = (word for words in given.values() for word in words)
    file_words = option_words(settings, seeded_faults(settings, seed))
    return ("smoke", *([] if peer is None else [peer]), *file_words, *said, "--json")


def bench_words(
    reader: Reader, node: yaml.Node, environ: Mapping[str, str], addresses: Mapping[int, str], time_limit: str | None
) -> tuple[str, ...]:
    """Return the words of one bench step, `device:` and `bench:` standing in for what it does not say. RequestError.

    The whole request is checked as `p2prw bench` will, with the addresses that the scenario's servers would have.
    """
    peer, given = _read(reader, node, "bench")
    if time_limit is not None:
        given.setdefault("time_limit", ("--time-limit", time_limit))
    settings = settings_in("bench", reader.found(), environ, _line("bench", given))
    request = bench_request(settings, None if peer is None else fill_addresses(peer, addresses))
    check_request(request)
    assert peer is not None, "bench_request() refuses a step without a peer"
    if "local_memory" in given:
        # It may name a buffer of the file, which the child does not read.
        given["local_memory"] = ("--local-memory", request.connection.memory.text)
    said = (word for words in given.values() for word in words)
    memory = {"local_memory": request.connection.memory.text}
    return ("bench", peer, *option_words(settings, memory), *said, "--json")


def _line(command: str, given: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return what stands on the command line already, as `config.resolve` takes it."""
    line: dict[str, Any] = {}
    for setting in settings_of(command):
        words = given.get(setting.name)
        if words is None:
            continue
        if setting.is_flag:
            line[setting.name] = words[0] == setting.option
        else:
            line[setting.name] = words[1::2] if setting.is_multiple(command) else words[1]
    return line


def _read(reader: Reader, node: yaml.Node, command: str) -> tuple[str | None, dict[str, tuple[str, ...]]]:
    """Return the peer, and key -> its words."""
    settings = {setting.name: setting for setting in settings_of(command)}
    peer: str | None = None
    given: dict[str, tuple[str, ...]] = {}
    before = reader.problems.reported
    for key, _, value in reader.entries(node, command, step_keys(command)):
        with reader.problems.catch():
            if key == "peer":
                peer = reader.scalar(value, f"{command}.peer").text
            else:
                given[key] = _words(reader, settings[key], command, value)
    reader.problems.stop_since(before)
    return peer, {key: words for key, words in given.items() if words}


def _words(reader: Reader, setting: Setting, command: str, value: yaml.Node) -> tuple[str, ...]:
    name = f"{command}.{setting.name}"
    # `device: [rxe0, soft0]`: an option that may be given many times.
    many = setting.is_multiple(command) and isinstance(value, yaml.SequenceNode)
    words: list[str] = []
    for placed in (reader.value_of(setting, item, name) for item in (value.value if many else [value])):
        if setting.is_flag:
            on = reader.checked(placed.place, flag, placed.text, name)
            words.append(setting.option if on else negative(setting))
            continue
        reader.checked(placed.place, setting.parse, placed.text, name)
        words += (setting.option, placed.text)
    return tuple(words)
