"""`--show-config`: each effective value and where it came from."""

from __future__ import annotations

from p2prw.commands.app import App
from p2prw.config import Settings


def show_config(app: App, settings: Settings) -> int:
    """Print the settings; values of secrets are not settings (only the token's file name is), so all are shown."""
    from p2prw.reporters.document import build
    from p2prw.reporters.listing import setting_lines

    rows = settings.rows()
    document = build(settings.command, status="planned", results=rows, params={"show_config": True})
    return app.listing(document, setting_lines(rows))
