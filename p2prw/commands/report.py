"""`--report`: when the archive is written, and what becomes of the outcome where it cannot be.

It is written before the outcome is shown, so that a report that could not be written is part of the outcome; an
exception that leaves a command takes the same way, in `p2prw.cli`.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from p2prw.errors import P2prwError, worst_exit_code

if TYPE_CHECKING:
    from p2prw.commands.app import App
    from p2prw.config import Settings
    from p2prw.engine.model import Outcome

    Result = TypeVar("Result", bound=Outcome[Any])

NO_PLAN = "none was made: the command ended before\n"


class Report:
    """One archive that was asked for. `more` takes the texts that only one command has; written once."""

    def __init__(self, path: str, *, overwrite: bool, arguments: Sequence[str], settings: Settings) -> None:
        """HostError where it is bound to fail: known now, not after minutes of measuring."""
        target = Path(path)
        if target.is_file() or target.is_dir() or not target.exists():
            # Else a device or a pipe, which is written into.
            from p2prw.engine.memory.file_target import check_file_sink

            check_file_sink(path, overwrite=overwrite, needed_bytes=None)
        self.path = path
        self.overwrite = overwrite
        self.command_line = shlex.join(("p2prw", *arguments))
        self.settings = settings.rows()
        self.more: dict[str, str] = {"plan.txt": NO_PLAN}
        self.done = False

    def write(self, document: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        """Write it. HostError `report_file`, and then nothing stands under its name that did not before."""
        from p2prw.bundle import bundle, machine_text, report_files
        from p2prw.engine.doctor.kernel_log import read_kernel_log
        from p2prw.engine.whole_file import write_whole

        self.done = True
        files = report_files(
            document,
            command_line=self.command_line,
            settings=self.settings,
            environ=environ,
            machine=machine_text(environ),
            kernel_log=read_kernel_log(),
            more=self.more,
        )
        write_whole(self.path, bundle(files, time.time()), "--report", overwrite=self.overwrite)


def asked_report(settings: Settings, arguments: Sequence[str]) -> Report | None:
    """Return the report that the settings ask for, None for none. HostError: it cannot be written there."""
    path = settings.get("report")
    # --show-config does nothing else.
    if path is None or settings.get("show_config"):
        return None
    return Report(path, overwrite=settings["overwrite"], arguments=arguments, settings=settings)


def report_on(app: App, document: Mapping[str, Any]) -> P2prwError | None:
    """Write the report that was asked for, once; return what went wrong with it."""
    if app.report is None or app.report.done:
        return None
    try:
        app.report.write(document, app.environ)
    except P2prwError as error:
        return error
    app.note(f"wrote {os.fspath(app.report.path)}: look at it before you send it")
    return None


def reported_result(app: App, result: Result) -> Result:
    """Return the outcome as it is to be shown, its report written."""
    if app.report is None:
        return result
    from dataclasses import replace

    from p2prw.engine.outcome import error_report
    from p2prw.reporters.document import transfer_document

    error = report_on(app, transfer_document(result))
    if error is None:
        return result
    changes: dict[str, Any] = {"warnings": (*result.warnings, error.what)}
    worst = worst_exit_code([result.exit_code, error.exit_code])
    if worst != result.exit_code:
        changes |= {"exit_code": worst, "status": "failed", "error": error_report(error)}
    return replace(result, **changes)
