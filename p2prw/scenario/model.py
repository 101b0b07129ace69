"""The nouns of a scenario: what was planned (Row), what came of it (RowResult). Data only."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from p2prw.scenario.expect import Expectation, Judgement
from p2prw.scenario.needs import Need

# Stands in a planned command where a server's address will be, which is known once it listens.
_ADDRESS = "${{@{}}}"


def address_mark(row_number: int) -> str:
    """Return what stands for the address of the server in row `row_number`."""
    return _ADDRESS.format(row_number)


def fill_addresses(text: str, addresses: Mapping[int, str]) -> str:
    """Return `text` with the addresses that are known."""
    for number, address in addresses.items():
        text = text.replace(address_mark(number), address)
    return text


@dataclass(frozen=True, slots=True)
class Row:
    """One command that a scenario runs."""

    number: int
    """From 1, in the order of the file."""
    name: str
    step: str
    action: str
    """`serve`, `write`, `read`, `smoke` or `bench`: a command of p2prw."""
    group: int
    """Its place in `steps`; what stands under one `parallel` is one group."""
    words: tuple[str, ...]
    """The command line after `p2prw`; address marks where it needs a server of the scenario."""
    place: str
    values: Mapping[str, str] = field(default_factory=dict)
    """Of the matrix."""
    repeat: int = 1
    together: bool = False
    """All rows of its group run at the same time."""
    expect: tuple[Expectation, ...] = ()
    needs: tuple[Need, ...] = ()
    servers: tuple[int, ...] = ()
    """Rows whose addresses it uses."""
    listen: str = ""
    """serve: where, as it was written; port 0 where the file names none."""
    planned_address: str = ""
    """serve: the address that a dry run shows."""
    time_limit_s: float | None = None

    def command_words(self, addresses: Mapping[int, str]) -> tuple[str, ...]:
        """Return the words to run or to print."""
        return tuple(fill_addresses(word, addresses) for word in self.words)


def command_line(words: tuple[str, ...]) -> str:
    """Return the words as they can be pasted."""
    return shlex.join(("p2prw", *words))


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole file, checked."""

    path: str
    name: str
    seed: int
    rows: tuple[Row, ...]
    on_failure: str
    """`continue` or `stop`."""
    time_limit_s: float | None
    variables: Mapping[str, str]

    def planned_addresses(self) -> dict[int, str]:
        """Return row number -> address that each server would have if all ports were free."""
        return {row.number: row.planned_address for row in self.rows if row.action == "serve"}


@dataclass(frozen=True, slots=True)
class RowResult:
    """What came of one row."""

    row: Row
    status: str
    """`pass`, `fail`, `skip`, `not_run`, or `planned` in a dry run."""
    exit_code: int = 0
    """What it counts for: 0 where all was as expected."""
    reason: str | None = None
    error_code: str | None = None
    """Of what went wrong, in snake_case."""
    command: str = ""
    """As it ran; to be pasted."""
    servers: tuple[str, ...] = ()
    """The commands of the servers that it used; to be pasted before."""
    command_exit_code: int | None = None
    """What the command itself ended with; None where it did not run."""
    judgements: tuple[Judgement, ...] = ()
    elapsed_s: float = 0.0
    document: Mapping[str, Any] | None = None
    """The command's own `p2prw/1` document."""
    stderr_tail: str = ""
