"""The binding without a device: it copies real memory, checks keys and rights, and counts what is open."""

from __future__ import annotations

import ctypes
import errno

import pytest

from p2prw.engine.model import Opcode, Sge, WcStatus
from p2prw.engine.providers.verbs_binding import (
    LOCAL_WRITE,
    REMOTE_READ,
    REMOTE_WRITE,
    BindingError,
    Posted,
    SendFacts,
)
from p2prw.engine.providers.verbs_scripted import ScriptedBinding, VerbsScript

SEND = SendFacts(0, 17, 6, 6, 1)


def connected(binding, access):
    context = binding.open("rxe0")
    pair = context.create_queue_pair(4, 2)
    pair.to_init(1, 0, access)

    class Path:
        dest_qpn = pair.qpn

    pair.to_rtr(Path)
    pair.to_rts(SEND)
    return context, pair


@pytest.mark.parametrize("writing", [True, False])
def test_bytes_move_between_the_registered_ranges(writing):
    binding = ScriptedBinding()
    context, pair = connected(binding, LOCAL_WRITE | REMOTE_READ | REMOTE_WRITE)
    source, sink = ctypes.create_string_buffer(b"abcdef", 6), ctypes.create_string_buffer(6)
    one = context.register(ctypes.addressof(source), 6, LOCAL_WRITE | REMOTE_READ)
    two = context.register(ctypes.addressof(sink), 6, LOCAL_WRITE | REMOTE_WRITE)
    near, far = (one, two) if writing else (two, one)
    sges = (Sge(near.address, 2, near.lkey), Sge(near.address + 2, 4, near.lkey))
    opcode = Opcode.RDMA_WRITE if writing else Opcode.RDMA_READ
    pair.post([Posted(7, opcode, sges, far.address, far.rkey, True)])
    assert [tuple(one) for one in pair.poll(9)] == [(7, 0, 0)]
    assert sink.raw == b"abcdef"


def test_wrong_keys_and_rights_complete_with_their_status_and_flush_what_follows():
    binding = ScriptedBinding()
    context, pair = connected(binding, LOCAL_WRITE | REMOTE_WRITE)
    memory = ctypes.create_string_buffer(64)
    region = context.register(ctypes.addressof(memory), 64, LOCAL_WRITE)
    sge = Sge(region.address, 8, region.lkey)
    write = Posted(0, Opcode.RDMA_WRITE, (sge,), region.address, region.rkey, False)
    pair.post([write, write._replace(wr_id=1)])
    assert [(one.wr_id, WcStatus(one.status).name) for one in pair.poll(9)] == [
        (0, "REM_ACCESS_ERR"),
        (1, "WR_FLUSH_ERR"),
    ]
    assert binding.script.chains == [2]


def test_what_the_script_refuses_is_refused_and_all_is_counted():
    script = VerbsScript(pin_errno=errno.EFAULT, special=[range(4096, 8192)], modify_errno={"RTS": errno.EINVAL})
    binding = ScriptedBinding(script)
    context = binding.open("rxe0")
    with pytest.raises(BindingError) as caught:
        context.register(4096, 16, LOCAL_WRITE)
    assert caught.value.errno_name == "EFAULT"
    with pytest.raises(BindingError):
        context.register_dmabuf(3, 0, 16, LOCAL_WRITE)
    with pytest.raises(BindingError):
        context.register(0, 16, REMOTE_WRITE)
    with pytest.raises(BindingError):
        binding.open("mlx5_0")
    pair = context.create_queue_pair(4, 1)
    with pytest.raises(BindingError):
        pair.to_rts(SEND)
    region = context.register(0, 16, LOCAL_WRITE)
    assert (script.regions_open, script.queue_pairs_open, script.contexts_open) == (1, 1, 1)
    for one in (region, region, pair, pair, context, context):
        one.close()
    assert (script.regions_open, script.queue_pairs_open, script.contexts_open) == (0, 0, 0)
