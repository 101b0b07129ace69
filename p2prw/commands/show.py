"""`--show-config`: each effective value and where it came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2prw.commands.app import App
from p2prw.config import Settings
from p2prw.errors import P2prwError


def show_config(app: App, settings: Settings, make_request: Callable[[], object]) -> int:
    """Print the settings, also where no request can be made of them: that is when they are wanted most.

    No secret is a setting (only the token's file name is), so all are shown.
    """
    from p2prw.reporters.document import build, error_object
    from p2prw.reporters.listing import setting_lines
    from p2prw.reporters.text import error_lines

    parts: dict[str, Any] = {"status": "planned"}
    code = 0
    error: P2prwError | None = None
    try:
        make_request()
    except P2prwError as caught:
        error, code = caught, caught.exit_code
        parts = {"error": error_object(caught)}
    rows = settings.rows()
    document = build(settings.command, code, results=rows, params={"show_config": True}, **parts)
    # write and read promise rows of transfers under their names; settings are no transfer.
    document["command"] = f"{settings.command} --show-config"
    app.listing(document, setting_lines(rows))
    for line in error_lines(error) if error else ():
        app.stderr.line(line)
    return code
