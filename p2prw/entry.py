"""Where the `p2prw` script begins: Ctrl-C while modules are still being loaded ends it without a traceback."""

from __future__ import annotations

import atexit
import gc
import signal


def main() -> None:
    """Load the command line and run it."""
    # Until `p2prw.cli` has handlers of its own. What is ignored (in a background job of a script) stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What ends with the process need not be searched for cycles first: an eighth of the time of a small transfer.
    atexit.register(gc.freeze)
    from p2prw import cli

    cli.main()
