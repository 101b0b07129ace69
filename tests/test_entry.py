"""A signal while the command line is still being loaded."""

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
        ("", -signal.SIGINT, ""),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)", 0, "went on\n"),
    ],
    ids=["heeded", "ignored, as in a background job"],
)
def test_ctrl_c_while_loading_leaves_no_traceback(before, code, said):
    done = subprocess.run(
        [sys.executable, "-c", LOADING.format(before=before)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, said, "")
