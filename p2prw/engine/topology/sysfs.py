"""The single door to sysfs: every other module asks a `SysfsRoot`, so that a copied tree works too.

Paths are relative to the root (`bus/pci/devices/0000:01:00.0/numa_node`). "Not there" and "no answer" are None,
because half of sysfs is optional; "not allowed" is an error, because a verdict made without the file would be a guess.
"""

from __future__ import annotations

import errno
import os
from os import open as open_descriptor
from pathlib import Path

from p2prw.errors import HostError

# A show function that has nothing to say fails in one of these ways (drivers/pci/pci-sysfs.c, fs/kernfs/file.c);
# ENODEV also comes from a device that is being removed while we read.
_NO_ANSWER = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.EINVAL, errno.EIO, errno.EISDIR),
        # A name that a user made up, or a copied tree that was made by hand.
        *(errno.ELOOP, errno.ENAMETOOLONG),
    }
)


class SysfsRoot:
    """A sysfs tree at `path`; the real one unless a test or `--sysfs` says otherwise."""

    __slots__ = ("_prefix", "path")

    def __init__(self, path: str | os.PathLike[str] = "/sys") -> None:
        self.path = Path(path)
        # fast path: among ten thousand functions, joining Path objects costs more than the system calls.
        self._prefix = f"{self.path}/"

    def __repr__(self) -> str:
        return f"SysfsRoot({str(self.path)!r})"

    def beside(self, name: str) -> SysfsRoot:
        """Return the tree that lies beside this one: `proc`, of this host or of the same copied machine."""
        return SysfsRoot(self.path.parent / name)

    def absolute(self, relative: str) -> Path:
        """Return where `relative` lies on this host, for opening and for messages."""
        return self.path / relative

    def exists(self, relative: str) -> bool:
        """Tell whether a file, directory or link that leads somewhere is there."""
        return os.path.exists(self._prefix + relative)  # noqa: PTH110

    def may_open(self, relative: str) -> bool:
        """Tell whether this process may read and write it (access(2), which asks for the real user's rights)."""
        return os.access(self.absolute(relative), os.R_OK | os.W_OK)

    def list(self, relative: str) -> tuple[str, ...]:
        """Return the sorted names in a directory; empty where there is none."""
        try:
            return tuple(sorted(os.listdir(self._prefix + relative)))  # noqa: PTH208
        except OSError as error:
            self._refuse(error, relative)
            return ()

    def read_text(self, relative: str) -> str | None:
        """Return an attribute without its trailing newline; None where it is absent or does not answer."""
        raw = self.read_bytes(relative)
        return None if raw is None else raw.decode("utf-8", "replace").strip()

    def read_bytes(self, relative: str, limit_bytes: int = 65536) -> bytes | None:
        """Return up to `limit_bytes` raw bytes (PCI `config` for one); None where absent or without an answer."""
        try:
            # open() takes twice as long, and the GID table of an rxe device is 1024 files.
            descriptor = open_descriptor(self._prefix + relative, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(descriptor, limit_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._refuse(error, relative)
            return None

    def size_bytes(self, relative: str) -> int | None:
        """Return a file's size as stat tells it (256 or 4096 for PCI `config`); None where it is absent."""
        try:
            return os.stat(self._prefix + relative).st_size  # noqa: PTH116
        except OSError as error:
            self._refuse(error, relative)
            return None

    def read_int(self, relative: str) -> int | None:
        """Return a decimal or 0x number; None where the attribute is absent or is no number."""
        text = self.read_text(relative)
        try:
            return None if text is None else int(text, 0)
        except ValueError:
            return None

    def link_name(self, relative: str) -> str | None:
        """Return the last component of a symbolic link's target (`driver` -> `nvme`); None where there is no link."""
        try:
            return os.readlink(self._prefix + relative).rpartition("/")[2]  # noqa: PTH115
        except OSError as error:
            self._refuse(error, relative)
            return None

    def real_path(self, relative: str) -> str | None:
        """Return the path, relative to the root, that `relative` resolves to; None where it leads nowhere or out."""
        try:
            return str(self.absolute(relative).resolve(strict=True).relative_to(self.path.resolve()))
        except (OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links, until Python 3.13
            return None

    def _refuse(self, error: OSError, relative: str) -> None:
        if error.errno in _NO_ANSWER:
            return
        raise HostError(
            f"cannot read {self.absolute(relative)}: {os.strerror(error.errno or 0)}",
            why="the attribute is there, but this user may not read it",
            fix="run as root, or give the process CAP_DAC_READ_SEARCH",
            code="not_permitted",
            errno=error.errno,
        ) from error
