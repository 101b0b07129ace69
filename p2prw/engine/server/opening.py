"""From a client's `open` to a lease that stands: range, allowance, who else holds it, address, memory, queue pair.

Where one of them says no, nothing is left behind. Keys come later, with the grant (`active.py`).
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from p2prw.engine.control.messages import Hello, Open
from p2prw.engine.model import Operation, PeerAddress
from p2prw.engine.peer import attributes_from_wire, source_from_wire
from p2prw.engine.providers.base import Device
from p2prw.engine.server.active import ActiveLease
from p2prw.engine.server.admission import Allowance
from p2prw.engine.server.leases import Lease
from p2prw.engine.server.source import choose_source

if TYPE_CHECKING:
    from p2prw.engine.server.server import Server

_WHOLE_REGION_BYTES = 1 << 62


def open_lease(
    server: Server, message: Open, *, peer: Hello, address: PeerAddress, device: Device, allowance: Allowance
) -> ActiveLease:
    """Return what `message` asks for; `peer`: the client's hello, `address`: where its control connection comes from.

    The lease and what it takes of the allowance are not booked yet. P2prwError for whatever stands in the way.
    """
    operation = Operation(message.op)
    region = server.find_region(message.region)
    length = region.check(operation, message.offset, message.length, message.limit)
    allowance.check(region.name, length)
    whole = region.exclusive_whole and operation is Operation.WRITE
    lease = Lease(
        id=secrets.token_hex(8),
        region=region.name,
        offset=0 if whole else message.offset,
        length_bytes=_WHOLE_REGION_BYTES if whole else length,
        operation=operation,
        shared=message.shared,
        holder=str(address),
    )
    server.check_conflict(lease)
    source = choose_source(
        device.info,
        peer.gid_table,
        message.queue_pair.gid,
        control_host=address.host,
        has_token=server.request.token is not None,
        networks=server.networks,
        wanted_index=server.request.queue_pair.gid_index,
    )
    with ExitStack() as guard:
        opened = region.open_for(operation, message.offset, length, source_from_wire(message.source))
        guard.callback(opened.close)
        queue_pair = device.create_queue_pair(replace(server.request.queue_pair, gid_index=source))
        guard.callback(queue_pair.close)
        queue_pair.connect(attributes_from_wire(message.queue_pair))
        if message.window_bytes is not None:
            queue_pair.set_window(message.window_bytes)
        guard.pop_all()
    active = ActiveLease(lease, region, opened, length, device, queue_pair)
    active.client_can, active.account = peer.capabilities, allowance.account
    return active
