"""List what a server offers."""

from __future__ import annotations

from typing import Any

import click

from p2prw.commands.app import App
from p2prw.commands.options import EXIT_CODES, HelpfulCommand, settings_options
from p2prw.commands.show import show_config

EPILOG = f"""\
Examples:
  p2prw regions 127.0.0.1
  p2prw regions 127.0.0.1/scratch
  p2prw regions 10.0.0.1:18515 --token-file token --json

{EXIT_CODES}"""


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="List the regions that a server offers.")
@click.argument("peer", metavar="PEER[/REGION]", required=False)
@settings_options("regions")
@click.pass_obj
def regions(app: App, /, peer: str | None, **line: Any) -> int:
    """List the regions that a server offers: name, kind, size, access, whether a client holds them.

    PEER is HOST[:PORT] or [V6]:PORT. With /REGION only that one; exit code 7 where it is not offered.
    """
    settings = app.settings("regions", line)
    from p2prw.config_requests import peer_request

    if settings["show_config"]:
        return show_config(app, settings, lambda: peer_request(settings, peer))
    address, wanted, token, tls, deadlines = peer_request(settings, peer)
    app.stop.tell = app.note
    from p2prw.engine.server.refusals import unknown_region
    from p2prw.engine.session import list_regions
    from p2prw.reporters.document import build
    from p2prw.reporters.listing import region_lines

    offered = list_regions(address, token, deadlines, tls=tls, stop=app.stop)
    if wanted is not None and wanted not in (names := [region.name for region in offered]):
        raise unknown_region(wanted, names, address)
    rows = [
        {
            "name": region.name,
            "kind": region.kind,
            "size_bytes": region.length,
            "access": region.access,
            "staged": region.staged,
            "busy": region.busy,
        }
        for region in offered
        if wanted in (None, region.name)
    ]
    return app.listing(build("regions", results=rows, params={"peer": str(address)}), region_lines(rows, str(address)))
