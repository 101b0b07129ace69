"""Messages round trip; whatever else arrives is decoded or a RemoteProtocolError, never another exception.

Broken bytes by the ten thousand are in tests/fuzz.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2prw.engine.control import checks, records
from p2prw.engine.control import messages as m
from p2prw.errors import HostError, LocalProtocolError, PeerRefusedError, RemoteProtocolError

U24, U32, U63, U64 = (1 << 24) - 1, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1


def hex_digits(count: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=count // 2, max_size=count // 2).map(bytes.hex)


def shown(max_chars: int) -> st.SearchStrategy[str]:
    """Text as it is after decoding: nothing a terminal would act on."""
    return st.text(max_size=min(max_chars, 60)).map(checks.printable)


lengths = st.integers(0, U63)
lease, region = hex_digits(16), st.from_regex(r"\A[A-Za-z0-9_.-]{1,64}\Z")
gid = st.builds(
    m.Gid,
    st.integers(0, 65535),
    hex_digits(32),
    st.sampled_from(["rocev2", "rocev1", "ib"]),
    st.none() | shown(64),
    st.booleans(),
)
queue_pair = st.builds(
    m.QueuePairInfo,
    qpn=st.integers(1, U24),
    psn=st.integers(0, U24),
    gid=hex_digits(32).map(lambda digits: "20" + digits[2:]),
    mtu_bytes=st.sampled_from([256, 512, 1024, 2048, 4096]),
    max_rd_atomic=st.integers(0, 255),
    max_dest_rd_atomic=st.integers(0, 255),
    udp_port=st.integers(1, 65535),
    lid=st.integers(0, 65535),
)
segments = st.lists(st.builds(m.Segment, st.integers(0, U64), lengths, st.integers(0, U32)), max_size=6).map(tuple)
attempt = st.builds(
    m.Attempt,
    shown(16).filter(lambda t: len(t) <= 16),
    st.booleans(),
    st.none() | shown(64),
    st.none(),
    st.none() | shown(99),
)
route = st.builds(
    m.RouteInfo,
    chosen=st.sampled_from(["cpu", "dmabuf"]),
    mover=st.sampled_from(["nic", "cpu"]),
    peer_to_peer=st.booleans(),
    memory=st.just("host"),
    device=shown(60),
    driver=shown(60),
    staged=st.booleans(),
    attempts=st.lists(attempt, max_size=4).map(tuple),
)
region_info = st.builds(
    m.RegionInfo,
    region,
    st.just("file"),
    st.none() | lengths,
    st.sampled_from(["r", "w", "rw"]),
    st.booleans(),
    st.booleans(),
)
source = st.builds(m.Source, shown(60), lengths, lengths, st.none() | st.integers(-U63, U63))
held = st.builds(m.Held, st.booleans(), st.booleans(), st.none() | shown(99))
slot = st.integers(0, 255)
MESSAGES: dict[type[Any], st.SearchStrategy[Any]] = {
    m.Hello: st.builds(
        m.Hello,
        version=st.just(m.PROTOCOL_VERSION),
        nonce=hex_digits(64),
        auth=st.sampled_from(["none", "token"]),
        capabilities=st.lists(st.just("shared") | shown(20), max_size=4).map(
            lambda items: tuple(item[:32] for item in items)
        ),
        gid_table=st.lists(gid, max_size=5).map(tuple),
        udp_port=st.none() | st.integers(1, 65535),
        agent=shown(100),
    ),
    m.Auth: st.builds(m.Auth, hex_digits(64)),
    m.ListRegions: st.builds(m.ListRegions, st.integers(0, 65535)),
    m.Regions: st.builds(m.Regions, st.lists(region_info, max_size=6).map(tuple), st.booleans()),
    m.Open: st.builds(
        m.Open,
        region=region,
        offset=lengths,
        length=st.none() | lengths,
        op=st.sampled_from(["write", "read"]),
        queue_pair=queue_pair,
        limit=st.none() | lengths,
        shared=st.booleans(),
        window_bytes=st.none() | st.integers(1, U63),
        source=st.none() | source,
    ),
    m.Grant: st.builds(
        m.Grant,
        lease=lease,
        length=lengths,
        segments=segments,
        window_bytes=st.integers(1, U63),
        route=route,
        queue_pair=queue_pair,
        staging=st.none() | st.builds(m.Staging, st.integers(1, 1 << 30), segments),
        region_length=st.none() | lengths,
        source=st.none() | source,
        held=st.none() | held,
        notes=st.lists(shown(99), max_size=8).map(tuple),
        rate_limit_bytes_per_s=st.none() | st.integers(1, U63),
    ),
    m.Refuse: st.builds(
        m.Refuse, st.from_regex(r"\A[a-z0-9_]{1,64}\Z"), shown(99), st.none() | shown(99), st.none() | shown(99)
    ),
    m.Fill: st.builds(m.Fill, lease, slot, lengths, lengths),
    m.Filled: st.builds(m.Filled, lease, slot, lengths),
    m.Commit: st.builds(m.Commit, lease, slot, lengths, lengths),
    m.Committed: st.builds(m.Committed, lease, slot, lengths),
    m.Window: st.builds(m.Window, st.integers(1, U63)),
    m.Digest: st.builds(m.Digest, lease, lengths, lengths, st.integers(4096, 1 << 30), st.booleans(), st.booleans()),
    m.Digests: st.builds(
        m.Digests,
        lease,
        lengths,
        st.lists(hex_digits(32) | st.just(""), max_size=6).map(tuple),
        st.booleans(),
        st.just("owner-cpu"),
    ),
    m.Restart: st.builds(m.Restart, lease),
    m.Pingpong: st.builds(
        m.Pingpong, lease, st.integers(1, U63), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1)
    ),
    m.Ponging: st.builds(m.Ponging, lease),
    m.Reverse: st.builds(
        m.Reverse,
        lease,
        st.integers(1, U63),
        segments,
        st.integers(1, 32768),
        st.none() | st.integers(1, 32768),
        st.none() | st.integers(1, 32768),
        st.none() | st.integers(1, U63),
    ),
    m.Reversing: st.builds(m.Reversing, lease),
    m.GoOn: st.builds(m.GoOn, lease),
    m.Halt: st.builds(m.Halt, lease),
    m.Reversed: st.builds(m.Reversed, lease, st.integers(0, U63), st.integers(0, U63), st.integers(0, U63)),
    m.Release: st.builds(m.Release, lease, st.booleans()),
    m.Released: st.builds(m.Released, lease),
}
any_message = st.sampled_from(list(MESSAGES)).flatmap(lambda kind: MESSAGES[kind])


def test_every_message_has_a_strategy() -> None:
    assert set(MESSAGES) == set(m.MESSAGE_TYPES.values())


@settings(max_examples=100)
@given(any_message)
def test_round_trip(message: m.Message) -> None:
    body = m.encode(message)
    assert m.decode(body) == message
    assert m.decode(memoryview(bytearray(body))) == message


def decoded_or_refused(body: bytes) -> m.Message | None:
    """The invariant: a message, or RemoteProtocolError; any other exception fails the test."""
    try:
        return m.decode(body)
    except RemoteProtocolError as error:
        assert error.code in ("bad_message", "unknown_message", "frame_too_long")
        assert error.side == "remote"
        str(error).encode()  # what is shown can be printed
        return None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100)
@given(json_values)
def test_any_json_is_no_message_or_a_checked_one(value: Any) -> None:
    decoded_or_refused(json.dumps(value).encode())


@settings(max_examples=100)
@given(kind=st.sampled_from(sorted(m.MESSAGE_TYPES)), data=st.data())
def test_right_names_with_any_values(kind: str, data: st.DataObject) -> None:
    names = [item.name for item in fields(m.MESSAGE_TYPES[kind])]
    document = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(names, json_values)))
    decoded_or_refused(json.dumps({**document, "type": kind}).encode())


@pytest.mark.parametrize("depth", [10, 500, 900, 985, 995, 1500, 16_000])
@pytest.mark.parametrize(
    "shape", ["{}", '{{"type":"fill","lease":{}}}', '{{"type":"hello","gid_table":{}}}', '{{"type":"x","a":{}}}']
)
def test_deep_nesting(depth: int, shape: str) -> None:
    """Deeper than the interpreter's recursion limit, and just below it, where showing the value would overflow."""
    for left, right in (("[", "]"), ('{"a":', "}")):
        body = shape.replace("{{", "{").replace("}}", "}").replace("{}", left * depth + (right * depth)).encode()
        if len(body) <= m.MAX_FRAME_BYTES:
            assert decoded_or_refused(body) is None


@pytest.mark.parametrize("digits", [20, 4000, 5000, 60_000])
def test_numbers_of_many_digits(digits: int) -> None:
    assert decoded_or_refused(b'{"type":"window","window_bytes":' + b"9" * digits + b"}") is None


@pytest.mark.parametrize("number", [b"1e2", b"1.0", b"NaN", b"-Infinity", b"1E400", b"-0", b"true", b'"1"'])
def test_only_integers_are_integers(number: bytes) -> None:
    assert decoded_or_refused(b'{"type":"window","window_bytes":' + number + b"}") is None


def test_a_body_longer_than_a_frame_is_not_parsed() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        m.decode(b" " * (m.MAX_FRAME_BYTES + 1))
    assert caught.value.code == "frame_too_long"


def test_a_message_longer_than_a_frame_is_our_own_mistake() -> None:
    long_names = tuple(m.Gid(0, "0" * 32, "rocev2", "\U0001f40d" * 64) for _ in range(256))
    with pytest.raises(LocalProtocolError):
        m.encode(m.Hello(1, "0" * 64, "none", gid_table=long_names))


def test_the_longest_pages_fit_a_frame() -> None:
    digests = m.Digests("0" * 16, U63, ("f" * 32,) * m.DIGESTS_PER_PAGE, True, "owner-loopback-read")
    info = m.RegionInfo("x" * 64, "k" * 32, U63, "rw", True, True)
    regions = m.Regions((info,) * m.REGIONS_PER_PAGE, True)
    segments = (m.Segment(U64, U63, U32),) * 256
    grant = m.Grant(
        "0" * 16,
        U63,
        segments,
        U63,
        m.RouteInfo("cpu", "cpu", False, "host", "d" * 64, "e" * 64),
        m.QueuePairInfo(U24, U24, "e" * 32, 4096, 255, 255),
        m.Staging(1 << 30, segments),
        U63,
    )
    for page in (digests, regions, grant):
        assert m.decode(m.encode(page)) == page


@pytest.mark.parametrize("version", [0, 1, 3, 65535])
def test_a_hello_of_another_version_tells_at_least_its_version(version: int) -> None:
    """Its other fields may look different in that version; they are not read."""
    message = m.decode(json.dumps({"type": "hello", "version": version, "auth": {"scheme": "x"}}).encode())
    assert isinstance(message, m.Hello)
    assert message.version == version


@pytest.mark.parametrize("version", [-1, 65536, True, "1", None])
def test_a_hello_of_no_version_is_refused(version: Any) -> None:
    body = json.dumps({"type": "hello", "version": version, "nonce": "0" * 64, "auth": "none"}).encode()
    assert decoded_or_refused(body) is None


def test_unknown_fields_are_ignored() -> None:
    assert m.decode(b'{"type":"window","window_bytes":1,"since_version_9":true}') == m.Window(1)


def test_what_a_terminal_would_act_on_is_replaced() -> None:
    body = b'{"type":"refuse","code":"x","what":"a\\u001b[31mb\\nc\\ud800\\u009b"}'
    message = m.decode(body)
    assert isinstance(message, m.Refuse)
    assert message.what == "a\ufffd[31mb\nc\ufffd\ufffd"


def test_an_error_travels_as_a_refusal() -> None:
    error = HostError("w" * 5000, why="because", fix="try", code="no_space")
    refusal = m.refuse_from(error)
    shown_error = m.error_from(m.decode(m.encode(refusal)))  # type: ignore[arg-type]
    assert isinstance(shown_error, PeerRefusedError)
    assert shown_error.what == "w" * records.MAX_PROSE_CHARS
    assert (shown_error.why, shown_error.fix, shown_error.code, shown_error.side) == (
        "because",
        "try",
        "no_space",
        "remote",
    )
    assert shown_error.exit_code == 7


def test_every_field_of_every_message_is_checked() -> None:
    """A field without a check would let a stranger's value in as it is."""
    for cls in m.MESSAGE_TYPES.values():
        assert "TYPE" in get_type_hints(cls, include_extras=True)
        for item in fields(cls):
            assert callable(item.metadata["check"]), f"{cls.__name__}.{item.name}"
            assert ("required" in item.metadata) == (item.default is MISSING)


def test_a_refusal_without_words_still_says_something() -> None:
    error = m.error_from(m.Refuse("busy", ""))
    assert error.what == "the peer refused" and error.why == "it gave no reason"


PAIR = {"qpn": 5, "psn": 0, "gid": "0" * 31 + "1", "mtu_bytes": 1024, "max_rd_atomic": 1, "max_dest_rd_atomic": 1}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("mtu_bytes", size) for size in (0, 257, 1500, 4095, 8192)),
        *(("qpn", 0), ("qpn", 1 << 24), ("psn", 1 << 24), ("psn", -1)),
        *(("gid", gid) for gid in ("0" * 32, "ff02" + "0" * 27 + "1", "f" * 32)),
        *(("gid", "0" * 20 + "ffff" + address) for address in ("00000000", "e0000001", "ffffffff")),
    ],
)
def test_a_queue_pair_that_cannot_be_is_no_queue_pair(field: str, value: Any) -> None:
    check = checks.record(records.QueuePairInfo)
    assert check(PAIR, "pair").qpn == 5
    with pytest.raises(RemoteProtocolError, match=f"pair.{field}"):
        check({**PAIR, field: value}, "pair")


@pytest.mark.parametrize("gid", ["0" * 31 + "1", "fe80" + "0" * 27 + "1", "0" * 20 + "ffff7f000001", "20" + "0" * 30])
def test_a_gid_of_one_host_is_taken(gid: str) -> None:
    assert checks.record(records.QueuePairInfo)({**PAIR, "gid": gid}, "pair").gid == gid


def test_words_of_a_result_are_those_of_its_schema() -> None:
    """What a peer says goes into our document: a word that the schema does not know would break it."""
    digests = {"type": "digests", "lease": "0" * 16, "offset": 0, "digests": [], "more": False, "method": "an-oracle"}
    with pytest.raises(RemoteProtocolError, match="method"):
        m.decode(json.dumps(digests).encode())
    route = {"mover": "nic", "peer_to_peer": True, "memory": "x", "device": "y", "driver": "z"}
    assert checks.record(records.RouteInfo)({**route, "chosen": "dmabuf"}, "route").chosen == "dmabuf"
    with pytest.raises(RemoteProtocolError, match="chosen"):
        checks.record(records.RouteInfo)({**route, "chosen": "teleport"}, "route")
