"""A signal while the command line is still being loaded, and what is not done at the end."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

LOADING = """
import os, signal, sys
{before}
class Cli:
    def find_spec(self, name, path, target=None):
        if name == "p2prw.cli":
            os.kill(os.getpid(), signal.SIGINT)
            print("went on", flush=True)
            sys.exit(0)
sys.meta_path.insert(0, Cli())
from p2prw.entry import main
main()
"""


@pytest.mark.parametrize(
    ("before", "code", "said"),
    [
        # Else what this process has is inherited: in a background job, ignoring it.
        ("signal.signal(signal.SIGINT, signal.default_int_handler)", -signal.SIGINT, ""),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)", 0, "went on\n"),
    ],
    ids=["heeded", "ignored, as in a background job"],
)
def test_ctrl_c_while_loading_leaves_no_traceback(before, code, said):
    done = subprocess.run(
        [sys.executable, "-c", LOADING.format(before=before)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, said, "")


def test_objects_are_not_searched_for_cycles_when_the_process_ends():
    """The interpreter looks at all of them twice on its way out; what `--help` loads are tens of thousands."""
    script = (
        "import atexit, gc, sys; atexit.register(lambda: print('left', len(gc.get_objects()), file=sys.stderr)); "
        "sys.argv = ['p2prw', '--help']; from p2prw.entry import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout.startswith("Usage")
    word, left = done.stderr.split()
    assert word == "left" and int(left) < 1000
