from __future__ import annotations

from p2prw.engine.control.auth import compute_mac, mac_matches, transcript_hash

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
