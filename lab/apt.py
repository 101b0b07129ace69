"""A Debian suite that the machine does not use, read through an apt root of its own.

Where packages come from is the machine's business: the source entry is the machine's own with the suite's name
replaced, so mirrors, proxies and keys are those that work here. Nothing of the machine's own apt state is touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lab.commands import run
from lab.errors import FetchError, MissingError

_SOURCES = Path("/etc/apt")
_ONE_LINE = re.compile(r"^(deb\s+(?:\[[^\]]*\]\s+)?\S+\s+)(\S+)(\s.*\bmain\b.*)$")


def deb822_entry(text: str, codename: str, suite: str) -> str | None:
    """Return the paragraph of a `.sources` file that serves `codename` from `main`, with `suite` in its place."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
        fields = {name.strip().lower(): value.split() for name, _, value in (line.partition(":") for line in lines)}
        if "deb" not in fields.get("types", []) or "main" not in fields.get("components", []):
            continue
        if codename not in fields.get("suites", []) or fields.get("enabled") == ["no"]:
            continue
        replaced = (f"Suites: {suite}" if line.lower().startswith("suites:") else line for line in lines)
        return "\n".join(line for line in replaced if line.strip()) + "\n"
    return None


def one_line_entry(text: str, codename: str, suite: str) -> str | None:
    """Return the line of a `.list` file that serves `codename` from `main`, with `suite` in its place."""
    for line in text.splitlines():
        match = _ONE_LINE.match(line.split(" #")[0].strip())
        if match and match[2] == codename:
            return f"{match[1]}{suite} main\n"
    return None


def own_entry(suite: str, codename: str, etc: Path = _SOURCES) -> tuple[str, str]:
    """Return (file name ending, text) of this machine's Debian entry for `suite`. MissingError where it has none."""
    deb822 = sorted((etc / "sources.list.d").glob("*.sources"))
    one_line = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]
    for path in deb822:
        entry = deb822_entry(path.read_text(encoding="utf-8", errors="replace"), codename, suite)
        if entry:
            return ".sources", entry
    for path in one_line:
        if path.is_file():
            entry = one_line_entry(path.read_text(encoding="utf-8", errors="replace"), codename, suite)
            if entry:
                return ".list", entry
    raise MissingError(
        f"the lab's kernel is in Debian's {suite}, and no apt source entry for {codename} main was found to reach it\n"
        "  pass a kernel of your own: lab/run --kernel PATH (lab/README.md says what it needs)"
    )


class PrivateApt:
    """apt-get and apt-cache over one suite; needs no root."""

    def __init__(self, folder: Path, ending: str, entry: str) -> None:
        for name in ("state/lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        source = folder / f"suite{ending}"
        source.write_text(entry, encoding="utf-8")
        # Without a status file of its own, packages of this machine would stand in the answers.
        status = folder / "status"
        status.touch()
        settings = {
            "Dir::Etc::SourceList": source,
            "Dir::Etc::SourceParts": "-",
            "Dir::State": folder / "state",
            "Dir::State::Lists": folder / "state/lists",
            "Dir::State::status": status,
            "Dir::Cache": folder / "cache",
            # Else apt drops to a user who may not enter a private cache folder, and warns.
            "APT::Sandbox::User": "root",
            "Acquire::Retries": "3",
            # An index that could not be had must be an error, not the index of last month.
            "APT::Update::Error-Mode": "any",
        }
        self._options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def update(self) -> None:
        """Read the suite's index. FetchError."""
        run(["apt-get", *self._options, "-q", "update"], failure=FetchError, what="the package index")

    def show(self, package: str) -> str:
        """Return the newest record of a package; empty when there is none."""
        names = run(["apt-cache", *self._options, "pkgnames", package], failure=FetchError, what="the package index")
        if package not in names.split():
            return ""
        return run(
            ["apt-cache", *self._options, "show", "--no-all-versions", package], failure=FetchError, what=package
        )

    def download(self, packages: Iterable[str], folder: Path) -> list[Path]:
        """Fetch packages (not their dependencies) into `folder` and return the files. FetchError."""
        folder.mkdir(parents=True, exist_ok=True)
        names = list(packages)
        # apt-get download writes into its working directory and has no option for another.
        command = ["env", "-C", str(folder), "apt-get", *self._options, "-q", "download", *names]
        run(command, failure=FetchError, what=", ".join(names))
        return sorted(folder.glob("*.deb"))
