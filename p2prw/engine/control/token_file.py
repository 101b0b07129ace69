"""Where the shared token comes from: a file that only its owner can read, never an option or the YAML itself."""

from __future__ import annotations

import os
from pathlib import Path

from p2prw.errors import HostError

MAX_TOKEN_BYTES = 4096


def load_token_file(path: str | Path) -> bytes:
    """Return the token in `path` without white space around it.

    HostError: token_file (cannot be read, too long), token_file_mode (others can reach it), token_file_empty.
    """
    make_one = f"(umask 077; head -c 32 /dev/urandom | base64 > {path})"
    try:
        with Path(path).open("rb") as file:
            # The open file is looked at, not its name: what was checked is what is read.
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise HostError(
            f"cannot read the token file {path}: {error.strerror}",
            why="both sides need the same token in a file",
            fix=make_one,
            code="token_file",
            errno=error.errno,
        ) from error
    # As ssh does with private keys: a secret that others can read is none.
    if mode & 0o077:
        raise HostError(
            f"the token file {path} can be reached by others (mode {mode & 0o777:04o})",
            why="whoever reads the token can write into this host's memory",
            fix=f"chmod 600 {path}",
            code="token_file_mode",
        )
    if len(data) > MAX_TOKEN_BYTES:
        raise HostError(
            f"the token file {path} is longer than {MAX_TOKEN_BYTES} bytes",
            why="a token is a line of text; this is another file",
            fix=make_one,
            code="token_file",
        )
    token = data.strip()
    if not token:
        raise HostError(
            f"the token file {path} is empty",
            why="an empty token protects nothing",
            fix=make_one,
            code="token_file_empty",
        )
    return token
