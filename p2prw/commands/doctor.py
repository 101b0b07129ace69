"""Check this host: what p2prw can do here, what it cannot, and what to type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from p2prw.commands.app import App
from p2prw.commands.options import HelpfulCommand, settings_options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from p2prw.config import Settings
    from p2prw.engine.doctor.findings import Ask

EPILOG = """\
Examples:
  p2prw doctor
  p2prw doctor --device mlx5_0 --memory p2pmem:0000:01:00.0 --strict
  p2prw doctor --pair mlx5_0 p2pmem:0000:01:00.0
  p2prw doctor --collect host     (for a bug report; addresses, serials left out)
  p2prw doctor --sysfs host       (of a collected host: what is tried is left out)

ok: fine. warn: works and could be better, or nobody asked for what is missing.
fail: something needed is broken. unknown: cannot be seen from here.
Exit codes: 0 nothing failed (with --strict: nor is a warning), 2 usage, 3 a check
failed, 130/143 signal. Unknown never fails."""


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="Check this host and say what to type.")
@settings_options("doctor")
@click.pass_obj
def doctor(app: App, /, **line: Any) -> int:
    """Check this host without changing it: each finding is ok, warn, fail or unknown, with why and what to type.

    Needs no right and no RDMA. What is named (--device, --memory, --pair) must work; without that only the software
    device must.
    """
    settings = app.settings("doctor", line)
    if settings["show_config"]:
        from p2prw.commands.show import show_config

        return show_config(app, settings, lambda: _ask(settings))
    ask = _ask(settings)
    from p2prw.engine.doctor.checks import examine, failures
    from p2prw.engine.doctor.probe import copied_host, this_host
    from p2prw.reporters.doctor_rows import doctor_lines, finding_row, summary, verdict_error
    from p2prw.reporters.document import build, error_object

    host = copied_host(settings["sysfs"]) if settings["sysfs"] else this_host(app.environ)
    if settings["collect"]:
        from p2prw.engine.doctor.collect import write_collection

        app.note(f"wrote {write_collection(host, settings['collect'])}: look at it before you send it")
    findings = examine(host, ask)
    bad = failures(findings, strict=settings["strict"])
    rows = [finding_row(finding) for finding in findings]
    verbose = settings["verbose"]
    parts: dict[str, Any] = {"error": error_object(verdict_error(bad))} if bad else {}
    params = {name: settings[name] for name in ("device", "ib_port", "memory", "pair", "strict", "collect", "sysfs")}
    document = build("doctor", 3 if bad else 0, results=rows, params=params, **parts)

    def page() -> Iterable[RenderableType]:
        from p2prw.reporters.doctor_page import doctor_page

        return doctor_page(rows, verbose=verbose, encoding=app.stdout.stream.encoding)

    return app.listing(document, [*doctor_lines(rows, verbose=verbose), "", summary(rows)], page)


def _ask(settings: Settings) -> Ask:
    from p2prw.engine.doctor.findings import Ask
    from p2prw.engine.memory.spec import parse_memory_spec

    memory = settings["memory"]
    return Ask(
        device=settings["device"],
        ib_port=settings["ib_port"],
        memory=parse_memory_spec(memory) if memory else None,
        pair=settings["pair"],
        binding=settings["verbs_binding"],
    )
