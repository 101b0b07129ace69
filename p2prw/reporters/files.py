"""Report files beside stdout (JUnit, Markdown, bundles): whole or not at all, also when the disk is full or we die."""

from __future__ import annotations

import secrets
from pathlib import Path

from p2prw.engine.memory.file_target import put_in_place
from p2prw.errors import HostError


def write_whole(path: str, data: bytes, option: str, *, overwrite: bool = True) -> None:
    """Write `data` beside its final name and rename it there; `option` (`--junit`) is for the error.

    What exists and is no regular file (/dev/null, a pipe) is written into: a rename would replace the device itself.
    HostError `report_file` with errno; then no half-written file is left.
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
        put_in_place(str(temporary), str(target), overwrite=overwrite)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise HostError(
            f"{option}: cannot write {path}: {(error.strerror or str(error)).lower()}",
            why=f"it is written beside its final name, in {target.parent}, and renamed",
            fix=f"ls -ld {target.parent}; df {target.parent}; or {option} in another directory",
            code="report_file",
            errno=error.errno,
        ) from error
