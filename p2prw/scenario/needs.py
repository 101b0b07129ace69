"""`skip_unless:`: what a host must have for a step to make sense; a step that lacks it is skipped with the reason.

root      device rxe0      memory p2pmem      memory p2pmem:0000:01:00.0      kernel >= 6.2      file PATH      env CI
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from p2prw.config_values import nearest
from p2prw.engine.memory.spec import MEMORY_KINDS, parse_memory_spec
from p2prw.errors import P2prwError, RequestError

FORMS = {
    "root": "root",
    "device": "device rxe0",
    "memory": "memory p2pmem",
    "kernel": "kernel >= 6.2",
    "file": "file image.bin",
    "env": "env CI",
}
_KERNEL = re.compile(r"(>=|<)\s*(\d+(?:\.\d+){0,2})")


@dataclass(frozen=True, slots=True)
class Need:
    """One checked line of `skip_unless:`."""

    text: str
    word: str
    argument: str = ""


class Host(Protocol):
    """What needs are held against; asked late, so that a file can be checked anywhere."""

    def is_root(self) -> bool:
        """Return True for uid 0."""

    def devices(self) -> tuple[str, ...]:
        """Return the names of devices that could be opened."""

    def memory(self, spec: str) -> str | None:
        """Return why memory of this kind (or this one) cannot be had; None when it can."""

    def kernel(self) -> str:
        """Return the kernel's release."""

    def env(self) -> Mapping[str, str]:
        """Return the environment."""


def parse_need(text: str, name: str = "skip_unless") -> Need:
    """Return what `text` asks for; RequestError with the nearest word."""
    word, _, argument = text.strip().partition(" ")
    argument = argument.strip()
    if word not in FORMS:
        near = nearest(word, FORMS)
        raise RequestError(
            f"{name}: unknown need {word!r}",
            why=f"known: {', '.join(FORMS.values())}",
            fix=FORMS[near] if near else "device rxe0",
            code="bad_need",
        )
    if bool(argument) == (word == "root"):
        raise RequestError(
            f"{name}: {text.strip()!r} {'says too much' if argument else 'says too little'}",
            why=f"it is written: {FORMS[word]}",
            fix=FORMS[word],
            code="bad_need",
        )
    if word == "kernel" and not _KERNEL.fullmatch(argument):
        raise RequestError(
            f"{name}: cannot read {argument!r} as a kernel version",
            why="it is compared with the release that `uname -r` prints",
            fix=FORMS["kernel"],
            code="bad_need",
        )
    if word == "memory" and argument not in MEMORY_KINDS:
        parse_memory_spec(argument)
    return Need(f"{word} {argument}".strip(), word, argument)


def lacks(need: Need, host: Host) -> str | None:
    """Return why the host does not have it, None when it does."""
    if need.word == "root":
        return None if host.is_root() else "this process is not root"
    if need.word == "device":
        names = host.devices()
        # A software device can be named by its address or its interface, which the list need not spell out.
        if need.argument in names or need.argument == "soft0":
            return None
        return f"there is no device {need.argument} (p2prw devices lists {', '.join(names) or 'none'})"
    if need.word == "memory":
        return host.memory(need.argument)
    if need.word == "kernel":
        return _lacks_kernel(need.argument, host.kernel())
    if need.word == "file":
        return None if Path(need.argument).exists() else f"there is no file {need.argument}"
    return None if host.env().get(need.argument) else f"the variable {need.argument} is not set"


def _lacks_kernel(wanted: str, release: str) -> str | None:
    match = _KERNEL.fullmatch(wanted)
    assert match is not None, "checked when the file was read"
    sign, version = match.groups()
    here = re.match(r"\d+(?:\.\d+)*", release)
    if here is None:
        return f"kernel {release} has no version that can be compared"

    def numbers(text: str) -> tuple[int, ...]:
        parts = [int(part) for part in text.split(".")][:3]
        return (*parts, *(0,) * (3 - len(parts)))

    new_enough = numbers(here.group()) >= numbers(version)
    return None if new_enough == (sign == ">=") else f"the kernel here is {release}"


class ThisHost:
    """The host this process runs on."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._devices: tuple[str, ...] | None = None

    def is_root(self) -> bool:
        """Return True for uid 0."""
        import os

        return os.geteuid() == 0

    def devices(self) -> tuple[str, ...]:
        """Return the names of devices that could be opened; looked for once."""
        if self._devices is None:
            from p2prw.engine.devices import list_devices

            try:
                self._devices = tuple(dict.fromkeys(info.name for info in list_devices()))
            except P2prwError:
                self._devices = ()
        return self._devices

    def memory(self, spec: str) -> str | None:
        """Return why it cannot be had; a bare kind asks for any memory of that kind."""
        if spec in ("host", "file"):
            return None
        if spec in MEMORY_KINDS:
            return _lacks_kind(spec)
        from p2prw.engine.memory.prepare import prepare_memory

        try:
            prepare_memory(parse_memory_spec(spec), "source")
        except P2prwError as error:
            return error.what
        return None

    def kernel(self) -> str:
        """Return the kernel's release."""
        import platform

        return platform.release()

    def env(self) -> Mapping[str, str]:
        """Return the environment."""
        return self._environ


def _lacks_kind(kind: str) -> str | None:
    from p2prw.engine.topology.memory_devices import list_memory_devices
    from p2prw.engine.topology.sysfs import SysfsRoot

    found = [device for device in list_memory_devices(SysfsRoot()) if device.kind == kind]
    if any(device.usable for device in found):
        return None
    notes = [device.note for device in found if device.note]
    return notes[0] if notes else f"no {kind} memory was found on this host"
