from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.control.framing import HEADER, READ_BYTES, FrameParser, frame, name_stranger
from p2prw.engine.control.messages import MAX_FRAME_BYTES
from p2prw.errors import LocalProtocolError, RemoteProtocolError

bodies = st.lists(st.binary(min_size=1, max_size=300), max_size=8)


def drain(parser: FrameParser) -> list[bytes]:
    found = []
    while (body := parser.next_frame()) is not None:
        found.append(body)
    return found


@given(bodies=bodies, cuts=st.randoms(use_true_random=False))
def test_any_slicing_gives_the_same_frames(bodies: list[bytes], cuts: random.Random) -> None:
    stream = b"".join(frame(body) for body in bodies)
    parser, found, at = FrameParser(), [], 0
    while at < len(stream):
        step = cuts.choice([1, 2, 3, 7, 64, 1000])
        parser.feed(stream[at : at + step])
        at += step
        found += drain(parser)
    assert found == bodies
    assert parser.held_bytes == 0
    assert parser.frames == len(bodies)


def test_one_byte_at_a_time_and_the_largest_frame() -> None:
    body = bytes(range(256)) * (MAX_FRAME_BYTES // 256)
    stream = frame(body)
    parser = FrameParser()
    for at in range(len(stream) - 1):
        parser.feed(stream[at : at + 1])
        assert parser.next_frame() is None
    parser.feed(stream[-1:])
    assert parser.next_frame() == body


def test_a_memoryview_can_be_fed() -> None:
    parser = FrameParser()
    parser.feed(memoryview(frame(b"{}")))
    assert parser.next_frame() == b"{}"


def test_the_parser_never_holds_more_than_a_frame_and_a_read() -> None:
    """Endless header-less bytes of a never finished frame: the frame ends before the parser could grow."""
    parser = FrameParser()
    stream = frame(b"x" * MAX_FRAME_BYTES) * 4
    most = 0
    for at in range(0, len(stream), READ_BYTES):
        parser.feed(stream[at : at + READ_BYTES])
        most = max(most, parser.held_bytes)
        drain(parser)
    assert most < HEADER.size + MAX_FRAME_BYTES + READ_BYTES
    assert parser.frames == 4


def test_feeding_without_emptying_is_our_own_mistake() -> None:
    parser = FrameParser()
    parser.feed(frame(b"x" * MAX_FRAME_BYTES)[:READ_BYTES])
    parser.feed(b"x" * 100)
    with pytest.raises(LocalProtocolError):
        parser.feed(b"x")
    with pytest.raises(LocalProtocolError):
        FrameParser().feed(b"\0" * (READ_BYTES + 1))


@pytest.mark.parametrize("body", [b"", b"x" * (MAX_FRAME_BYTES + 1)])
def test_a_body_that_fits_no_frame_is_our_own_mistake(body: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        frame(body)


STRANGERS = [
    (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "an HTTP client"),
    (b"HTTP/1.1 400 Bad Request\r\n", "an HTTP server"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "a TLS peer"),
    (b"\x15\x03\x03\x00\x02\x02\x46", "a TLS peer"),
    (b"SSH-2.0-OpenSSH_9.2p1\r\n", "an SSH server"),
    (b"220 mail.example ESMTP\r\n", "an FTP or mail server"),
    (b"6.06\x00\x00\x00\x00\x00\x00\x00", "perftest (ib_write_bw and its siblings)"),
    (b"0000:0011:ba5eba:000000:00001234:00007f0000000000:", "perftest (ib_write_bw and its siblings)"),
]


@pytest.mark.parametrize(("hello", "name"), STRANGERS)
@pytest.mark.parametrize("step", [1, 3, 4096])
def test_strangers_are_named(hello: bytes, name: str, step: int) -> None:
    """One byte is enough to know that it is a stranger; its name is told when enough came at once."""
    assert name_stranger(hello) == name
    parser = FrameParser()
    parser.feed(hello[:step])
    with pytest.raises(RemoteProtocolError) as caught:
        parser.next_frame()
    assert caught.value.code == "not_p2prw"
    assert caught.value.exit_code == 7
    assert "not p2prw" in caught.value.what
    assert "p2prw serve" in (caught.value.fix or "")
    if step == 4096:
        assert name in caught.value.what


@pytest.mark.parametrize("head", [b"\0\0\0\0", b"\0\1\0\1", b"\0\xff\xff\xff", b"\xff"])
def test_a_first_frame_of_impossible_length_is_no_p2prw(head: bytes) -> None:
    parser = FrameParser()
    parser.feed(head)
    with pytest.raises(RemoteProtocolError) as caught:
        parser.next_frame()
    assert caught.value.code == "not_p2prw"


@pytest.mark.parametrize(
    ("head", "code"),
    [(b"\0\0\0\0", "bad_frame"), (b"\0\1\0\1", "frame_too_long"), (b"\x7f", "frame_too_long")],
)
def test_after_a_good_frame_the_length_is_blamed(head: bytes, code: str) -> None:
    parser = FrameParser()
    parser.feed(frame(b"{}") + head)
    assert parser.next_frame() == b"{}"
    with pytest.raises(RemoteProtocolError) as caught:
        parser.next_frame()
    assert caught.value.code == code


def test_repr_tells_what_is_held() -> None:
    parser = FrameParser()
    parser.feed(b"\0\0")
    assert repr(parser) == "<FrameParser frames=0 held=2>"
