"""The man page: the help of every command and every topic as roff. One source, so it says what `--help` says."""

from __future__ import annotations

from collections.abc import Iterator

import click

from p2prw import __version__
from p2prw.commands.topics import TOPICS, topic_lines


def man_page(root: click.Context) -> str:
    """Return p2prw.1; `root` is the context of `p2prw` itself."""
    return "\n".join(_lines(root)) + "\n"


def _lines(root: click.Context) -> Iterator[str]:
    yield f'.TH P2PRW 1 "" "p2prw {__version__}" "User Commands"'
    yield ".SH NAME"
    yield f"p2prw \\- {_roff((root.command.help or '').splitlines()[0])}"
    yield ".SH SYNOPSIS"
    yield ".B p2prw"
    yield "COMMAND [OPTIONS] [ARGUMENTS]"
    yield ".SH COMMANDS"
    assert isinstance(root.command, click.Group)
    for name in root.command.list_commands(root):
        command = root.command.get_command(root, name)
        assert command is not None
        yield f".SS p2prw {name}"
        yield from _verbatim(command.get_help(click.Context(command, info_name=name, parent=root)).splitlines())
    for topic in TOPICS:
        yield f".SH {topic.upper()}"
        yield from _verbatim(topic_lines(topic))


def _verbatim(lines: list[str]) -> Iterator[str]:
    yield ".nf"
    yield from (_roff(line) for line in lines)
    yield ".fi"


def _roff(line: str) -> str:
    text = line.replace("\\", "\\e").replace("-", "\\-")
    # A dot or a quote at the start of a line is a request.
    return f"\\&{text}" if text.startswith((".", "'")) else text
