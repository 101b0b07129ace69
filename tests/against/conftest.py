"""What other tools printed, and one that can be told what to do."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RECORDED = Path(__file__).parents[1] / "data" / "against"

FAKE = f"""#!{sys.executable} -S
import os, socket, sys, time
port = int(sys.argv[sys.argv.index("-p") + 1])
how = os.environ.get("FAKE", "")
if sys.argv[-1] != "127.0.0.1":
    if how == "deaf":
        sys.exit("no such transport")
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.accept()
    time.sleep(60 if how == "stays" else 0)
    sys.exit()
with socket.create_connection(("127.0.0.1", port)):
    pass
if how == "hangs":
    time.sleep(60)
if how == "fails":
    sys.exit("transport retry count exceeded")
print(open({str(RECORDED / "ucx_put_bw.txt")!r}).read() if how != "mute" else "")
"""


@pytest.fixture
def recorded() -> Callable[[str], str]:
    return lambda name: (RECORDED / f"{name}.txt").read_text("utf-8")


@pytest.fixture
def fake_tool(tmp_path: Path) -> str:
    """A `ucx_perftest` whose client prints what was recorded; FAKE in its environment makes it misbehave."""
    path = tmp_path / "ucx_perftest"
    path.write_text(FAKE, "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)
