"""The client's side of a control channel: hello, lists, and answers that are waited for while the device goes on."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from p2prw import __version__
from p2prw.engine import gids
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.handshake import ClientHandshake
from p2prw.engine.control.messages import (
    CAPABILITIES,
    Hello,
    ListRegions,
    QueuePairInfo,
    RegionInfo,
    Regions,
    Source,
    Window,
)
from p2prw.engine.deadline import Deadline
from p2prw.engine.model import PeerAddress, QueuePairAttributes, SourceIdentity, Timeouts, TlsClient
from p2prw.engine.providers.base import Device, QueuePair
from p2prw.engine.stop import StopRequest
from p2prw.errors import DeadlineExceeded, RemoteProtocolError

_MOST_PAGES = 1024
"""Of 64 regions each."""
AGENT = f"p2prw {__version__}"


def list_regions(
    peer: PeerAddress,
    token: bytes | None = None,
    timeouts: Timeouts | None = None,
    *,
    tls: TlsClient | None = None,
    stop: StopRequest | None = None,
) -> tuple[RegionInfo, ...]:
    """Return what a server offers, within `handshake_s` for all of it.

    HostError when it cannot be reached, PeerRefusedError when it says no, RemoteProtocolError when the list has no end.
    """
    timeouts = timeouts or Timeouts()
    regions: list[RegionInfo] = []
    name = "the list of regions"
    with Channel.connect(peer, timeouts, tls=tls, stop=stop) as channel:
        shake_hands(channel, token, timeouts.handshake_s, stop=stop)
        end_s = time.monotonic() + timeouts.handshake_s
        for page in range(_MOST_PAGES):
            channel.send(ListRegions(page))
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise channel.overdue(timeouts.handshake_s, name)
            answer = channel.expect(Regions, deadline_s=left_s, name=name, stop=stop)
            assert isinstance(answer, Regions)
            regions += answer.regions
            # A page that is empty ends the list whatever it says: a peer must not keep us for ever.
            if not (answer.more and answer.regions):
                break
        else:
            raise RemoteProtocolError(
                f"the list of regions has no end: {len(regions)} so far, and the server says that there are more",
                code="bad_message",
            )
    return tuple(regions)


def shake_hands(
    channel: Channel,
    token: bytes | None,
    deadline_s: float,
    *,
    device: Device | None = None,
    stop: StopRequest | None = None,
) -> Hello:
    """Open a control channel from the client's side and return the server's hello."""
    handshake = ClientHandshake(
        nonce=secrets.token_hex(32),
        token=token,
        gid_table=gids.to_wire(device.info.gids) if device else (),
        udp_port=device.info.udp_port if device else None,
        capabilities=CAPABILITIES,
        agent=AGENT,
    )
    return channel.run_handshake(handshake, deadline_s=deadline_s, stop=stop)


def attributes_to_wire(attributes: QueuePairAttributes) -> QueuePairInfo:
    """Return our end of a queue pair as the peer is told of it."""
    return QueuePairInfo(
        qpn=attributes.qpn,
        psn=attributes.psn,
        gid=attributes.gid,
        mtu_bytes=attributes.mtu_bytes,
        max_rd_atomic=attributes.max_rd_atomic,
        max_dest_rd_atomic=attributes.max_dest_rd_atomic,
        udp_port=attributes.udp_port,
        lid=attributes.lid,
    )


def attributes_from_wire(info: QueuePairInfo) -> QueuePairAttributes:
    """Return the peer's end of a queue pair."""
    return QueuePairAttributes(
        qpn=info.qpn,
        psn=info.psn,
        gid=info.gid,
        mtu_bytes=info.mtu_bytes,
        max_rd_atomic=info.max_rd_atomic,
        max_dest_rd_atomic=info.max_dest_rd_atomic,
        udp_port=info.udp_port,
        lid=info.lid,
    )


def source_to_wire(source: SourceIdentity) -> Source:
    """Return what a transfer's bytes come from as the peer is told of it."""
    return Source(source.name, source.offset, source.bytes, source.mtime_ns)


def source_from_wire(source: Source | None) -> SourceIdentity | None:
    """Return what the peer's bytes come from, where it said so."""
    return None if source is None else SourceIdentity(source.name, source.offset, source.bytes, source.mtime_ns)


@dataclass(slots=True)
class PeerLink:
    """A channel past its handshake, and what must go on while we wait for an answer on it."""

    channel: Channel
    device: Device
    deadline: Deadline
    queue_pair: QueuePair | None = None
    windows_bind: bool = True
    """Window frames bound what we send; not so for READ, where the responses come to us."""

    def expect(self, kind: type[Any], name: str, at_most_s: float) -> Any:
        """Wait for one message of `kind`; window frames in between are taken in.

        DeadlineExceeded names the wait; a refusal is PeerRefusedError; see `Channel.expect`.
        """
        end_s = self.deadline.clock() + at_most_s
        while True:
            try:
                message = self.channel.expect(
                    kind,
                    Window,
                    deadline_s=self.deadline.left_s(max(0.0, end_s - self.deadline.clock())),
                    name=name,
                    pump=self.device.pump,
                    filenos=self.device.filenos(),
                    next_timer_s=self.device.next_timer_s,
                    stop=self.deadline.stop,
                )
            except DeadlineExceeded:
                self.deadline.check(f"while waiting for {name}")
                raise
            if not isinstance(message, Window):
                return message
            # A peer that sends nothing but windows is not waited for longer than one that is silent.
            self.deadline.check(f"while waiting for {name}")
            if self.deadline.clock() >= end_s:
                raise self.channel.overdue(at_most_s, name)
            if self.queue_pair is not None and self.windows_bind:
                self.queue_pair.set_window(message.window_bytes)
