"""Every state x every message gives a legal state or a ProtocolError, and both tables agree with each other."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from p2prw.engine.control.handshake import ClientHandshake, Handshake, ServerHandshake, State
from p2prw.engine.control.messages import (
    MESSAGE_TYPES,
    PROTOCOL_VERSION,
    Auth,
    Gid,
    Hello,
    Message,
    Refuse,
    decode,
    encode,
)
from p2prw.errors import LocalProtocolError, P2prwError, PeerRefusedError, ProtocolError, RemoteProtocolError

CLIENT_NONCE, SERVER_NONCE = "c1" * 32, "5e" * 32
LEASE = "0123456789abcdef"
QUEUE_PAIR = {
    "qpn": 17,
    "psn": 5,
    "gid": "0" * 20 + "ffff7f000001",
    "mtu_bytes": 4096,
    "max_rd_atomic": 16,
    "max_dest_rd_atomic": 16,
}
ROUTE = {"chosen": "cpu", "mover": "cpu", "peer_to_peer": False, "memory": "host", "device": "soft0", "driver": "soft"}
# One valid document for each message type, so that a new type cannot be forgotten here.
EXAMPLES: dict[str, dict[str, Any]] = {
    "hello": {"version": PROTOCOL_VERSION, "nonce": "ab" * 32, "auth": "none"},
    "auth": {"mac": "00" * 32},
    "list": {},
    "regions": {"regions": [], "more": False},
    "open": {"region": "a", "offset": 0, "length": None, "op": "write", "queue_pair": QUEUE_PAIR},
    "grant": {
        "lease": LEASE,
        "length": 1,
        "segments": [],
        "window_bytes": 1,
        "route": ROUTE,
        "queue_pair": QUEUE_PAIR,
    },
    "refuse": {"code": "busy", "what": "busy"},
    "fill": {"lease": LEASE, "slot": 0, "offset": 0, "length": 1},
    "filled": {"lease": LEASE, "slot": 0, "offset": 0},
    "commit": {"lease": LEASE, "slot": 0, "offset": 0, "length": 1},
    "committed": {"lease": LEASE, "slot": 0, "offset": 0},
    "window": {"window_bytes": 1},
    "digest": {"lease": LEASE, "offset": 0, "length": 1, "block_bytes": 1 << 20},
    "digests": {"lease": LEASE, "offset": 0, "digests": [], "more": False},
    "release": {"lease": LEASE, "keep": True},
    "restart": {"lease": LEASE},
    "pingpong": {"lease": LEASE, "length": 1, "address": 0, "rkey": 0},
    "ponging": {"lease": LEASE},
    "reverse": {"lease": LEASE, "length": 1, "segments": [{"address": 0, "length": 1, "rkey": 0}], "depth": 1},
    "reversing": {"lease": LEASE},
    "go_on": {"lease": LEASE},
    "halt": {"lease": LEASE},
    "reversed": {"lease": LEASE, "messages": 1, "elapsed_ns": 1, "retransmitted_packets": 0},
    "released": {"lease": LEASE},
}


def example(kind: str) -> Message:
    return decode(json.dumps({"type": kind, **EXAMPLES[kind]}).encode())


def client(token: bytes | None = None, **options: Any) -> ClientHandshake:
    return ClientHandshake(nonce=CLIENT_NONCE, token=token, **options)


def server(token: bytes | None = None, **options: Any) -> ServerHandshake:
    return ServerHandshake(nonce=SERVER_NONCE, token=token, **options)


def settle(one: Handshake, two: Handshake, rounds: int = 10) -> list[str]:
    """Carry messages, encoded and decoded, until nobody speaks; return who said what."""
    said: list[str] = []
    queues = {"client": one.start(), "server": two.start()}
    for _ in range(rounds):
        if not any(queues.values()):
            return said
        for name, receiver, back in (("client", two, "server"), ("server", one, "client")):
            messages, queues[name] = queues[name], []
            for message in messages:
                said.append(f"{name}:{message.TYPE}")
                if receiver.failed or receiver.done:
                    continue
                body = encode(message)
                queues[back] += receiver.receive(decode(body), body)
    raise AssertionError(f"the handshake does not settle: {said}")


def test_there_is_an_example_of_every_message() -> None:
    assert set(EXAMPLES) == set(MESSAGE_TYPES)


def test_without_a_token() -> None:
    gids = (Gid(0, "0" * 20 + "ffff7f000001", "rocev2", "lo"),)
    one, two = client(gid_table=gids, udp_port=4791, agent="p2prw 0.1.0"), server(capabilities=("shared",))
    assert settle(one, two) == ["client:hello", "server:hello"]
    assert one.done and two.done
    assert two.peer is not None and two.peer.gid_table == gids and two.peer.udp_port == 4791
    assert one.peer is not None and one.peer.capabilities == ("shared",)
    assert one.error is None and two.error is None


def test_with_the_same_token() -> None:
    one, two = client(b"secret"), server(b"secret")
    assert settle(one, two) == ["client:hello", "server:hello", "client:auth", "server:auth"]
    assert one.done and two.done


def failed(machine: Handshake) -> P2prwError:
    assert machine.failed and not machine.done
    assert machine.error is not None
    return machine.error


@pytest.mark.parametrize(
    ("client_token", "server_token", "code", "said"),
    [
        (None, b"secret", "auth_required", ["client:hello", "server:refuse"]),
        (b"secret", None, "auth_not_used", ["client:hello", "server:refuse"]),
        (b"secret", b"other", "auth_failed", ["client:hello", "server:hello", "client:auth", "server:refuse"]),
    ],
)
def test_tokens_that_do_not_fit(
    client_token: bytes | None, server_token: bytes | None, code: str, said: list[str]
) -> None:
    one, two = client(client_token), server(server_token)
    assert settle(one, two) == said
    for machine, side in ((one, "remote"), (two, "local")):
        error = failed(machine)
        assert (error.code, error.exit_code, error.side) == (code, 7, side)
        assert error.fix


def test_a_client_with_a_token_insists_on_it() -> None:
    """Somebody in between answers `none`, so that no proof would be asked for."""
    one = client(b"secret")
    one.start()
    answer = one.receive(Hello(version=PROTOCOL_VERSION, nonce=SERVER_NONCE, auth="none"))
    assert failed(one).code == "auth_not_used"
    assert [message.TYPE for message in answer] == ["refuse"]


def test_a_client_without_a_token_names_what_is_missing() -> None:
    """A server that does not refuse by itself but asks for the proof."""
    one = client()
    one.start()
    one.receive(Hello(version=PROTOCOL_VERSION, nonce=SERVER_NONCE, auth="token"))
    assert failed(one).code == "auth_required"
    assert "--token-file" in (failed(one).fix or "")


def test_a_server_that_does_not_know_the_token_is_found_out() -> None:
    """It takes any proof and answers with one of its own making, or with the client's, sent back."""
    for mac in (None, "00" * 32):
        one = client(b"secret")
        one.start()
        (proof,) = one.receive(Hello(version=PROTOCOL_VERSION, nonce=SERVER_NONCE, auth="token"))
        assert isinstance(proof, Auth)
        answer = one.receive(Auth(mac=mac or proof.mac))
        assert failed(one).code == "auth_failed"
        assert [message.TYPE for message in answer] == ["refuse"]


def test_a_hello_changed_on_the_way_breaks_the_proof() -> None:
    one, two = client(b"secret", udp_port=4791), server(b"secret")
    (hello,) = one.start()
    assert isinstance(hello, Hello)
    (reply,) = two.receive(replace(hello, udp_port=6666))
    (proof,) = one.receive(reply)
    two.receive(proof)
    assert failed(two).code == "auth_failed"


def test_both_sides_make_the_same_seal_and_only_with_a_token() -> None:
    one, two = client(b"secret"), server(b"secret")
    settle(one, two)
    ours, theirs = one.make_seal(), two.make_seal()
    assert ours is not None and theirs is not None
    assert theirs.open(ours.close(b"open")) == b"open"
    assert ours.open(theirs.close(b"grant")) == b"grant"
    other, again = ClientHandshake(nonce="c2" * 32, token=b"secret"), server(b"secret")
    settle(other, again)
    key_of_another_session = again.make_seal()
    assert key_of_another_session is not None
    with pytest.raises(RemoteProtocolError):
        key_of_another_session.open(ours.close(b"open"))
    settle(one := client(), two := server())
    assert one.make_seal() is None and two.make_seal() is None


def test_a_proof_relayed_over_another_tls_connection_is_none() -> None:
    """The man in the middle has a certificate of his own: each end hashes the one that it sees."""
    one, two = client(b"secret"), server(b"secret")
    (hello,) = one.start()
    (reply,) = two.receive(hello, binding=b"b" * 32)
    (proof,) = one.receive(reply, binding=b"a" * 32)
    two.receive(proof, binding=b"b" * 32)
    assert failed(two).code == "auth_failed"


def test_fields_that_only_a_newer_peer_knows_are_covered_too() -> None:
    one, two = client(b"secret"), server(b"secret")
    one.start()
    body = encode(one.hello)[:-1] + b',"newer":[1,2]}'
    one._own_body = body  # as a newer client would have sent it
    (reply,) = two.receive(decode(body), body)
    (proof,) = one.receive(reply, encode(reply))
    (answer,) = two.receive(proof)
    one.receive(answer)
    assert one.done and two.done


@pytest.mark.parametrize("theirs", [0, 1, 3, 65535])
def test_versions_that_differ_are_named_on_both_sides(theirs: int) -> None:
    # The client is the other version.
    two = server()
    (refusal,) = two.receive(Hello(version=theirs, nonce=CLIENT_NONCE, auth="none"))
    assert isinstance(refusal, Refuse)
    assert refusal.code == failed(two).code == "version_mismatch"
    assert f"client speaks control protocol version {theirs}, the server version {PROTOCOL_VERSION}" in refusal.what
    # The server is the other version, and does not refuse by itself.
    one = client()
    one.start()
    (refusal,) = one.receive(Hello(version=theirs, nonce=SERVER_NONCE, auth="none"))
    assert isinstance(refusal, Refuse)
    assert f"client speaks control protocol version {PROTOCOL_VERSION}, the server version {theirs}" in refusal.what
    older = "client" if theirs > PROTOCOL_VERSION else "server"
    assert f"the {older} is the older" in (refusal.fix or "")


def test_a_refusal_is_shown_as_it_was_said() -> None:
    one = client()
    one.start()
    assert one.receive(Refuse(code="too_many_clients", what="64 clients are connected", fix="wait")) == []
    error = failed(one)
    assert isinstance(error, PeerRefusedError)
    assert (error.code, error.what, error.fix, error.side) == (
        "too_many_clients",
        "64 clients are connected",
        "wait",
        "remote",
    )


def machines(state: State) -> list[Handshake]:
    """One of each role in `state`, reached by its own messages."""
    found: list[Handshake] = []
    if state is State.START:
        found.append(client())
    elif state is State.WAIT_HELLO:
        waiting = client()
        waiting.start()
        found += [waiting, server()]
    elif state is State.WAIT_AUTH:
        one, two = client(b"t"), server(b"t")
        (hello,) = one.start()
        (reply,) = two.receive(hello)
        one.receive(reply)
        found += [one, two]
    elif state is State.DONE:
        one, two = client(), server()
        settle(one, two)
        found += [one, two]
    else:
        one, two = client(), server(b"t")
        settle(one, two)
        found += [one, two]
    assert all(machine.state is state for machine in found)
    return found


@pytest.mark.parametrize("kind", sorted(MESSAGE_TYPES))
@pytest.mark.parametrize("state", list(State))
def test_every_state_takes_every_message_or_fails(state: State, kind: str) -> None:
    for machine in machines(state):
        message = example(kind)
        legal = (state, type(message)) in machine.table
        if legal:
            answers = machine.receive(message)
            assert machine.state in (State.WAIT_AUTH, State.DONE, State.FAILED)
            assert (machine.error is not None) == machine.failed
            for answer in answers:
                assert decode(encode(answer)) == answer
        else:
            with pytest.raises(ProtocolError) as caught:
                machine.receive(message)
            assert isinstance(caught.value, RemoteProtocolError)
            assert caught.value.code == "unexpected_message"
            assert kind in caught.value.what
            assert machine.failed and machine.error is caught.value


def test_the_tables_name_methods_that_exist_and_no_end_state() -> None:
    for cls in (ClientHandshake, ServerHandshake):
        for (state, _), handler in cls.table.items():
            assert callable(getattr(cls, handler))
            assert state in (State.WAIT_HELLO, State.WAIT_AUTH)


def test_a_client_starts_once() -> None:
    one = client()
    one.start()
    with pytest.raises(LocalProtocolError):
        one.start()


def test_repr_does_not_show_the_token() -> None:
    assert repr(client(b"secret")) == "<ClientHandshake start with token>"
    assert repr(server()) == "<ServerHandshake wait_hello>"
