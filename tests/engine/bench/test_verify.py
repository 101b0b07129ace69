"""`--verify` finds data that did not arrive, though every completion said so; and never passes on an earlier size."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2prw import api
from p2prw.engine.bench.model import BenchRequest, BenchResult
from p2prw.engine.bench.session import run_bench
from p2prw.engine.model import Operation
from p2prw.engine.providers.scripted import Fault, Script, ScriptedDevice, ScriptedFabric

WRITE, READ = Operation.WRITE, Operation.READ


@pytest.fixture
def scripted(monkeypatch) -> Callable[..., BenchResult]:
    """A measurement between a server and a client on two scripted devices of one fabric."""

    def run(script: Script, operation: Operation = WRITE, access: str = "rw", **wishes) -> BenchResult:
        fabric = ScriptedFabric()

        def client_device(*_, **__):
            return ScriptedDevice("near", fabric=fabric, script=script), "scripted"

        def server_device(*_, **__):
            return ScriptedDevice("far", fabric=fabric), "scripted"

        monkeypatch.setattr("p2prw.engine.client.open_device", client_device)
        monkeypatch.setattr("p2prw.engine.server.server.open_device", server_device)
        with api.serving({"mem": "host,size=64KiB,pattern=words:3"}, access=access) as address:
            connection = api.make_request(WRITE, f"{address}/mem", "host")
            steps = run_bench(BenchRequest(connection=connection, operations=(operation,), verify=True, **wishes))
            while True:
                try:
                    next(steps)
                except StopIteration as finished:
                    result: BenchResult = finished.value
                    return result

    return run


@pytest.mark.parametrize("operation", [WRITE, READ])
def test_what_arrived_is_verified(scripted, operation):
    result = scripted(Script(), operation, sizes=(64, 4096), iterations=10, warm_up=0)
    assert (result.error, [row.verify for row in result.results]) == (None, ["verified", "verified"])


@pytest.mark.parametrize("operation", [WRITE, READ])
def test_data_that_never_arrived_is_found(scripted, operation):
    lost = tuple(Fault(number, lose_data=True) for number in range(10))
    result = scripted(Script(faults=lost), operation, sizes=(4096,), iterations=10, warm_up=0)
    assert result.error is not None and (result.error.code, result.exit_code) == ("verify_mismatch", 4)
    assert result.results[0].complete and result.results[0].verify == "mismatch"
    assert result.verify.status == "mismatch" and result.verify.first_bad_offset == 0


def test_an_earlier_size_does_not_stand_in_for_a_later_one(scripted):
    """The second size loses everything; what the first one left there must not be taken for it."""
    lost = tuple(Fault(number, lose_data=True) for number in range(11, 21))
    result = scripted(Script(faults=lost), sizes=(4096, 4096), iterations=10, warm_up=0)
    assert result.exit_code == 4
    assert [row.verify for row in result.results] == ["verified", "mismatch"]


def test_a_spoilt_byte_of_the_last_generation_is_located(scripted):
    result = scripted(Script(faults=(Fault(9, spoil_at=77),)), sizes=(4096,), iterations=10, warm_up=0)
    assert result.exit_code == 4 and result.verify.first_bad_offset == 77


def test_only_the_last_generation_is_looked_at(scripted):
    """What it cannot find is said in the module: a byte that was wrong and then written again."""
    result = scripted(Script(faults=(Fault(4, spoil_at=77),)), sizes=(4096,), iterations=10, warm_up=0)
    assert result.exit_code == 0


def test_writes_are_flushed_by_a_read_unless_the_memory_may_not_be_read(scripted):
    faults = (Fault(10, lose_data=True),)
    assert scripted(Script(faults=faults), sizes=(8,), iterations=10, warm_up=0).exit_code == 0, (
        "the flush moves nothing"
    )
    assert scripted(Script(), access="w", sizes=(8,), iterations=10, warm_up=0).verify.status == "verified"
