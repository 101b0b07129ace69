"""One stream as reporters use it: whole lines, safe text, quiet when the reader has gone."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable
from typing import TextIO

from p2prw.errors import HostError
from p2prw.reporters.sanitise import clean

_GLUE = "\N{NO-BREAK SPACE}"


def fold(text: str, columns: int | None) -> list[str]:
    """Return the lines of one line on a terminal that wide: cut between words, under what follows the first label.

    A figure and its unit stay together, and a command (`$ ...`) is one line, to be pasted.
    """
    if columns is None or len(text) <= columns or text.lstrip().startswith("$ "):
        return [text]
    label = re.match(r"\s*\S+\s{2,}", text) or re.match(r"\s*", text)
    indent = " " * min(len(label.group()) if label else 0, columns // 2)
    glued = re.sub(r"(?<=\d) (?=[A-Za-z%])", _GLUE, text)
    lines = textwrap.wrap(glued, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace(_GLUE, " ") for line in lines]


def unwritable(name: str, error: OSError) -> HostError:
    """Return the error of output that could not be written."""
    reason = error.strerror or str(error)
    return HostError(
        f"cannot write to {name}: {reason[:1].lower()}{reason[1:]}",
        why="what the command had to say is incomplete there",
        fix=f"send {name} to a file on another disk, or make room (df)",
        code="output_unwritable",
        errno=error.errno,
    )


class Output:
    """A text stream that stops writing, without a word, once its pipe is broken."""

    def __init__(self, stream: TextIO, name: str | None = None) -> None:
        """`name`: what it carries must arrive; HostError names it on a full disk. None: what cannot be is dropped."""
        self.stream = stream
        self.name = name
        self.broken = False

    def line(self, text: str = "") -> None:
        """Write one line; control characters in it are made visible."""
        self.raw(clean(text) + "\n")

    def fact(self, text: str) -> None:
        """Write one line; on a terminal it is folded between words, under itself. Not for what is to be pasted."""
        for line in self.folded([clean(text)]):
            self.raw(line + "\n")

    def folded(self, lines: Iterable[str]) -> list[str]:
        """Return lines as they fit the terminal, see `fold`; as they are where this is none."""
        columns = self.columns()
        return [part for line in lines for part in fold(line, columns)]

    def columns(self) -> int | None:
        """Return how wide the terminal is; None where this is none."""
        try:
            return os.get_terminal_size(self.stream.fileno()).columns if self.stream.isatty() else None
        except (OSError, ValueError):
            return None

    def raw(self, text: str) -> None:
        """Write text that is safe already (JSON)."""
        if self.broken:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            self.give_up()
        except OSError as error:
            self.give_up()
            if self.name is not None:
                raise unwritable(self.name, error) from error
        except UnicodeEncodeError:
            # A terminal in the C locale: show escapes, never fail a transfer for a character.
            encoding = self.stream.encoding or "ascii"
            self.raw(text.encode(encoding, "backslashreplace").decode(encoding))

    def give_up(self) -> None:
        """Write nothing more: the reader has gone."""
        self.broken = True
        # What is still buffered would raise again when the interpreter flushes at exit; it goes nowhere instead.
        try:
            descriptor = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(descriptor, self.stream.fileno())
            finally:
                os.close(descriptor)
        except (OSError, ValueError):
            pass
