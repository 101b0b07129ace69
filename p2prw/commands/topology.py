"""Draw the PCI tree and say whether P2PDMA works between two devices, why not, and what to type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from p2prw.commands.app import App
from p2prw.commands.complete import clients, memories
from p2prw.commands.options import HelpfulCommand, settings_options
from p2prw.commands.show import show_config

if TYPE_CHECKING:
    from rich.console import RenderableType

EPILOG = """\
Examples:
  p2prw topology                                    (all pairs)
  p2prw topology mlx5_0 p2pmem:0000:01:00.0
  p2prw topology nvme1 nvme0 --svg pair.svg
  p2prw topology mlx5_0 3b:00.0 --sysfs report/     (doctor --collect wrote it)

CLIENT is an RDMA device, netdev, NVMe controller or namespace, or PCI address;
MEMORY is p2pmem:BDF, bar:BDF/N, vfio:BDF/N, an NVMe controller, or PCI address.

Exit codes: 0 answered, whatever the answer; 2 usage; 3 no such device."""


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="Say whether P2PDMA works between two devices, and why.")
@click.argument("client", required=False, shell_complete=clients)
@click.argument("memory", required=False, shell_complete=memories)
@settings_options("topology")
@click.pass_obj
def topology(app: App, /, client: str | None, memory: str | None, **line: Any) -> int:
    """Draw the PCI tree above CLIENT and MEMORY and give the kernel's P2PDMA verdict: path, distance, reasons, mend.

    Without arguments: every RDMA device and NVMe controller with every provider of memory. Without root, ACS cannot be
    read, and the answer is unknown where it matters.
    """
    settings = app.settings("topology", line)
    if settings["show_config"]:
        return show_config(app, settings, lambda: None)
    from p2prw.engine.topology.pairs import Topology
    from p2prw.engine.topology.picture import draw
    from p2prw.engine.topology.snapshot import open_tree
    from p2prw.engine.topology.sysfs import SysfsRoot
    from p2prw.engine.whole_file import write_whole
    from p2prw.errors import RequestError
    from p2prw.reporters.document import build
    from p2prw.reporters.topology_rows import topology_lines, topology_rows

    if client is not None and memory is None:
        raise RequestError(
            "one device is no pair",
            why="a verdict is about a client and the memory it reaches",
            fix=f"p2prw topology {client} p2pmem:0000:01:00.0; without arguments it shows all pairs",
            code="usage",
        )
    found = Topology(open_tree(settings["sysfs"]) if settings["sysfs"] else SysfsRoot())
    pairs = (found.pair(client, memory),) if client is not None and memory is not None else found.all_pairs()
    rows = topology_rows(found.host, draw(found, pairs), pairs)
    for option in ("dot", "svg"):
        if settings[option]:
            from p2prw.reporters import topology_picture

            text: str = getattr(topology_picture, option)(rows)
            write_whole(settings[option], text.encode("utf-8", "replace"), f"--{option}")
            app.note(f"{option}: {settings[option]}")

    def page() -> Iterable[RenderableType]:
        from p2prw.reporters.topology_page import topology_page

        return topology_page(rows)

    params = {"client": client, "memory": memory, "sysfs": settings["sysfs"]}
    return app.listing(build("topology", results=rows, params=params), topology_lines(rows), page)
