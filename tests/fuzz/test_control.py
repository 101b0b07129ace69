"""Hostile control bytes at the pure parts: bodies, frames cut anywhere, and both handshakes.

Whatever comes is decoded or one RemoteProtocolError; a handshake with a token ends in DONE for nobody who lacks it.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from p2prw.engine.control.framing import READ_BYTES, FrameParser, frame
from p2prw.engine.control.handshake import ClientHandshake, Handshake, ServerHandshake, State
from p2prw.engine.control.messages import (
    MAX_FRAME_BYTES,
    MESSAGE_TYPES,
    Auth,
    Hello,
    Message,
    Refuse,
    decode,
    encode,
    refuse_from,
)
from p2prw.errors import RemoteProtocolError

BODIES, STREAMS, HANDSHAKES = 22_000, 4_000, 4_000
TOKEN = b"correct horse"


def decoded(body: bytes, *, again: bool = False) -> Message | None:
    """A message that can be sent on, or RemoteProtocolError; any other exception fails the test."""
    try:
        message = decode(body)
    except RemoteProtocolError as error:
        assert error.code in ("bad_message", "unknown_message", "frame_too_long")
        assert error.side == "remote"
        # What is shown can be printed, and told to the peer.
        str(error).encode()
        if again:
            encode(refuse_from(error))
        return None
    if again:
        assert decode(encode(message)) == message
    return message


def test_the_corpus_has_every_message(kit) -> None:
    assert {type(decode(body)) for body in kit.bodies} == set(MESSAGE_TYPES.values())


def test_bodies(kit, flat) -> None:
    dice = random.Random("bodies")
    for body in kit.broken:
        decoded(body, again=True)
    taken: Counter[str] = Counter()
    count, meter = kit.inputs(BODIES), flat()
    for number in range(count):
        if number == count * 9 // 10:
            meter.mark()
        message = decoded(kit.body(dice), again=number % 4 == 0)
        taken[message.TYPE if message else ""] += 1
    meter.check()
    # Neither everything nor nothing gets through: the changes reach the checks, and unknown fields are ignored.
    assert count * 0.1 < count - taken[""] < count * 0.6
    assert set(taken) == {"", *MESSAGE_TYPES}


def test_streams(kit, flat) -> None:
    """Frames of hostile bodies, with hostile lengths, cut anywhere: held bytes stay bounded, an error is final."""
    dice = random.Random("streams")
    ends: Counter[str] = Counter()
    count, meter = kit.inputs(STREAMS), flat()
    bodies = [kit.body(dice) or b"{" for _ in range(2000)]
    for number in range(count):
        if number == count * 9 // 10:
            meter.mark()
        whole = [dice.choice(bodies) for _ in range(dice.randrange(1, 4))]
        stream = bytearray(b"".join(frame(body) for body in whole))
        harm = dice.randrange(4)
        if harm == 0:
            at = dice.choice([0, len(stream) - len(whole[-1]) - 4])
            stream[at : at + 4] = dice.choice([0, 1, MAX_FRAME_BYTES, MAX_FRAME_BYTES + 1, 1 << 31]).to_bytes(4, "big")
        elif harm == 1:
            stream[dice.randrange(len(stream))] ^= 1 << dice.randrange(8)
        elif harm == 2:
            del stream[dice.randrange(len(stream)) :]
        parser, found, at = FrameParser(), [], 0
        try:
            while at < len(stream):
                step = dice.choice([1, 3, 64, 1000, READ_BYTES])
                parser.feed(stream[at : at + step])
                at += step
                while (body := parser.next_frame()) is not None:
                    found.append(body)
                assert parser.held_bytes < MAX_FRAME_BYTES + 4 + READ_BYTES
        except RemoteProtocolError as error:
            ends[error.code] += 1
            with pytest.raises(RemoteProtocolError):
                parser.next_frame()
        else:
            ends["cut" if parser.held_bytes else "whole"] += 1
        if harm == 3:
            assert found == whole
    meter.check()
    assert min(ends[end] for end in ("whole", "cut", "not_p2prw", "bad_frame", "frame_too_long")) >= count // 200, ends


def attempt(machine: Handshake, sent: list[Any], body: bytes) -> list[Message]:
    """Give one body to a machine; the laws of handshake.py, whatever it was."""
    before = machine.state
    message = decoded(body)
    if message is None:
        return []
    try:
        answers = machine.receive(message, body)
    except RemoteProtocolError as error:
        assert error.code == "unexpected_message"
        assert machine.failed
        return []
    assert before not in (State.DONE, State.FAILED)
    assert isinstance(message, Hello | Auth | Refuse)
    assert machine.state is not before or isinstance(machine, ClientHandshake)
    for answer in answers:
        # Nothing that is said holds the token, and everything said fits a frame.
        assert TOKEN not in encode(answer) and TOKEN.hex().encode() not in encode(answer)
    sent += answers
    return answers


def listen_in() -> list[bytes]:
    """Everything that is said in a session of two that know the token."""
    client, server = ClientHandshake(nonce="a1" * 32, token=TOKEN), ServerHandshake(nonce="b2" * 32, token=TOKEN)
    heard: list[bytes] = []
    said = client.start()
    listener: Handshake = server
    speaker: Handshake = client
    while said:
        bodies = [encode(message) for message in said]
        heard += bodies
        said = [answer for body in bodies for answer in listener.receive(decode(body), body)]
        listener, speaker = speaker, listener
    assert client.done and server.done
    return heard


@pytest.mark.parametrize("role", [ClientHandshake, ServerHandshake])
@pytest.mark.parametrize("token", [None, TOKEN], ids=["open", "token"])
def test_handshakes(kit, flat, role: type[Handshake], token: bytes | None) -> None:
    """A peer without the token says anything, in any order, and all that it has overheard."""
    dice = random.Random(f"handshakes {role.role} {token is not None}")
    ends: Counter[State] = Counter()
    overheard = [body for body in kit.bodies if decode(body).TYPE in ("hello", "auth", "refuse")] + listen_in()
    count, meter = kit.inputs(HANDSHAKES // 4), flat()
    number = 0
    while number < count:
        if meter.mark_objects == 0 and number >= count * 8 // 10:
            meter.mark()
        # A nonce is never used again (`secrets`): one of the overheard session would let its proof in.
        machine = role(nonce=dice.randbytes(32).hex(), token=token)
        sent = machine.start()
        for _ in range(dice.randrange(1, 5)):
            number += 1
            body = dice.choice(overheard) if dice.random() < 0.6 else kit.body(dice)
            if dice.random() < 0.1 and sent:
                # Its own words back at it.
                body = encode(dice.choice(sent))
            attempt(machine, sent, body)
        ends[machine.state] += 1
        if token is not None:
            assert not machine.done, "somebody without the token was let in"
    meter.check()
    assert ends[State.FAILED] and (ends[State.DONE] or token)
