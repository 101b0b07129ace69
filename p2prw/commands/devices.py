"""List what this host can move bytes with, and memory of PCI devices it can move."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from p2prw.commands.app import App
from p2prw.commands.options import HelpfulCommand, settings_options

if TYPE_CHECKING:
    from rich.console import RenderableType

EPILOG = """\
Examples:
  p2prw devices
  p2prw devices --verbose        (GID tables, limits, refused routes and why)
  p2prw devices --json

perftest: ibv_devinfo"""


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="List devices and device memory of this host.")
@settings_options("devices")
@click.pass_obj
def devices(app: App, /, **line: Any) -> int:
    """List the devices that move bytes (--device) with the routes they may take, and memory of devices (--from, --to).

    Needs no right and no RDMA; what cannot be seen from here is said, with the reason.
    """
    settings = app.settings("devices", line)
    from p2prw.engine.inventory import take_inventory
    from p2prw.reporters.device_rows import device_lines, inventory_rows
    from p2prw.reporters.document import build

    rows = inventory_rows(take_inventory(settings["verbs_binding"]))
    verbose = settings["verbose"]

    def page() -> Iterable[RenderableType]:
        from p2prw.reporters.device_page import device_page

        return device_page(rows, verbose=verbose)

    return app.listing(build("devices", results=rows), device_lines(rows, verbose=verbose), page)
