"""A window between a running guest and the host: look at, and change, a device's backing file from outside.

The guest's end writes a request into the run's shared folder, the host's end (called by `lab.boot` while the guest
runs) answers with a file beside it. Only files of the topology can be named, and never as a path.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_BYTES = 16 * 1024 * 1024
_REQUEST, _ANSWER = ".ask", ".answer"


class OutsideError(Exception):
    """The host could not do it; the text says why."""


class OutsideHost:
    """The host's end: `serve` answers what has been asked since the last call."""

    def __init__(self, folder: Path, files: Mapping[str, Path]) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._files = dict(files)

    def serve(self) -> None:
        """Answer all waiting requests; a bad one gets an error for an answer."""
        for request in sorted(self._folder.glob(f"*{_REQUEST}")):
            try:
                answer = self._answer(json.loads(request.read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            request.unlink()
            _put(request.with_suffix(_ANSWER), json.dumps(answer))

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        path, offset = self._files[request["file"]], int(request["offset"])
        with path.open("r+b") as file:
            file.seek(offset)
            if "data" in request:
                file.write(bytes.fromhex(request["data"]))
                return {}
            length = int(request["length"])
            if not 0 <= length <= MOST_BYTES:
                raise ValueError(f"{length} bytes are more than {MOST_BYTES}")
            return {"data": file.read(length).hex()}


class OutsideGuest:
    """The guest's end."""

    def __init__(self, folder: Path, *, timeout_s: float = 30.0) -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._count = 0

    def peek(self, file: str, offset: int, length_bytes: int) -> bytes:
        """Return what the host finds in a backing file. OutsideError."""
        return bytes.fromhex(self._ask({"file": file, "offset": offset, "length": length_bytes})["data"])

    def poke(self, file: str, offset: int, data: bytes) -> None:
        """Change a backing file from outside. OutsideError."""
        self._ask({"file": file, "offset": offset, "data": data.hex()})

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._count += 1
        name = f"{os.getpid()}-{self._count:06d}"
        _put(self._folder / f"{name}{_REQUEST}", json.dumps(request))
        path = self._folder / f"{name}{_ANSWER}"
        deadline = time.monotonic() + self._timeout_s
        while not path.exists():
            if time.monotonic() > deadline:
                raise OutsideError(f"the host did not answer within {self._timeout_s:.0f} s")
            time.sleep(0.02)
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        if "error" in answer:
            raise OutsideError(answer["error"])
        return answer


def _put(path: Path, text: str) -> None:
    # The other end must never read half a file.
    temporary = path.with_suffix(".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)
