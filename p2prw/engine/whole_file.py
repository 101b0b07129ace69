"""Files that others wait for or read at any moment: whole under their name or not there, also when the disk is full."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from p2prw.errors import HostError


def write_whole(
    path: str, data: bytes, option: str, *, code: str = "report_file", overwrite: bool = True, mode: int | None = None
) -> None:
    """Write `data` beside its final name and rename it there; `option` (`--junit`) is for the error.

    What exists and is no regular file (/dev/null, a pipe) is written into: a rename would replace the device itself.
    `mode` is what the file gets whatever our umask is; None leaves it to the umask. HostError `code` with errno; then
    no half-written file is left.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        target = target.resolve()  # a symbolic link stays one
        name = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        # "x": in a directory that everybody may write to, that name must not be somebody else's link.
        with name.open("xb") as file:
            temporary = name
            file.write(data)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
        put_in_place(str(temporary), str(target), overwrite=overwrite)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise HostError(
            f"{option}: cannot write {path}: {(error.strerror or str(error)).lower()}",
            why=f"it is written beside its final name, in {target.parent}, and renamed",
            fix=f"ls -ld {target.parent}; df {target.parent}; or {option} in another directory",
            code=code,
            errno=error.errno,
        ) from error


def check_directory(path: str, option: str, *, code: str = "report_file") -> None:
    """Refuse a file that is bound to fail later. HostError `code`: no such directory, or the file is one."""
    target = Path(path)
    if target.is_dir():
        raise HostError(
            f"{option}: {path} is a directory",
            why="it is to be a file",
            fix=f"{option} {target / 'NAME'}",
            code=code,
            errno=errno.EISDIR,
        )
    if not target.parent.is_dir():
        raise HostError(
            f"{option}: cannot write {path}: there is no directory {target.parent}",
            why="directories are not made along with a file: a typing error would make one too",
            fix=f"mkdir -p {target.parent}",
            code=code,
            errno=errno.ENOENT,
        )


def put_in_place(temporary: str, target: str, *, overwrite: bool) -> None:
    """Give a whole file its name. FileExistsError where something has come into being there and may not be replaced."""
    if overwrite:
        os.replace(temporary, target)  # noqa: PTH105
        return
    try:
        # link() fails where the target has come into being since we looked; rename() would destroy it.
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:
        # No hard links here (FAT, some FUSE): look again, and accept the moment between.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(temporary, target)  # noqa: PTH104
        return
    try:
        os.unlink(temporary)  # noqa: PTH108
    except OSError:
        # The target is whole; a second name for it is no reason to fail.
        pass
