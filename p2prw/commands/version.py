"""Print versions: p2prw, its protocol and schema, what it runs on."""

from __future__ import annotations

from typing import Any

import click

from p2prw import __version__
from p2prw.commands.app import App
from p2prw.commands.options import HelpfulCommand, settings_options

PACKAGES = ("click", "numpy", "rich", "pyyaml", "xxhash", "zlib-ng")


@click.command(cls=HelpfulCommand, short_help="Print versions.")
@settings_options("version")
@click.pass_obj
def version(app: App, /, **line: Any) -> int:
    """Print the versions of p2prw, its protocol, Python and the packages it uses: put them in a bug report."""
    app.settings("version", line)
    from p2prw.engine.control.messages import PROTOCOL_VERSION
    from p2prw.engine.roce.leaf import choose_codec
    from p2prw.reporters.document import SCHEMA, build, environment

    host = environment()
    rows = [
        {"name": "p2prw", "version": __version__},
        {"name": "control protocol", "version": str(PROTOCOL_VERSION)},
        {"name": "result schema", "version": SCHEMA},
        {"name": "python", "version": host["python"]},
        {"name": "kernel", "version": host["kernel"]},
        *({"name": name, "version": _installed(name)} for name in PACKAGES),
        {"name": "packets of the software device", "version": choose_codec().name},
    ]
    lines = (f"{row['name']} {row['version'] or 'is not installed'}" for row in rows)
    return app.listing(build("version", results=rows), lines)


def _installed(name: str) -> str | None:
    # Imported here: it brings email and socket along, which `version --help` does not need.
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
