"""Runs that the compiled leaf sends and receives by itself, over real sockets, against the plain functions."""

from __future__ import annotations

import errno
import mmap
import socket
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2prw.engine.providers.soft_socket import UDP_GRO, UDP_SEGMENT, pack_address
from p2prw.engine.roce.runs import Train, build_run, receive_run

PREFIX, LAST_PREFIX = bytes.fromhex("0740ffff00000011"), bytes.fromhex("0840ffff00000011")
PREFIX_WORD, LAST_WORD = int.from_bytes(PREFIX, "big"), int.from_bytes(LAST_PREFIX, "big")
POOL = bytes(range(256)) * 600
OVERHEAD = 16


def udp(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    sock.setblocking(False)
    return sock


@pytest.fixture(scope="module", params=["127.0.0.1", "::1"])
def ends(request, compiled_leaf) -> Iterator[Any]:
    """A sender, a stranger, and a receiver that gets whole bursts."""
    with udp(request.param) as sender, udp(request.param) as stranger, udp(request.param) as receiver:
        receiver.setsockopt(socket.SOL_UDP, UDP_GRO, 1)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        yield SimpleNamespace(
            leaf=compiled_leaf,
            sender=sender,
            stranger=stranger,
            receiver=receiver,
            to=pack_address(receiver.getsockname()[:2]),
            source=pack_address(sender.getsockname()[:2]),
        )


def arrived(sock: socket.socket) -> list[tuple[bytes, int]]:
    """Return (data, length of its packets) of each burst that waits."""
    found: list[tuple[bytes, int]] = []
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(4))
        except BlockingIOError:
            return found
        sizes = [int.from_bytes(value[:4], "little") for _, kind, value in ancillary if kind == UDP_GRO]
        found.append((data, sizes[0] if sizes else len(data)))


@st.composite
def trains(draw: Any) -> Train:
    mtu, packets = draw(st.sampled_from([16, 84, 256, 1024, 4096])), draw(st.integers(2, 15))
    bursts = draw(st.integers(0, 4))
    # With a LAST, the last burst may be shorter, down to that packet alone; MIDDLEs that do not fill it may leave too.
    total = draw(st.integers((bursts - 1) * packets + 1, bursts * packets)) if bursts else 0
    head, tail = (draw(st.one_of(st.none(), st.binary(min_size=12, max_size=28))) for _ in range(2))
    if not bursts:
        head = draw(st.binary(min_size=12, max_size=28))
        tail = head[::-1]
    seeds = draw(st.lists(st.integers(0, 0xFFFFFFFF), min_size=packets, max_size=packets))
    ends = draw(st.booleans())
    psn = draw(st.one_of(st.integers(0, 0xFFFFFF), st.integers(0xFFFFF0, 0x1000010)))
    start = draw(st.integers(0, 63))
    data = memoryview(POOL * 2)[start : start + (total + (head is not None) + (tail is not None)) * mtu]
    asks, last_seed = draw(st.integers(0, (1 << bursts) - 1)), draw(st.integers(0, 0xFFFFFFFF))
    last, run = LAST_PREFIX if ends else None, (PREFIX, seeds, psn, data, mtu, packets, bursts)
    seeds_alone = [draw(st.integers(0, 0xFFFFFFFF)) for _ in range(2)]
    edges = (head, seeds_alone[0], tail, seeds_alone[1])
    return Train(*run, asks, last, last_seed, *edges, ("", 0), lambda _: None)


@given(train=trains())
@settings(max_examples=150)
def test_a_train_leaves_as_its_bursts_would(ends, lab, train):
    assert ends.leaf.send_runs(ends.sender.fileno(), ends.to, *train[:14]) == (train.sends, 0)
    expected = list(lab.bursts_of(train))
    came = arrived(ends.receiver)
    assert [data for data, _ in came] == [b"".join(burst.buffers) for burst in expected]
    assert [size for _, size in came] == [min(burst.segment_bytes, burst.length_bytes) for burst in expected]


def send(sock: socket.socket, data: bytes, segment_bytes: int, to: tuple[Any, ...]) -> None:
    ancillary = [(socket.SOL_UDP, UDP_SEGMENT, segment_bytes.to_bytes(2, "little"))]
    sock.sendmsg([data], ancillary if len(data) > segment_bytes else [], 0, to)


EVENTS = ("good", "good", "good", "flip", "shuffle", "other size", "stranger", "short", "runt", "marks", "last", "last")


@given(
    mtu=st.sampled_from([84, 256, 4096]),
    plan=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(1, 15), st.integers(0, 1 << 16)), max_size=6),
    psn=st.one_of(st.integers(0, 0xFFFFFF), st.integers(0xFFFFF0, 0x1000010)),
    checks=st.booleans(),
    known=st.integers(1, 15),
    most=st.integers(1, 80),
    most_bursts=st.integers(1, 8),
    may_end=st.booleans(),
    fits=st.booleans(),
)
@settings(max_examples=400)
def test_it_takes_what_the_plain_function_takes(ends, mtu, plan, psn, checks, known, most, most_bursts, may_end, fits):
    """In a stream with every kind of thing in it: the same packets, and exactly the first other one is left."""
    leaf, segment = ends.leaf, mtu + OVERHEAD
    seeds = [(place * 2654435761) & 0xFFFFFFFF for place in range(16)]
    last_seeds = [~seed & 0xFFFFFFFF for seed in seeds]
    if fits and any(event == "last" for event, _, _ in plan):
        # The message ends where the plan has a LAST.
        before = plan[: [event for event, _, _ in plan].index("last") + 1]
        most = sum(count for _, count, _ in before) - 1
    sent, at = [], psn
    for event, count, chance in plan:
        data = memoryview(POOL)[chance % 4096 : chance % 4096 + count * mtu]
        wire = bytearray(b"".join(build_run(PREFIX, seeds, at, data, mtu, count, ack_last=bool(chance & 1))))
        size, sock = segment, ends.sender
        if event == "last":
            place, end = at + count - 1, data[(count - 1) * mtu :]
            made = build_run(LAST_PREFIX, last_seeds[count - 1 :], place, end, mtu, 1, ack_last=bool(chance & 2))
            wire[-segment:] = b"".join(made)
        elif event == "flip":
            wire[chance % len(wire)] ^= 1 << chance % 8
        elif event == "shuffle" and count > 1:
            wire[:segment], wire[segment : 2 * segment] = wire[segment : 2 * segment], wire[:segment]
        elif event == "other size":
            size = segment - 4
        elif event == "stranger":
            sock = ends.stranger
        elif event == "short":
            del wire[-(chance % segment) or None :]
        elif event == "runt":
            del wire[chance % 12 :]
        elif event == "marks":
            wire[4] ^= 0xC0
        at += count
        if wire:
            send(sock, bytes(wire), size, ends.receiver.getsockname())
            sent.append((bytes(wire), min(size, len(wire)), sock))
    # Whole lines are stored past the caches where each packet begins one.
    offset = 64 if checks else 8
    target = mmap.mmap(-1, (most + may_end) * mtu + offset)
    checked = seeds[:known] if checks else None
    last_checked = last_seeds[:known] if checks else None
    wanted_end, last = False, LAST_WORD if may_end else None
    buffer = bytearray(65536)
    packets, bursts, asked, ended, error, rest = leaf.receive_runs(
        *(ends.receiver.fileno(), buffer, ends.source, mtu, PREFIX_WORD, psn, checked, memoryview(target), offset),
        *(most, last, last_checked, None, None, 0, most_bursts),
    )
    # the same with the plain function, burst by burst
    wanted, wanted_target, wanted_asked, wanted_rest, seen = 0, bytearray(len(target)), False, None, 0
    for raw, size, sock in sent:
        if seen == most_bursts or (wanted == most and not may_end):
            break
        seen += 1
        done = 0
        if sock is ends.sender and size == segment:
            count = min(len(raw) // size, most + wanted_end - wanted, known if checks else 1 << 16)
            place = memoryview(wanted_target), offset + wanted * mtu
            done, asks = receive_run(memoryview(raw), 0, count, mtu, PREFIX_WORD, psn + wanted, checked, 0, *place)
            wanted, wanted_asked = wanted + done, wanted_asked or asks
            if may_end and not wanted_end and wanted == most and done < min(len(raw) // size, known if checks else 99):
                run = (
                    mtu,
                    LAST_WORD,
                    psn + wanted,
                    last_checked,
                    done,
                    memoryview(wanted_target),
                    offset + wanted * mtu,
                )
                taken, asks = receive_run(memoryview(raw), done * size, 1, *run)
                done, wanted, wanted_end = done + taken, wanted + taken, bool(taken)
                wanted_asked = wanted_asked or asks
        if done * size != len(raw):
            wanted_rest = raw, done * size, done, size, pack_address(sock.getsockname()[:2])
            break
    assert (packets, bursts, asked, ended) == (wanted, seen, wanted_asked, wanted_end)
    assert target[:] == wanted_target
    assert (rest is None) == (wanted_rest is None)
    if rest is not None and wanted_rest is not None:
        assert rest[1:] == wanted_rest[1:]
        assert bytes(buffer[: rest[0]]) == wanted_rest[0]
    is_empty = wanted_rest is None and seen < most_bursts and (wanted < most or may_end)
    assert error == (errno.EAGAIN if is_empty else 0)
    assert len(arrived(ends.receiver)) == len(sent) - seen


FIRST_PREFIX = bytes.fromhex("0640ffff00000011")
FIRST_WORD = int.from_bytes(FIRST_PREFIX, "big")
ALONE = ("good", "good", "good", "flip", "runt", "long", "stranger", "nak", "other psn", "none")


def alone(prefix: bytes, seed: int, psn: int, syndrome: int, data: memoryview) -> bytearray:
    head = (psn & 0xFFFFFF).to_bytes(4, "big") + bytes([syndrome, 0, 0, 7])
    body = head + bytes(data)
    return bytearray(prefix + body + zlib.crc32(body, seed).to_bytes(4, "little"))


@given(
    mtu=st.sampled_from([84, 256, 4096]),
    sizes=st.lists(st.integers(1, 9), max_size=4),
    edges=st.tuples(st.sampled_from(ALONE), st.sampled_from(ALONE)),
    chance=st.integers(0, 1 << 16),
    psn=st.one_of(st.integers(0, 0xFFFFFF), st.integers(0xFFFFF0, 0x1000010)),
    checks=st.booleans(),
    starts=st.booleans(),
    most_bursts=st.integers(1, 8),
)
@settings(max_examples=300)
def test_it_takes_first_and_last_that_come_alone(ends, mtu, sizes, edges, chance, psn, checks, starts, most_bursts):
    """All up to the first packet that is not as awaited; after the LAST nothing more is received."""
    leaf, middles = ends.leaf, sum(sizes)
    seeds, first_seed, last_seed = [(place * 2654435761) & 0xFFFFFFFF for place in range(16)], 77, 99
    data = memoryview(POOL)[chance % 4096 :]
    plan = [("middle", size) for size in sizes]
    plan = [*([("first", 1)] if starts else []), *plan, ("last", 1)]
    sent: list[tuple[str, int, bytes]] = []
    at = 0
    for kind, count in plan:
        payload, event = data[at * mtu : (at + count) * mtu], edges[kind == "last"] if kind != "middle" else "good"
        if kind == "middle":
            wire = bytearray(b"".join(build_run(PREFIX, seeds, psn + at, payload, mtu, count, ack_last=False)))
        else:
            prefix, seed = (FIRST_PREFIX, first_seed) if kind == "first" else (LAST_PREFIX, last_seed)
            wire = alone(prefix, seed, psn + at + (event == "other psn"), 0x60 if event == "nak" else 0x1F, payload)
            if event == "flip":
                wire[chance % len(wire)] ^= 1 << chance % 8
            elif event == "runt":
                del wire[-4:]
            elif event == "long":
                wire += bytes(4)
        at += count
        if event != "none":
            send(
                ends.stranger if event == "stranger" else ends.sender,
                bytes(wire),
                mtu + OVERHEAD + 4 * (kind != "middle"),
                ends.receiver.getsockname(),
            )
            sent.append((event, count, bytes(wire)))
        else:
            sent.append((event, count, b""))
    expected = taken = 0
    for event, count, _ in sent:
        if event != "good" or taken == most_bursts:
            break
        expected, taken = expected + count, taken + 1
    # As above; the packets after a FIRST that came alone begin lines, too.
    offset = 64 if checks else 8
    target, buffer = mmap.mmap(-1, (starts + middles + 1) * mtu + offset), bytearray(65536)
    run = (mtu, PREFIX_WORD, psn, seeds if checks else None, memoryview(target), offset, middles)
    last = (LAST_WORD, [last_seed] if checks else None)
    first = (FIRST_WORD, [first_seed] if checks else None) if starts else (None, None)
    packets, bursts, _, ended, error, rest = leaf.receive_runs(
        *(ends.receiver.fileno(), buffer, ends.source, *run, *last, *first, 4, most_bursts)
    )
    left = len(arrived(ends.receiver))
    if any(event == "flip" and (not checks or chance % len(wire) == 4) for event, _, wire in sent):
        # Nobody looks at byte 4, and without the ICRC not at the data: taken or not, as it may be.
        return
    assert packets == expected and ended == (expected == starts + middles + 1)
    assert target[offset : offset + packets * mtu] == data[: packets * mtu]
    assert target[offset + packets * mtu :] == bytes(len(target) - offset - packets * mtu)
    came = [wire for _, _, wire in sent if wire]
    assert bursts + left == len(came)
    if rest is not None:
        assert bytes(buffer[: rest[0]]) == came[bursts - 1] and rest[1] == 0
    assert error == (errno.EAGAIN if rest is None and not ended and bursts < most_bursts else 0)


GOOD_SEND = (3, b"x" * 16, PREFIX, [1, 2], 5, memoryview(bytes(1024)), 256, 2, 2, 0, None, 0, None, 0, None, 0)
NO_BURSTS = (*GOOD_SEND[:5], memoryview(bytes(512)), 256, 3, 0, 0, None, 0, bytes(28), 0, bytes(28), 0)
GOOD_TAKE = (
    3,
    bytearray(600),
    b"x" * 16,
    256,
    5,
    5,
    [1, 2],
    memoryview(bytearray(1024)),
    0,
    4,
    None,
    None,
    None,
    None,
    0,
    4,
)
BIG = (1 << 63) - 1


@pytest.mark.parametrize(
    ("function", "good", "place", "value", "error"),
    [
        *[("send_runs", GOOD_SEND, 1, value, error) for value, error in ((b"x" * 200, ValueError), ("x", TypeError))],
        *[("send_runs", GOOD_SEND, 2, value, ValueError) for value in (PREFIX[:7], b"")],
        *[("send_runs", GOOD_SEND, 3, value, error) for value, error in (([1], ValueError), ((1, 2), ValueError))],
        ("send_runs", GOOD_SEND, 3, [1, "2"], TypeError),
        *[("send_runs", GOOD_SEND, 5, memoryview(bytes(size)), ValueError) for size in (0, 256, 512, 1025, 1280)],
        *[("send_runs", GOOD_SEND, 6, value, ValueError) for value in (0, -1, BIG)],
        *[("send_runs", GOOD_SEND, 7, value, ValueError) for value in (0, 1, -1, 300, BIG)],
        *[("send_runs", GOOD_SEND, 8, value, ValueError) for value in (0, -1, 1, 3, 65, BIG)],
        ("send_runs", GOOD_SEND, 10, PREFIX[:7], ValueError),
        ("send_runs", GOOD_SEND, 10, "prefix", TypeError),
        # With a FIRST, the data is that of one packet more.
        *[("send_runs", GOOD_SEND, 12, bytes(size), ValueError) for size in (0, 11, 285, 1 << 16)],
        ("send_runs", GOOD_SEND, 12, "head", TypeError),
        *[("send_runs", GOOD_SEND, 14, bytes(size), ValueError) for size in (0, 11, 285, 1 << 16)],
        ("send_runs", GOOD_SEND, 14, "head", TypeError),
        # No data for those that go alone.
        *[("send_runs", NO_BURSTS, 5, memoryview(bytes(size)), ValueError) for size in (0, 256, 768)],
        *[("receive_runs", GOOD_TAKE, 1, value, error) for value, error in ((b"fixed", BufferError), (5, TypeError))],
        *[("receive_runs", GOOD_TAKE, 3, value, ValueError) for value in (0, -1, BIG)],
        ("receive_runs", GOOD_TAKE, 6, [1, "2"], TypeError),
        ("receive_runs", GOOD_TAKE, 6, (1, 2), ValueError),
        ("receive_runs", GOOD_TAKE, 7, memoryview(bytes(1024)), BufferError),
        *[("receive_runs", GOOD_TAKE, 8, value, ValueError) for value in (-1, 1, 1025, BIG)],
        *[("receive_runs", GOOD_TAKE, 9, value, ValueError) for value in (5, -1, BIG)],
        # A LAST needs room for one more.
        ("receive_runs", GOOD_TAKE, 10, 5, ValueError),
        ("receive_runs", GOOD_TAKE, 10, "prefix", TypeError),
        ("receive_runs", GOOD_TAKE, 11, (1, 2), ValueError),
        ("receive_runs", GOOD_TAKE, 11, [1, "2"], TypeError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(compiled_leaf, function, good, place, value, error):
    with pytest.raises(error):
        getattr(compiled_leaf, function)(*good[:place], value, *good[place + 1 :])
    with pytest.raises(TypeError):
        getattr(compiled_leaf, function)(*good[:-1])


def test_two_datagrams_are_never_taken_as_one(ends):
    """A burst that is as long as a FIRST together."""
    data = memoryview(POOL)[:256]
    wire = bytes(alone(FIRST_PREFIX, 77, 5, 0x1F, data))
    send(ends.sender, wire, len(wire) // 2, ends.receiver.getsockname())
    run = (256, PREFIX_WORD, 5, [1, 2], memoryview(bytearray(1024)), 0, 2)
    packets, _, _, _, _, rest = ends.leaf.receive_runs(
        *(ends.receiver.fileno(), bytearray(65536), ends.source, *run, None, None, FIRST_WORD, [77], 4, 4)
    )
    assert packets == 0 and rest[:4] == (len(wire), 0, 0, len(wire) // 2)


def test_what_the_kernel_says_comes_back(ends):
    leaf = ends.leaf
    assert leaf.send_runs(-1, ends.to, *GOOD_SEND[2:]) == (0, errno.EBADF)
    assert leaf.send_runs(1 << 40, ends.to, *GOOD_SEND[2:]) == (0, errno.EBADF)
    assert leaf.receive_runs(-1, *GOOD_TAKE[1:]) == (0, 0, False, False, errno.EBADF, None)
    assert leaf.receive_runs(ends.receiver.fileno(), *GOOD_TAKE[1:]) == (0, 0, False, False, errno.EAGAIN, None)
