"""`--report FILE`: one archive for a bug report: parameters, environment, machine, plan, result, kernel log lines.

No secrets: of the environment only the variables that p2prw reads, of a token file only its path, of the machine what
`doctor --collect` keeps. The directory in it is a machine: `p2prw topology --sysfs p2prw-report` reads it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from p2prw.config_settings import BY_NAME
from p2prw.reporters.document import dump_pretty

DIRECTORY = "p2prw-report"
_MORE_VARIABLES = frozenset({"TERM", "NO_COLOR", "CI"})


def bundle(files: Mapping[str, str], now_s: float) -> bytes:
    """Return the archive of these texts, in one directory; `now_s` is every file's time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            data = text.encode("utf-8", "backslashreplace")
            member = tarfile.TarInfo(f"{DIRECTORY}/{name}")
            member.size, member.mtime, member.mode = len(data), int(now_s), 0o644
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def report_files(
    document: Mapping[str, Any],
    *,
    command_line: str,
    settings: Sequence[Mapping[str, Any]],
    environ: Mapping[str, str],
    machine: str,
    kernel_log: str,
    more: Mapping[str, str],
) -> dict[str, str]:
    """Return name -> text of everything that a report holds; `more` is what only this command has, as its plan."""
    params = {"command_line": command_line, "params": document["params"], "settings": settings}
    return {
        "result.json": dump_pretty(document),
        "params.json": dump_pretty(params),
        "environment.json": dump_pretty({**document["environment"], "variables": harmless(environ)}),
        "machine.json": machine,
        **more,
        "kernel.log": kernel_log,
    }


def harmless(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that p2prw reads: a variable that it does not know may hold anything."""
    known = {setting.variable for setting in BY_NAME.values()} | _MORE_VARIABLES
    return {name: text for name, text in sorted(environ.items()) if name in known}


def machine_text(environ: Mapping[str, str]) -> str:
    """Return this host's anonymised snapshot, or why there is none: a report must not need a healthy host."""
    from p2prw.engine.doctor.collect import collection_text
    from p2prw.engine.doctor.probe import this_host
    from p2prw.errors import P2prwError

    try:
        return collection_text(this_host(environ), "p2prw --report")
    except (P2prwError, OSError) as error:
        return json.dumps({"error": str(error)}) + "\n"
