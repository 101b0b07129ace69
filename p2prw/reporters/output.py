"""One stream as reporters use it: whole lines, safe text, quiet when the reader has gone."""

from __future__ import annotations

import os
from typing import TextIO

from p2prw.reporters.sanitise import clean


class Output:
    """A text stream that stops writing, without a word, once its pipe is broken."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.broken = False

    def line(self, text: str = "") -> None:
        """Write one line; control characters in it are made visible."""
        self.raw(clean(text) + "\n")

    def raw(self, text: str) -> None:
        """Write text that is safe already (JSON)."""
        if self.broken:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            self.give_up()
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
