"""A route is proven by moving bytes out of the memory; the memory itself is never written."""

from __future__ import annotations

import pytest

from p2prw.engine.memory.host import HostMemory
from p2prw.engine.model import Access, Route
from p2prw.engine.providers.verbs_open import open_verbs_device
from p2prw.engine.providers.verbs_proof import prove_by_loopback
from p2prw.engine.providers.verbs_scripted import ScriptedBinding, VerbsScript, write_sysfs
from p2prw.engine.topology.sysfs import SysfsRoot


@pytest.fixture
def device(tmp_path, request):
    write_sysfs(tmp_path)
    script = getattr(request, "param", VerbsScript())
    binding = ScriptedBinding(script)
    with open_verbs_device("rxe0", binding=binding, sysfs=SysfsRoot(tmp_path)) as opened:
        yield opened, script
    assert (script.regions_open, script.queue_pairs_open, script.contexts_open) == (0, 0, 0)


def prove(opened, script):
    memory = HostMemory.from_buffer(bytearray(b"\xa5" * 8192))
    buffer = memory.buffers()[0]
    script.special.append(range(buffer.cpu_address, buffer.cpu_address + 8192))
    registration = opened.register_by(Route.ODP, "p2pmem", memory.buffers(), Access.LOCAL_READ)
    proof = opened.prove(registration)
    assert bytes(buffer.load(0, 8192)) == b"\xa5" * 8192
    return proof


def test_memory_that_can_be_read_is_proven(device):
    proof = prove(*device)
    assert proof.ok and proof.proven


@pytest.mark.parametrize("device", [VerbsScript(odp_fails_in_use=True)], indirect=True)
def test_a_registration_that_fails_in_use_is_found_out(device):
    proof = prove(*device)
    assert not proof.ok and proof.wc_status == "LOC_PROT_ERR"


@pytest.mark.parametrize("device", [VerbsScript(loopback=False)], indirect=True)
def test_a_port_without_loopback_proves_nothing_and_refutes_nothing(device):
    proof = prove(*device)
    assert proof.ok and not proof.proven and "first real chunk" in str(proof.why)


@pytest.mark.parametrize(
    ("device", "expected"), [(VerbsScript(), True), (VerbsScript(odp_ignores_offsets=True), False)], indirect=["device"]
)
def test_odp_that_ignores_the_offset_in_a_page_is_found_out_on_pages_of_our_own(device, expected):
    opened, script = device
    assert opened.odp_keeps_offsets() is expected
    chains = len(script.chains)
    assert opened.odp_keeps_offsets() is expected and len(script.chains) == chains, "tried once"


def test_a_completion_that_never_comes_is_not_waited_for(device, monkeypatch):
    opened, _ = device
    monkeypatch.setattr("p2prw.engine.providers.verbs_scripted.ScriptedPair.poll", lambda *_: [])
    now = [0.0]

    def sleep(seconds):
        now[0] += 100 * seconds

    proof = prove_by_loopback(opened, opened._context, None, lambda: now[0], sleep)
    assert not proof.ok and "no completion" in str(proof.why)
