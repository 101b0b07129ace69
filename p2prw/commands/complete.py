"""What may stand where the cursor is: memory specs, files, topics, devices. `shells.py` says it to the shells.

Names only: completion runs at every press of the key, so it opens no device and loads no more of the engine than nouns.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

_SYS = Path("/sys")


def any_of(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """Return those of the words that begin like this."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def files(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a file name."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def topics(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the topics of `p2prw help`."""
    from p2prw.commands.topics import TOPICS

    return any_of(TOPICS, incomplete)


def clients(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return what can do P2P DMA: RDMA devices and NVMe controllers."""
    return any_of([*verbs_devices(), *_names("class/nvme")], incomplete)


def memories(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the specs of device memory that this host has, and its NVMe controllers."""
    return any_of([*_p2pmem(), *_names("class/nvme")], incomplete)


def memory_specs(incomplete: str) -> list[CompletionItem]:
    """Return memory kinds; behind `file:` paths, behind `p2pmem:` the providers of this host."""
    from p2prw.engine.memory.spec import MEMORY_KINDS, kind_examples

    if incomplete.startswith("file:"):
        return any_of((f"file:{path}" for path in _paths(incomplete.removeprefix("file:"))), incomplete)
    takes_arg = {kind for kind, (example, _) in zip(MEMORY_KINDS, kind_examples(), strict=True) if ":" in example}
    words = [f"{kind}:" if kind in takes_arg else kind for kind in MEMORY_KINDS if kind != "p2pmem"]
    return any_of([*words, *(_p2pmem() or ["p2pmem:"])], incomplete)


def verbs_devices() -> list[str]:
    """Return the names of this host's RDMA devices."""
    return _names("class/infiniband")


def _p2pmem() -> list[str]:
    return [f"p2pmem:{path.parent.name}" for path in sorted(_SYS.glob("bus/pci/devices/*/p2pmem"))]


def _names(folder: str) -> list[str]:
    try:
        return sorted(entry.name for entry in (_SYS / folder).iterdir())
    except OSError:
        return []


def _paths(beginning: str) -> list[str]:
    folder, slash, name = beginning.rpartition("/")
    try:
        with os.scandir(folder + slash or ".") as entries:
            return sorted(f"{folder}{slash}{it.name}{'/' * it.is_dir()}" for it in entries if it.name.startswith(name))
    except OSError:
        return []
