"""Write local memory into a region of a server."""

from __future__ import annotations

from typing import Any

import click

from p2prw.commands.app import App
from p2prw.commands.options import EXIT_CODES, HelpfulCommand, bench_options, settings_options
from p2prw.commands.transfer import run_data_command

EPILOG = f"""\
Examples:
  p2prw write 127.0.0.1/scratch --from host,size=64MiB
  p2prw write 10.0.0.1:18515/scratch+4K --from file:image.bin --size 1M
  p2prw write "[2001:db8::1]/bar" --from p2pmem:0000:01:00.0 --dry-run
  p2prw write -c configs/loopback.yaml

perftest: ib_write_bw -d mlx5_0 -x 3 -s 64M HOST
   here:  p2prw write HOST/REGION --from host -d mlx5_0 -x 3 -s 64M

Environment: P2PRW_<OPTION>, as P2PRW_TX_DEPTH=64; the command line wins.
{EXIT_CODES}"""


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="Write local memory into a region of a server.")
@click.argument("target", metavar="PEER/REGION[+OFFSET]", required=False)
@settings_options("write")
@bench_options
@click.pass_obj
def write(app: App, /, target: str | None, **line: Any) -> int:
    """Write local memory into a region of a server with RDMA WRITE, and verify what arrived.

    PEER is HOST[:PORT] or [V6]:PORT; `p2prw serve` runs there and `p2prw regions PEER` lists its regions.
    """
    return run_data_command(app, "write", target, line)
