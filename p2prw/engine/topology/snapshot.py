"""A machine's sysfs in one JSON file: what `doctor --collect` writes, what tests and `--sysfs` read.

The format is described in tests/golden/README.md. A snapshot answers as `SysfsRoot` does, without touching the disk.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, errno_name

SCHEMA = "p2prw-machine/1"
FILE_NAME = "machine.json"
_ROW_BYTES = 16
_MOST_LINKS = 40  # as the kernel: then it is ELOOP
_MOST_BYTES = 1 << 24


def encode_bytes(raw: bytes, size_bytes: int | None = None) -> dict[str, Any]:
    """Return a binary file as rows of 16 bytes by their offset, rows of zeros left out.

    `size_bytes` is what stat says, where that is more than could be read.
    """
    rows = {
        f"{offset:03x}": row.hex()
        for offset in range(0, len(raw), _ROW_BYTES)
        if (row := raw[offset : offset + _ROW_BYTES]).strip(b"\0")
    }
    entry: dict[str, Any] = {"bytes": rows, "length": len(raw)}
    if size_bytes not in (None, len(raw)):
        entry["size"] = size_bytes
    return entry


def dump_machine(tree: Mapping[str, Mapping[str, Any]], note: str = "", **facts: Any) -> str:
    """Return the text of a snapshot: one line for each entry, so that a diff can be read."""
    lines = [f' "schema": {json.dumps(SCHEMA)}', f' "note": {json.dumps(note)}']
    lines += [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items()]
    folders = []
    for folder in sorted(tree):
        entries = [f"   {json.dumps(name)}: {json.dumps(tree[folder][name])}" for name in sorted(tree[folder])]
        folders.append(f"  {json.dumps(folder)}: {{" + ("\n" + ",\n".join(entries) + "\n  }" if entries else "}"))
    lines.append(' "tree": {\n' + ",\n".join(folders) + "\n }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


class Machine:
    """A loaded snapshot: folders of entries. An entry is a text, bytes, a link, an error, or a size without content."""

    def __init__(self, document: object) -> None:
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        tree = document.get("tree")
        if not isinstance(tree, dict) or not all(isinstance(entries, dict) for entries in tree.values()):
            raise ValueError("its tree is no map of folders")
        self.note = str(document.get("note", ""))
        self.folders: dict[str, dict[str, Any]] = {}
        for where, entries in tree.items():
            place = PurePosixPath(where)
            self.folders.setdefault(str(place), {}).update(entries)
            for above in list(place.parents)[:-1]:
                self.folders.setdefault(str(above), {})
        self._children: dict[str, set[str]] = {path: set(entries) for path, entries in self.folders.items()}
        for path in self.folders:
            parent, _, name = path.rpartition("/")
            if parent:
                self._children[parent].add(name)

    def resolve(self, path: str) -> str:
        """Return where a path leads, links followed; OSError as the kernel would have it."""
        todo, done, links = path.split("/")[::-1], "", 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                done = done.rpartition("/")[0]
                continue
            entry = self.folders.get(done, {}).get(part)
            if isinstance(entry, dict) and "link" in entry:
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                todo += str(entry["link"]).split("/")[::-1]
                done = ""
                continue
            done = f"{done}/{part}" if done else part
            if entry is None and done not in self.folders:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return done

    def entry(self, path: str) -> Any:
        """Return the entry of a resolved path; None for a folder."""
        folder, _, name = path.rpartition("/")
        return self.folders.get(folder, {}).get(name)

    def children(self, path: str) -> set[str]:
        """Return the names in a resolved folder; NotADirectoryError for a file."""
        if path not in self._children:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return self._children[path]

    def content(self, path: str) -> bytes:
        """Return the bytes of a resolved file; OSError where the snapshot holds one."""
        entry = self.entry(path)
        if isinstance(entry, str):
            return entry.encode("utf-8", "surrogateescape") + (b"" if entry.endswith("\n") else b"\n")
        if not isinstance(entry, dict):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if "errno" in entry:
            number = getattr(errno, str(entry["errno"]), errno.EIO)
            raise OSError(number, os.strerror(number))
        return _decode(entry)

    def size(self, path: str) -> int:
        """Return what stat says of a resolved file; 4096 for a text, as sysfs does."""
        entry = self.entry(path)
        size = entry.get("size", entry.get("length")) if isinstance(entry, dict) else None
        return size if isinstance(size, int) else 4096


def _decode(entry: Mapping[str, Any]) -> bytes:
    try:
        length = int(entry.get("length", 0))
        if not 0 <= length <= _MOST_BYTES:
            raise ValueError
        raw = bytearray(length)
        for offset, row in dict(entry.get("bytes", {})).items():
            start, data = int(offset, 16), bytes.fromhex(row)
            raw[start : start + len(data)] = data
        return bytes(raw[:length])
    except (ValueError, TypeError):
        raise OSError(errno.EIO, "the snapshot's bytes are garbled") from None


class SnapshotRoot(SysfsRoot):
    """A snapshot's `sys` (or `proc`) as a tree to read; nothing of it can be opened or mapped."""

    __slots__ = ("machine", "prefix")

    def __init__(self, machine: Machine, where: str | os.PathLike[str] = FILE_NAME, prefix: str = "sys") -> None:
        super().__init__(Path(where) / prefix)
        self.machine = machine
        self.prefix = prefix

    def beside(self, name: str) -> SysfsRoot:
        """Return the snapshot's `proc`."""
        return SnapshotRoot(self.machine, self.path.parent, name)

    def exists(self, relative: str) -> bool:
        """Tell whether the snapshot has it."""
        try:
            self._resolve(relative)
        except OSError:
            return False
        return True

    def may_open(self, relative: str) -> bool:
        """Tell whether whoever took the snapshot could open it."""
        try:
            entry = self.machine.entry(self._resolve(relative))
        except OSError:
            return False
        return not (isinstance(entry, dict) and "errno" in entry)

    def list(self, relative: str) -> tuple[str, ...]:
        """Return the sorted names in a folder; empty where there is none."""
        try:
            return tuple(sorted(self.machine.children(self._resolve(relative))))
        except OSError as error:
            self._refuse(error, relative)
            return ()

    def read_bytes(self, relative: str, limit_bytes: int = 65536) -> bytes | None:
        """Return up to `limit_bytes` of a file."""
        try:
            return self.machine.content(self._resolve(relative))[:limit_bytes]
        except OSError as error:
            self._refuse(error, relative)
            return None

    def size_bytes(self, relative: str) -> int | None:
        """Return the size that stat told."""
        try:
            return self.machine.size(self._resolve(relative))
        except OSError:
            return None

    def link_name(self, relative: str) -> str | None:
        """Return the last component of a link's target."""
        folder, _, name = relative.rpartition("/")
        try:
            entry = self.machine.entry(f"{self._resolve(folder)}/{name}")
        except OSError:
            return None
        return str(entry["link"]).rpartition("/")[2] if isinstance(entry, dict) and "link" in entry else None

    def real_path(self, relative: str) -> str | None:
        """Return where a path leads, relative to the root."""
        try:
            found = self._resolve(relative)
        except OSError:
            return None
        inside = found.startswith(f"{self.prefix}/")
        return found[len(self.prefix) + 1 :] if inside else None

    def _resolve(self, relative: str) -> str:
        return self.machine.resolve(f"{self.prefix}/{relative}")


def open_tree(where: str | os.PathLike[str]) -> SysfsRoot:
    """Return the tree that `where` names: a snapshot, a folder with one, or a copy of /sys (or a folder with `sys`).

    HostError where it is none of these.
    """
    path = Path(where)
    if path.is_dir() and not (path / FILE_NAME).is_file():
        found = next((root for root in (path, path / "sys") if (root / "bus/pci").is_dir()), None)
        if found is not None:
            return SysfsRoot(found)
        raise HostError(
            f"{path} is no sysfs tree",
            why=f"it has neither {FILE_NAME} nor bus/pci",
            fix="p2prw doctor --collect DIR writes one",
            code="no_sysfs_tree",
        )
    file = path / FILE_NAME if path.is_dir() else path
    try:
        return SnapshotRoot(Machine(json.loads(file.read_text(encoding="utf-8"))), file)
    except OSError as error:
        raise HostError(
            f"cannot read {file}: {os.strerror(error.errno or 0)}",
            why="it should be a machine's snapshot or a copy of /sys",
            fix="p2prw doctor --collect DIR writes one",
            code="no_sysfs_tree",
            errno=errno_name(error.errno or 0),
        ) from error
    except ValueError as error:
        raise HostError(
            f"{file} is no snapshot of a machine",
            why=str(error),
            fix="p2prw doctor --collect DIR writes one",
            code="bad_snapshot",
        ) from error
