"""One step's settings to the words of the command line that runs it, and that is printed: one source for both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from p2prw.config import Settings, resolve
from p2prw.config_requests import serve_request, transfer_request
from p2prw.config_settings import BY_NAME, Setting
from p2prw.config_yaml import FileConfig
from p2prw.engine.memory.spec import format_memory_spec
from p2prw.engine.model import MemorySpec, ServedRegion
from p2prw.scenario.model import fill_addresses

# Outputs of a child are run's business, and a file of settings would come between the scenario and its command lines.
NOT_INHERITED = frozenset(
    BY_NAME[name].variable
    for name in ("json", "json_stream", "quiet", "debug", "config", "show_config", "dry_run", "junit", "report")
)


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that rows run in."""
    return {name: text for name, text in environ.items() if name not in NOT_INHERITED}


def transfer_words(
    command: str, file: FileConfig, environ: Mapping[str, str], addresses: Mapping[int, str], seed: int
) -> tuple[str, ...]:
    """Return the words of `write` or `read`. RequestError with its place: a word is missing or wrong."""
    settings = settings_in(command, file, environ)
    assert settings.file is not None
    peer = file.peer
    if peer is not None:
        settings = replace(settings, file=replace(file, peer=peer._replace(text=fill_addresses(peer.text, addresses))))
    request = transfer_request(settings, None)
    side = "from" if command == "write" else "to"
    memory = seeded(request.memory, seed) if command == "write" else request.memory
    assert peer is not None, "transfer_request() refuses a file without a peer"
    rest = option_words(settings, {side: memory.text, **seeded_faults(settings, seed)})
    return (command, peer.text, *rest, "--json")


def serve_words(file: FileConfig, environ: Mapping[str, str], seed: int) -> tuple[str, ...]:
    """Return the words of `serve`, without --listen and --ready-file: those are the runner's."""
    settings = settings_in("serve", file, environ)
    request = serve_request(settings)
    regions = [word for region in request.regions for word in ("--region", _region_text(region, seed))]
    rest = option_words(settings, seeded_faults(settings, seed), without=("listen", "port", "ready_file"))
    return ("serve", *regions, *rest, "--json")


def seeded(memory: MemorySpec, seed: int) -> MemorySpec:
    """Return host memory filled with words of this seed, where the file names no pattern; other memory as it is."""
    if memory.kind != "host" or "pattern" in memory.options:
        return memory
    filled = MemorySpec("host", None, {**memory.options, "pattern": f"words:{seed}"})
    return replace(filled, text=format_memory_spec(filled))


def settings_in(
    command: str, file: FileConfig, environ: Mapping[str, str], line: Mapping[str, Any] | None = None
) -> Settings:
    """Return what `command` will run with; `line` holds what stands on its command line already."""
    # What the scenario says stands on the child's command line, where it wins over the child's environment.
    said = {BY_NAME[name].variable for _, name in file.values}
    outside = {name: text for name, text in inherited(environ).items() if name not in said}
    return resolve(command, line or {}, outside, file)


def _region_text(region: ServedRegion, seed: int) -> str:
    memory = seeded(region.memory, seed)
    return f"{region.name}={memory.text},access={region.access}"


def seeded_faults(settings: Settings, seed: int) -> dict[str, str]:
    """Return the faults with the seed of their row, where they name none."""
    faults = settings.get("inject")
    return {} if not faults or "seed=" in faults else {"inject": f"{faults},seed={seed}"}


def option_words(settings: Settings, changed: Mapping[str, str], without: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the options of what the file says; `changed` holds other texts for some."""
    for name, value in settings.values.items():
        if name in without or not value.origin.startswith("file "):
            continue
        setting = BY_NAME[name]
        if setting.is_flag:
            yield setting.option if value.value else negative(setting)
        else:
            yield from (setting.option, changed.get(name, value.text or ""))


def negative(setting: Setting) -> str:
    """Return the option that takes a flag back."""
    return f"--{setting.option[5:]}" if setting.option.startswith("--no-") else f"--no-{setting.option[2:]}"
