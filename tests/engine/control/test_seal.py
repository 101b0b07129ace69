"""A frame is good once, in one place, in one direction, of one session."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from p2prw.engine.control.seal import Seal
from p2prw.errors import RemoteProtocolError

ONE, TWO = b"1" * 32, b"2" * 32


def pair() -> tuple[Seal, Seal]:
    return Seal(ONE, TWO), Seal(TWO, ONE)


def refused(seal: Seal, sealed: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        seal.open(sealed)
    assert caught.value.code == "bad_seal" and caught.value.exit_code == 7


def test_frames_in_order_go_through_both_ways() -> None:
    one, two = pair()
    for body in (b"first", b"", b"third"):
        assert two.open(one.close(body)) == body
        assert one.open(two.close(body)) == body


def test_the_seal_is_what_the_contract_says() -> None:
    one, _ = pair()
    one.close(b"number 0")
    mac = hmac.new(ONE, (1).to_bytes(8, "big") + b"number 1", hashlib.sha256).digest()
    assert one.close(b"number 1") == b"number 1" + mac


def test_every_flipped_bit_is_seen() -> None:
    one, two = pair()
    sealed = one.close(b'{"offset":4096}')
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        refused(two, bytes(changed))
    assert two.open(sealed) == b'{"offset":4096}'


def test_repeated_dropped_reordered_reflected_and_cut_frames_are_seen() -> None:
    one, two = pair()
    first, second = one.close(b"first"), one.close(b"second")
    refused(two, second)
    assert two.open(first) == b"first"
    refused(two, first)
    refused(one, first)
    assert two.open(second) == b"second"
    for length in (0, 1, 31, 32):
        refused(two, one.close(b"third")[:length])


def test_repr_shows_no_key() -> None:
    one, _ = pair()
    one.close(b"a")
    assert repr(one) == "<Seal sent=1 received=0>"
