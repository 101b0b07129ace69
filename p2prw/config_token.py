"""Where the shared token comes from: a file that only its owner can read, never an option or the YAML itself."""

from __future__ import annotations

import os
import stat

from p2prw.errors import HostError

MAX_TOKEN_BYTES = 4096


def read_token(path: str) -> bytes:
    """Return the token in `path` without its line end. HostError: missing, readable by others, empty, too long."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            f"token file {path}: {(error.strerror or 'cannot open').lower()}",
            fix=f"(umask 077; head -c 32 /dev/urandom | base64 > {path})",
            code="token_file",
            errno=error.errno,
        ) from error
    try:
        # The open descriptor is looked at, not the path: what was checked is what is read.
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o077:
            raise HostError(
                f"token file {path} can be read by others (mode {mode:04o})",
                why="whoever reads the token can write into this host's memory",
                fix=f"chmod 600 {path}",
                code="token_file_mode",
            )
        data = b""
        while len(data) <= MAX_TOKEN_BYTES and (more := os.read(descriptor, MAX_TOKEN_BYTES + 1 - len(data))):
            data += more
    except OSError as error:
        raise HostError(
            f"token file {path}: {(error.strerror or 'cannot read').lower()}", code="token_file", errno=error.errno
        ) from error
    finally:
        os.close(descriptor)
    token = data.rstrip(b"\r\n")
    if not token or len(data) > MAX_TOKEN_BYTES:
        raise HostError(
            f"token file {path} is {'empty' if not token else f'longer than {MAX_TOKEN_BYTES} bytes'}",
            fix=f"(umask 077; head -c 32 /dev/urandom | base64 > {path})",
            code="token_file",
        )
    return token
