"""Read a region of a server into local memory."""

from __future__ import annotations

from typing import Any

import click

from p2prw.commands.app import App
from p2prw.commands.options import EXIT_CODES, HelpfulCommand, bench_options, settings_options
from p2prw.commands.transfer import run_data_command

EPILOG = f"""\
Examples:
  p2prw read 127.0.0.1/scratch --to host
  p2prw read 10.0.0.1/image --to file:copy.bin --overwrite
  p2prw read 10.0.0.1/bar+0x1000 --to host --size 4K --json

perftest: ib_read_bw -d mlx5_0 -x 3 -s 64M HOST
   here:  p2prw read HOST/REGION --to host -d mlx5_0 -x 3 -s 64M

Environment: P2PRW_<OPTION>, as P2PRW_TX_DEPTH=64; the command line wins.
{EXIT_CODES}"""


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="Read a region of a server into local memory.")
@click.argument("target", metavar="PEER/REGION[+OFFSET]", required=False)
@settings_options("read")
@bench_options
@click.pass_obj
def read(app: App, /, target: str | None, **line: Any) -> int:
    """Read a region of a server into local memory with RDMA READ, and verify what arrived.

    PEER is HOST[:PORT] or [V6]:PORT; `p2prw serve` runs there and `p2prw regions PEER` lists its regions.
    """
    return run_data_command(app, "read", target, line)
