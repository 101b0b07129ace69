"""PEER, PEER/REGION[+OFFSET] and NAME=MEMORY[,access=...]: words that the command line and the library both read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2prw.errors import RequestError
from p2prw.units import parse_size

REGION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
ACCESS_WORDS = ("r", "w", "rw")


@dataclass(frozen=True, slots=True)
class Host:
    """`HOST[:PORT]` or `[V6][:PORT]`; port None where none was written."""

    host: str
    port: int | None


@dataclass(frozen=True, slots=True)
class Target:
    """`PEER/REGION[+OFFSET]`."""

    peer: Host
    region: str
    offset_bytes: int


def parse_host(text: str, name: str = "PEER", *, any_port: bool = False) -> Host:
    """Return host and port of `HOST[:PORT]` or `[V6]:PORT`. `any_port` allows 0 (the system picks one).

    RequestError for anything else, with a spelling that works.
    """
    bracketed = re.fullmatch(r"\[([^\[\]/\s]+)\](?::(.*))?", text)
    if bracketed:
        host, port = bracketed.group(1), bracketed.group(2)
        if ":" not in host:
            raise _bad_host(text, name, "brackets are for IPv6 addresses", f"{host}:18515")
    else:
        host, colon, port_text = text.partition(":")
        port = port_text if colon else None
        if ":" in (port or ""):
            bare = text.strip("[]")
            raise _bad_host(text, name, "an IPv6 address needs brackets", f"[{bare}] or [{bare}]:18515")
        if not host or re.search(r"[\s\[\]/]", host):
            raise _bad_host(text, name, "there is no host name in it", "127.0.0.1:18515 or [2001:db8::1]:18515")
    if port is None:
        return Host(host, None)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not (0 if any_port else 1) <= int(port) <= 65535:
        raise _bad_host(text, name, f"{port!r} is not a port number", f"{text[: len(text) - len(port)]}18515")
    return Host(host, int(port))


def _bad_host(text: str, name: str, why: str, fix: str) -> RequestError:
    return RequestError(f"{name}: cannot read {text!r} as HOST[:PORT]", why=why, fix=fix, code="bad_peer")


def parse_target(text: str, name: str = "PEER/REGION") -> Target:
    """Return the parts of `PEER/REGION[+OFFSET]`; RequestError otherwise."""
    peer_text, slash, rest = text.partition("/")
    if not slash or not rest:
        raise RequestError(
            f"{name}: {text!r} names no region",
            why="a target is HOST[:PORT]/REGION[+OFFSET]",
            fix=f"{peer_text or '127.0.0.1'}/NAME   (p2prw regions {peer_text or '127.0.0.1'} lists the names)",
            code="bad_target",
        )
    peer = parse_host(peer_text, name)
    region, plus, offset_text = rest.partition("+")
    check_region_name(region, name)
    offset_bytes = parse_size(offset_text, f"{name}: offset") if plus else 0
    return Target(peer, region, offset_bytes)


def check_region_name(region: str, name: str = "region") -> str:
    """Return `region`; RequestError when it is not 1 to 64 of A-Z a-z 0-9 _ . -"""
    if not REGION_NAME.fullmatch(region):
        raise RequestError(
            f"{name}: {region!r} is not a region name",
            why="a name is 1 to 64 letters, digits, '_', '.' or '-'",
            fix="p2prw regions PEER lists the names of a server",
            code="bad_region_name",
        )
    return region


def split_region(text: str, name: str = "--region") -> tuple[str, str]:
    """Return (region name, memory and access) of `NAME=MEMORY[,access=r|w|rw]`."""
    region, equals, memory = text.partition("=")
    # `host,size=1M` has an '=' too, but no name in front of it.
    if not equals or not memory or not REGION_NAME.fullmatch(region):
        raise RequestError(
            f"{name}: cannot read {text!r} as NAME=MEMORY",
            why="a region has a name of letters, digits, '_', '.' or '-', then '=', then its memory",
            fix="--region scratch=host,size=64MiB",
            code="bad_region",
        )
    return region, memory


def check_access(word: str, name: str) -> str:
    """Return `word`; RequestError unless r, w or rw."""
    if word not in ACCESS_WORDS:
        raise RequestError(
            f"{name}: access {word!r} is unknown",
            why="seen from the client: r may be read, w may be written",
            fix="access=r, access=w or access=rw",
            code="bad_access",
        )
    return word
