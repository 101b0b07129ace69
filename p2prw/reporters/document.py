"""The `p2prw/1` document (p2prw/schema/result.schema.json): one builder for results, listings and failures.

Numbers carry their unit in their name; NaN and infinity become null; nothing that json cannot write gets in.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from enum import Enum
from typing import Any

from p2prw import __version__
from p2prw.engine.model import Outcome
from p2prw.errors import InterruptedTransfer, P2prwError, worst_exit_code

SCHEMA = "p2prw/1"
UNVERIFIED: dict[str, Any] = {
    "status": "unverified",
    "method": None,
    "algorithm": None,
    "block_bytes": None,
    "blocks": 0,
    "elapsed_s": 0.0,
    "local_digest": None,
    "remote_digest": None,
    "first_bad_offset": None,
    "classification": None,
    "why": None,
    "blocks_ahead": 0,
}


def plain(value: Any) -> Any:
    """Return `value` as JSON types; NaN and infinity are null, bytes are never shown (they are secrets)."""
    if value is None or isinstance(value, (bool, str)):
        return str(value.value) if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if isinstance(value, (Sequence, set, frozenset)):
        return [plain(item) for item in value]
    return str(value)


def environment() -> dict[str, Any]:
    """Return what this process runs on."""
    return {
        "p2prw": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
    }


def build(command: str, exit_code: int = 0, **parts: Any) -> dict[str, Any]:
    """Return a whole document; `parts` replace the empty ones."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "command": command,
        "status": "ok" if exit_code == 0 else "failed",
        "exit_code": exit_code,
        "params": {},
        "environment": environment(),
        "route": {"local": None, "remote": None},
        "results": [],
        "verify": dict(UNVERIFIED),
        "phases": {},
        "warnings": [],
        "partial": False,
        "error": None,
    }
    document |= {name: plain(value) for name, value in parts.items()}
    return document


def transfer_document(result: Outcome[Any]) -> dict[str, Any]:
    """Return the document of a transfer or a measurement."""
    document = build(
        result.command,
        result.exit_code,
        status=result.status,
        params=result.params,
        environment={**environment(), **result.environment},
        route={"local": result.local_route, "remote": result.remote_route},
        results=result.results,
        verify=result.verify,
        phases={f"{name}_s": seconds for name, seconds in result.phases.items()},
        warnings=result.warnings,
        partial=result.partial,
    )
    if result.error is not None:
        document["error"] = error_object(result.error)
    if result.plan is not None:
        document["plan"] = plain(result.plan)
    return document


def error_object(error: Any) -> dict[str, Any]:
    """Return `error` of the document for a P2prwError or an ErrorReport."""
    return {
        "code": error.code,
        "wc_status": error.wc_status,
        "errno": error.errno,
        "what": error.what,
        "why": error.why,
        "try": error.fix,
        "side": error.side,
    }


def add_failure(document: dict[str, Any], error: P2prwError) -> None:
    """Add what went wrong beside the work, as a report that could not be written: the worse of both wins."""
    document["warnings"].append(error.what)
    worst = worst_exit_code([document["exit_code"], error.exit_code])
    if worst != document["exit_code"]:
        document |= {"exit_code": worst, "status": "failed", "error": error_object(error)}


def error_document(command: str, error: P2prwError, exit_code: int | None = None) -> dict[str, Any]:
    """Return the document of a command that ended before there was a result."""
    return build(
        command,
        error.exit_code if exit_code is None else exit_code,
        status="interrupted" if isinstance(error, InterruptedTransfer) else "failed",
        error=error_object(error),
        warnings=[f"also: {one.what} (try: {one.fix})" for one in error.more]
        + ([f"and {error.unshown} more"] if error.unshown else []),
    )


def dump(document: Mapping[str, Any]) -> str:
    """Return one line of JSON with its line end: ASCII, so that no locale and no surrogate can break it."""
    return json.dumps(plain(document), ensure_ascii=True, allow_nan=False) + "\n"


def dump_pretty(document: Mapping[str, Any]) -> str:
    """Return the document over several lines, for `--json`."""
    return json.dumps(plain(document), ensure_ascii=True, allow_nan=False, indent=1) + "\n"
