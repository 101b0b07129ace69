"""What one setting is, whatever layer it comes from; the table of all of them is `p2prw.config_settings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from p2prw.config_values import Parser


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, whatever layer it comes from."""

    name: str
    """As in the environment and in YAML: `tx_depth` for `--tx-depth`."""
    parse: Parser
    help: str
    group: str
    commands: frozenset[str]
    default: Any = None
    shown: str | None = None
    """The default as help shows it; None shows none."""
    sections: tuple[str, ...] = ()
    """YAML maps it may stand in; empty: not in files."""
    key: str = ""
    """Its word in those maps where that is not `name` (`device.name` is --device)."""
    spellings: tuple[str, ...] = ()
    """More option spellings: perftest's."""
    metavar: str = ""
    is_flag: bool = False
    multiple: bool = False
    """It may be given many times, and its value is a tuple."""
    multiple_for: frozenset[str] = frozenset()
    """The same for these commands only: `smoke` takes several devices."""
    has_commas: bool = False
    """Its text is values with commas between them; in YAML that may be a list."""
    words: int = 1
    """How many values the option takes; in the environment they are separated by spaces."""

    @property
    def option(self) -> str:
        """Return the long option."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Return the environment variable."""
        return "P2PRW_" + self.name.upper()

    def is_multiple(self, command: str) -> bool:
        """Return True where `command` takes it many times."""
        return self.multiple or command in self.multiple_for

    @property
    def word(self) -> str:
        """Return its key in a YAML map."""
        return self.key or self.name
