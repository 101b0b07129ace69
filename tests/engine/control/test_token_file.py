from __future__ import annotations

from pathlib import Path

import pytest

from p2prw.engine.control.token_file import MAX_TOKEN_BYTES, load_token_file
from p2prw.errors import HostError


def token_file(tmp_path: Path, data: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "token"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_white_space_round_a_token_does_not_count(tmp_path: Path) -> None:
    assert load_token_file(token_file(tmp_path, b"  s3cret word\n")) == b"s3cret word"
    assert load_token_file(str(token_file(tmp_path, b"x"))) == b"x"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_token_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = token_file(tmp_path, b"secret", mode)
    with pytest.raises(HostError) as caught:
        load_token_file(path)
    assert caught.value.code == "token_file_mode"
    assert caught.value.fix == f"chmod 600 {path}"


@pytest.mark.parametrize("data", [b"", b" \n\t"])
def test_an_empty_token_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(HostError) as caught:
        load_token_file(token_file(tmp_path, data))
    assert caught.value.code == "token_file_empty"


def test_a_token_that_is_no_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        load_token_file(token_file(tmp_path, b"x" * (MAX_TOKEN_BYTES + 1)))
    assert caught.value.code == "token_file"


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        load_token_file(tmp_path / "none")
    assert caught.value.errno == "ENOENT"
    assert "umask 077" in (caught.value.fix or "")
    with pytest.raises(HostError):
        load_token_file(tmp_path)
