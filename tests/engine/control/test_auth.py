from __future__ import annotations

from pathlib import Path

import pytest

from p2prw.engine.control.auth import MAX_TOKEN_BYTES, compute_mac, load_token_file, mac_matches, transcript_hash
from p2prw.errors import HostError

CLIENT, SERVER = "11" * 32, "22" * 32
TRANSCRIPT = transcript_hash(b"client hello", b"server hello")


def test_the_mac_depends_on_every_input() -> None:
    macs = {
        compute_mac(b"token", "client", CLIENT, SERVER, TRANSCRIPT),
        compute_mac(b"other", "client", CLIENT, SERVER, TRANSCRIPT),
        compute_mac(b"token", "server", CLIENT, SERVER, TRANSCRIPT),
        compute_mac(b"token", "client", SERVER, CLIENT, TRANSCRIPT),
        compute_mac(b"token", "client", CLIENT, CLIENT, TRANSCRIPT),
        compute_mac(b"token", "client", CLIENT, SERVER, transcript_hash(b"client hellos", b"erver hello")),
    }
    assert len(macs) == 6
    assert all(len(mac) == 64 for mac in macs)


def test_the_mac_is_what_it_always_was() -> None:
    """A known answer, computed with `openssl dgst -sha256 -hmac`: a silent change would lock out every older peer."""
    assert compute_mac(b"token", "client", CLIENT, SERVER, TRANSCRIPT) == KNOWN_MAC


KNOWN_MAC = "2c9809045cd4310dd9d6dddeceedca07fb7e8c12d545318673189fe3bfad37b1"


def test_lengths_keep_hello_bodies_apart() -> None:
    assert transcript_hash(b"ab", b"c") != transcript_hash(b"a", b"bc")


def test_comparison() -> None:
    assert mac_matches("a" * 64, "a" * 64)
    assert not mac_matches("a" * 64, "a" * 63 + "b")


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
