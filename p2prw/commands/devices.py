"""List what this host can move bytes with, and memory of PCI devices it can move."""

from __future__ import annotations

from typing import Any

import click

from p2prw.commands.app import App
from p2prw.commands.options import HelpfulCommand, settings_options

EPILOG = """\
Examples:
  p2prw devices
  p2prw devices --json

perftest: ibv_devinfo"""


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="List devices and device memory of this host.")
@settings_options("devices")
@click.pass_obj
def devices(app: App, /, **line: Any) -> int:
    """List the devices that move bytes (--device) and the memory of PCI devices (--from, --to, --region)."""
    settings = app.settings("devices", line)
    from p2prw.engine.devices import list_devices
    from p2prw.engine.topology.pci import list_memory_devices
    from p2prw.engine.topology.sysfs import SysfsRoot
    from p2prw.reporters.device_rows import device_lines, device_row, memory_row
    from p2prw.reporters.document import build

    rows = [device_row(info) for info in list_devices(settings["verbs_binding"])]
    rows += [memory_row(memory) for memory in list_memory_devices(SysfsRoot())]
    return app.listing(build("devices", results=rows), device_lines(rows))
