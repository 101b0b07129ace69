"""A smoke or bench step's map to the words of that command: its options are its keys."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from p2prw.config_bench import bench_request
from p2prw.config_settings import settings_of
from p2prw.config_values import flag
from p2prw.config_yaml import FileConfig, Reader
from p2prw.scenario.model import fill_addresses
from p2prw.scenario.words import negative, option_words, settings_in

# What `run` does itself, and what would write over another row's file.
_NOT_KEYS = frozenset(
    {"json", "json_stream", "quiet", "debug", "junit", "config", "show_config", "report", "overwrite"}
    # Of bench: columns instead of a result.
    | {"format", "report_gbits", "no_peak", "cpu_freq", "plot"}
)


def step_keys(command: str) -> tuple[str, ...]:
    """Return the keys of a step of this command."""
    return ("peer", *(setting.name for setting in settings_of(command) if setting.name not in _NOT_KEYS))


def smoke_words(reader: Reader, node: yaml.Node, seed: int, time_limit: str | None) -> tuple[str, ...]:
    """Return the words of one smoke step; seed and time limit stand in for what it does not say. RequestError."""
    peer, given = _read(reader, node, "smoke")
    said = tuple(word for words in given.values() for word in words)
    if "seed" not in given:
        said += ("--seed", str(seed))
    if "time_limit" not in given and time_limit is not None:
        said += ("--time-limit", time_limit)
    return ("smoke", *([] if peer is None else [peer]), *said, "--json")


def bench_words(
    reader: Reader,
    node: yaml.Node,
    file: FileConfig,
    environ: Mapping[str, str],
    addresses: Mapping[int, str],
    time_limit: str | None,
) -> tuple[str, ...]:
    """Return the words of one bench step, `device:` and `bench:` standing in for what it does not say. RequestError.

    The whole request is checked as `p2prw bench` will, with the addresses that the scenario's servers would have.
    """
    peer, given = _read(reader, node, "bench")
    if time_limit is not None:
        given.setdefault("time_limit", ("--time-limit", time_limit))
    by_name = {setting.name: setting for setting in settings_of("bench")}
    line = {
        name: words[0] == by_name[name].option if by_name[name].is_flag else words[1] for name, words in given.items()
    }
    settings = settings_in("bench", file, environ, line)
    request = bench_request(settings, None if peer is None else fill_addresses(peer, addresses))
    assert peer is not None, "bench_request() refuses a step without a peer"
    if "local_memory" in given:
        # It may name a buffer of the file, which the child does not read.
        given["local_memory"] = ("--local-memory", request.connection.memory.text)
    said = (word for words in given.values() for word in words)
    memory = {"local_memory": request.connection.memory.text}
    return ("bench", peer, *option_words(settings, memory), *said, "--json")


def _read(reader: Reader, node: yaml.Node, command: str) -> tuple[str | None, dict[str, tuple[str, ...]]]:
    """Return the peer, and key -> its words."""
    settings = {setting.name: setting for setting in settings_of(command)}
    peer: str | None = None
    given: dict[str, tuple[str, ...]] = {}
    for key, _, value in reader.entries(node, command, step_keys(command)):
        # `device: [rxe0, soft0]`: an option that may be given many times.
        many = key != "peer" and settings[key].is_multiple(command) and isinstance(value, yaml.SequenceNode)
        words: list[str] = []
        for placed in (reader.scalar(item, f"{command}.{key}") for item in (value.value if many else [value])):
            if key == "peer":
                peer = placed.text
                continue
            setting = settings[key]
            if setting.is_flag:
                on = reader.checked(placed.place, flag, placed.text, f"{command}.{key}")
                words.append(setting.option if on else negative(setting))
                continue
            reader.checked(placed.place, setting.parse, placed.text, f"{command}.{key}")
            words += (setting.option, placed.text)
        if words:
            given[key] = tuple(words)
    return peer, given
