"""Who says what when a control channel opens: one table for each side. Pure: no I/O, no clock; nonces come in.

    client                       server
    hello ------------------------>            version, nonce, whether it has a token, GIDs
          <------------------------ hello      or refuse: version_mismatch, auth_required, auth_not_used
    auth  ------------------------>            only with a token
          <------------------------ auth       or refuse: auth_failed

The client proves first, so a server gives nothing to guess at to whoever connects. A client that has a token insists on
it: were "none" taken from a server, whoever sits in between could strip the proof away.

With a token, every frame after the last `auth` is sealed in both directions (`Handshake.make_seal`): the parameters of
the transfer are bound into the proof as they are said.

Laws: a machine starts in START (client) or WAIT_HELLO (server) and ends in DONE or FAILED; a pair (state, message type)
that is not in the table is a protocol error and ends in FAILED; in DONE and FAILED nothing more is taken.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

from p2prw.engine.control import auth
from p2prw.engine.control.messages import (
    PROTOCOL_VERSION,
    Auth,
    Gid,
    Hello,
    Message,
    Refuse,
    encode,
    error_from,
    refuse_from,
)
from p2prw.engine.control.seal import Seal
from p2prw.errors import LocalProtocolError, P2prwError, PeerRefusedError, RemoteProtocolError


class State(StrEnum):
    """Where a handshake stands."""

    START = "start"
    WAIT_HELLO = "wait_hello"
    WAIT_AUTH = "wait_auth"
    DONE = "done"
    FAILED = "failed"


class Handshake:
    """What both sides share. Driven by `start` once and `receive` for each message; both return what to send.

    When `failed` is set, what was returned is sent first (a refusal), then the channel is closed; `error` says why.
    """

    role: ClassVar[auth.Role]
    first_state: ClassVar[State] = State.START
    table: ClassVar[dict[tuple[State, type[Any]], str]]
    """(state, message type) -> name of the method that takes it. A missing key is a protocol error."""

    def __init__(
        self,
        *,
        nonce: str,
        token: bytes | None = None,
        gid_table: tuple[Gid, ...] = (),
        udp_port: int | None = None,
        capabilities: tuple[str, ...] = (),
        agent: str = "",
    ) -> None:
        self.state = self.first_state
        self.error: P2prwError | None = None
        self.peer: Hello | None = None
        """The other side's hello, once it was accepted or refused."""
        self._token = token
        self.hello = Hello(
            version=PROTOCOL_VERSION,
            nonce=nonce,
            auth="token" if token else "none",
            capabilities=capabilities,
            gid_table=gid_table,
            udp_port=udp_port,
            agent=agent,
        )
        self._own_body = encode(self.hello)
        self._peer_body = b""
        self._binding = b""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.state}{' with token' if self._token else ''}>"

    @property
    def done(self) -> bool:
        """Both sides agree; `peer` holds what the other one said."""
        return self.state is State.DONE

    @property
    def failed(self) -> bool:
        """Nothing more will come of it; `error` says why."""
        return self.state is State.FAILED

    def expected_types(self) -> tuple[type[Any], ...]:
        """Return the message types that have a place in the present state."""
        return tuple(kind for state, kind in self.table if state is self.state)

    def start(self) -> list[Message]:
        """Return what to send before anything was received."""
        raise NotImplementedError

    def receive(self, message: Message, body: bytes | None = None, binding: bytes = b"") -> list[Message]:
        """Take one message and return what to send. RemoteProtocolError when it has no place here.

        `body` is the frame as it was on the wire (`Channel.received_body`): the proof covers every byte of a hello,
        fields that only a newer peer knows included. Without it the message is encoded again. `binding` is the
        channel's (`Channel.binding`); it stays the same.
        """
        self._binding = binding
        handler = self.table.get((self.state, type(message)))
        if handler is None:
            error = RemoteProtocolError(
                f"the peer sent {message.TYPE!r} where the handshake ({self.state}) has no place for it",
                code="unexpected_message",
            )
            self._fail(error)
            raise error
        if isinstance(message, Hello):
            self.peer = message
            self._peer_body = encode(message) if body is None else bytes(body)
        answer: list[Message] = getattr(self, handler)(message)
        return answer

    def _fail(self, error: P2prwError) -> list[Message]:
        self.state, self.error = State.FAILED, error
        return [refuse_from(error)]

    def _take_refusal(self, message: Refuse) -> list[Message]:
        self._fail(error_from(message))
        return []

    def make_seal(self) -> Seal | None:
        """Return what seals the frames after this handshake; None where no token is used. Call once, when `done`."""
        if not self._token:
            return None
        ours, theirs = (auth.session_key(*self._secrets(role)) for role in self._roles())
        return Seal(ours, theirs)

    def _roles(self) -> tuple[auth.Role, auth.Role]:
        return ("client", "server") if self.role == "client" else ("server", "client")

    def _mac(self, role: auth.Role) -> str:
        return auth.compute_mac(*self._secrets(role))

    def _secrets(self, role: auth.Role) -> tuple[bytes, auth.Role, str, str, bytes]:
        assert self._token is not None and self.peer is not None
        ours, theirs = (self.hello.nonce, self._own_body), (self.peer.nonce, self._peer_body)
        client, server = (ours, theirs) if self.role == "client" else (theirs, ours)
        transcript = auth.transcript_hash(client[1], server[1], self._binding)
        return self._token, role, client[0], server[0], transcript

    def _version_mismatch(self, peer: Hello) -> P2prwError | None:
        if peer.version == PROTOCOL_VERSION:
            return None
        ours, theirs = PROTOCOL_VERSION, peer.version
        client, server = (ours, theirs) if self.role == "client" else (theirs, ours)
        return PeerRefusedError(
            f"the client speaks control protocol version {client}, the server version {server}",
            why="both must speak the same version",
            fix=f"install the same p2prw on both sides; the {'client' if client < server else 'server'} is the older",
            code="version_mismatch",
        )

    @staticmethod
    def _auth_required() -> P2prwError:
        return PeerRefusedError(
            "the server asks for a token, the client has none",
            why="it was started with --token-file: who reaches its port may not use its memory without",
            fix="--token-file FILE, with the server's token in FILE",
            code="auth_required",
        )

    @staticmethod
    def _auth_not_used() -> P2prwError:
        return PeerRefusedError(
            "the client has a token, the server uses none",
            why="a client with a token goes on only with a server that proves it knows the token too",
            fix="start the server with --token-file FILE, or leave --token-file out at the client",
            code="auth_not_used",
        )

    @staticmethod
    def _auth_failed() -> P2prwError:
        return PeerRefusedError(
            "the two tokens differ",
            why="the proof sent by the other side does not match",
            fix="copy the token file from the server again: sha256sum FILE must say the same on both sides",
            code="auth_failed",
        )


class ClientHandshake(Handshake):
    """The side that connected and speaks first."""

    role = "client"
    table: ClassVar[dict[tuple[State, type[Any]], str]] = {
        (State.WAIT_HELLO, Hello): "_take_hello",
        (State.WAIT_HELLO, Refuse): "_take_refusal",
        (State.WAIT_AUTH, Auth): "_take_auth",
        (State.WAIT_AUTH, Refuse): "_take_refusal",
    }

    def start(self) -> list[Message]:
        """Return our hello."""
        if self.state is not State.START:
            raise LocalProtocolError(f"the handshake was started twice (it is in {self.state})")
        self.state = State.WAIT_HELLO
        return [self.hello]

    def _take_hello(self, peer: Hello) -> list[Message]:
        if error := self._version_mismatch(peer):
            return self._fail(error)
        if peer.auth == "none" and self._token:
            return self._fail(self._auth_not_used())
        if peer.auth == "none":
            self.state = State.DONE
            return []
        if not self._token:
            return self._fail(self._auth_required())
        self.state = State.WAIT_AUTH
        return [Auth(mac=self._mac("client"))]

    def _take_auth(self, message: Auth) -> list[Message]:
        if not auth.mac_matches(self._mac("server"), message.mac):
            return self._fail(self._auth_failed())
        self.state = State.DONE
        return []


class ServerHandshake(Handshake):
    """The side that was connected to."""

    role = "server"
    first_state = State.WAIT_HELLO
    table: ClassVar[dict[tuple[State, type[Any]], str]] = {
        (State.WAIT_HELLO, Hello): "_take_hello",
        (State.WAIT_HELLO, Refuse): "_take_refusal",
        (State.WAIT_AUTH, Auth): "_take_auth",
        (State.WAIT_AUTH, Refuse): "_take_refusal",
    }

    def start(self) -> list[Message]:
        """Return nothing: the client speaks first."""
        return []

    def _take_hello(self, peer: Hello) -> list[Message]:
        if error := self._version_mismatch(peer):
            return self._fail(error)
        if self._token and peer.auth == "none":
            return self._fail(self._auth_required())
        if not self._token and peer.auth == "token":
            return self._fail(self._auth_not_used())
        self.state = State.WAIT_AUTH if self._token else State.DONE
        return [self.hello]

    def _take_auth(self, message: Auth) -> list[Message]:
        if not auth.mac_matches(self._mac("client"), message.mac):
            return self._fail(self._auth_failed())
        self.state = State.DONE
        return [Auth(mac=self._mac("server"))]
