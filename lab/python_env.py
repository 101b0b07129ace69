"""Two virtual environments in the cache: virtme-ng's own, and the guest's, where pyverbs and p2prw meet.

pyverbs imports only into the distribution's Python, so the guest's environment is made of that one and sees its
packages. p2prw itself is not installed there: it comes from the checkout by PYTHONPATH.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from lab.commands import run
from lab.errors import FetchError, MissingError
from lab.host import SYSTEM_PYTHON
from lab.say import say

TOOLS = ("virtme-ng>=1.36",)
# What the tests in the guest need beside p2prw's own dependencies; `ibverbs` is the second verbs binding.
GUEST_EXTRAS = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "ibverbs")


def project_dependencies(repository: Path) -> list[str]:
    """Return what p2prw itself needs, as its pyproject.toml says."""
    document = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    return [str(word) for word in document["project"]["dependencies"]]


def ensure_tools(cache: Path) -> Path:
    """Return the folder with `vng` in it. FetchError."""
    return _environment(cache / "tools", sys.executable, TOOLS, system_packages=False) / "bin"


def ensure_guest_environment(cache: Path, repository: Path) -> Path:
    """Return the Python of the guest. FetchError."""
    wanted = [*project_dependencies(repository), *GUEST_EXTRAS]
    return _environment(cache / "guest", SYSTEM_PYTHON, wanted, system_packages=True) / "bin/python"


def is_complete(folder: Path) -> bool:
    """Return whether an environment was made to the end; what it holds may be older than the checkout wants."""
    return (folder / ".complete").exists()


def _environment(folder: Path, python: str, wanted: Sequence[str], *, system_packages: bool) -> Path:
    version = run([python, "-VV"], failure=MissingError, what=f"running {python}")
    stamp = hashlib.sha256("\n".join([version, *wanted]).encode()).hexdigest()
    mark = folder / ".complete"
    if mark.exists() and mark.read_text(encoding="utf-8") == stamp:
        return folder
    say(f"setting up {folder.name}: {', '.join(wanted)}")
    shutil.rmtree(folder, ignore_errors=True)
    # Debian's python3 has venv but not ensurepip without a further package: the pip of this Python does the work.
    flags = ["--without-pip", *(["--system-site-packages"] if system_packages else [])]
    run([python, "-m", "venv", *flags, str(folder)], failure=MissingError, what=f"making {folder}")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "-q", "--no-input"]
    run([*pip, *wanted], failure=FetchError, what=f"Python packages ({', '.join(wanted)})")
    mark.write_text(stamp, encoding="utf-8")
    return folder
