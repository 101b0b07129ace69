"""Scenario files, results of commands, and a host that has what a test says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from p2prw.reporters.document import build
from p2prw.scenario.model import Scenario
from p2prw.scenario.read import read_scenario

GOOD = """\
name: good
seed: 7
vars: {big: 1MiB}
steps:
  - name: server
    matrix: {host: ["127.0.0.1", "[::1]"]}
    serve:
      listen: "${host}:0"
      regions: {scratch: "host,size=${big}", ro: {memory: "host,size=${big}", access: r}}
  - name: move
    matrix: {size: [4K, 64K], op: [write, read], host: ["127.0.0.1", "[::1]"]}
    op: ${op}
    transfer: {peer: "${server.address}/scratch", from: "host,size=${size}", to: host, size: "${size}"}
    expect: [bw >= 1 KiB/s, route == cpu]
"""


@dataclass
class FakeHost:
    root: bool = False
    names: tuple[str, ...] = ("soft0",)
    lacking: dict[str, str] = field(default_factory=dict)
    release: str = "6.1.0-13-amd64"
    variables: dict[str, str] = field(default_factory=dict)

    def is_root(self) -> bool:
        return self.root

    def devices(self) -> tuple[str, ...]:
        return self.names

    def memory(self, spec: str) -> str | None:
        return self.lacking.get(spec)

    def kernel(self) -> str:
        return self.release

    def env(self) -> Mapping[str, str]:
        return self.variables


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def environ() -> dict[str, str]:
    """The environment of the tests without settings of p2prw."""
    return {name: text for name, text in os.environ.items() if not name.startswith("P2PRW_")}


@pytest.fixture
def good() -> str:
    return GOOD


@pytest.fixture
def scenario(tmp_path: Path, environ: dict[str, str]) -> Callable[..., Scenario]:
    """Write a file and read it."""

    def read(text: str, **options: Any) -> Scenario:
        path = tmp_path / "s.yaml"
        path.write_text(text)
        return read_scenario(str(path), options.pop("environ", environ), **options)

    return read


@pytest.fixture
def outcome() -> Callable[..., dict[str, Any]]:
    """The document of a write that went well; arguments change it."""

    def make(exit_code: int = 0, **parts: Any) -> dict[str, Any]:
        route = {"chosen": "cpu", "mover": "cpu", "peer_to_peer": False, "memory": "host", "device": "soft0"}
        row = {"bw_bytes_per_s": 2.0**30, "elapsed_s": 0.5, "bytes": 65536, "timeouts": 0}
        if exit_code and "error" not in parts:
            parts["error"] = {"code": "remote_access", "what": "refused by the device", "why": None, "try": None}
        whole = {"route": {"local": route, "remote": route}, "results": [row], "verify": {"status": "verified"}}
        return build("write", exit_code, **{**whole, **parts})

    return make
