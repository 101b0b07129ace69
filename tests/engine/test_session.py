"""One whole transfer against a real server in this process: over the software device, and over a scripted one."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from p2prw import api
from p2prw.engine.memory.file_resume import ResumableSink
from p2prw.engine.memory.manifest import Manifest
from p2prw.engine.model import Operation, Timeouts
from p2prw.engine.providers.scripted import Fault, Script, ScriptedDevice, ScriptedFabric
from p2prw.engine.session import list_regions, run_transfer
from p2prw.engine.stop import StopRequest
from p2prw.errors import HostError, PeerGone, RequestError
from p2prw.units import MIB

QUICK = Timeouts(connect_retry_s=0.2, handshake_s=5.0, idle_s=5.0, drain_s=1.0)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "source.bin").write_bytes(bytes(range(256)) * 5000)
    regions = {
        "mem": "host,size=3MiB",
        "known": "host,size=3MiB,pattern=words:5",
        "file": f"file:{folder}/source.bin",
        "sink": f"file:{folder}/sink.bin",
    }
    with api.serving(regions) as address:
        yield str(address)


@pytest.mark.parametrize("size", [0, 1, 3, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1])
def test_sizes_and_offsets_aligned_to_nothing(served, size):
    wrote = api.write(f"{served}/mem+77773", "host,size=2MiB,pattern=words:9", size_bytes=size)
    assert (wrote.exit_code, wrote.verify.status, wrote.error) == (0, "verified", None)
    read = api.read(f"{served}/mem+77773", "host", size_bytes=size)
    assert (read.exit_code, read.verify.status) == (0, "verified")
    assert read.verify.local_digest == wrote.verify.remote_digest
    assert wrote.results[0].bytes == read.results[0].bytes == size


def test_size_zero_runs_all_checks_and_posts_nothing(served):
    result = api.write(f"{served}/mem", "host,size=1MiB", size_bytes=0)
    assert result.exit_code == 0 and result.results[0].wqes_posted == 0
    assert result.warnings == (), "it was asked for"
    past = api.write(f"{served}/mem+3MiB", "host,size=1MiB")
    assert past.exit_code == 0 and past.warnings == ("nothing to move: the region ends where this begins",)
    empty = api.write(f"{served}/mem", "host,size=0")
    assert empty.exit_code == 0 and empty.warnings == ("nothing to move: the local memory is empty",)
    refused = api.write(f"{served}/nowhere", "host,size=1MiB", size_bytes=0)
    assert refused.exit_code == 7 and refused.error is not None and refused.error.code == "unknown_region"


def test_a_file_goes_to_a_file_and_back(served, tmp_path):
    source, back = tmp_path / "a.bin", tmp_path / "b.bin"
    source.write_bytes(bytes(range(251)) * 40_000)
    assert api.write(f"{served}/sink", f"file:{source}", staging_chunk_bytes=MIB).exit_code == 0
    result = api.read(f"{served}/sink", f"file:{back}", staging_chunk_bytes=128 * 1024, staging_bytes=256 * 1024)
    assert result.exit_code == 0 and back.read_bytes() == source.read_bytes()
    assert result.local_route is not None and result.local_route.staged and result.local_route.chosen == "cpu"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "b.bin"]


def test_the_size_is_the_smaller_of_both_ends(served):
    result = api.read(f"{served}/known+1MiB", "host,size=512KiB")
    assert result.results[0].bytes == 512 * 1024
    result = api.read(f"{served}/known+2MiB", "host,size=64MiB")
    assert result.results[0].bytes == MIB


def test_every_phase_is_timed_and_the_route_is_told_for_both_ends(served):
    result = api.write(f"{served}/mem", "host,size=1MiB")
    assert set(result.phases) == {
        "open",
        "map",
        "register",
        "exchange",
        "connect",
        "first_byte",
        "steady",
        "drain",
        "verify",
        "close",
    }
    for route in (result.local_route, result.remote_route):
        assert route is not None
        assert (route.chosen, route.mover, route.peer_to_peer, route.driver) == ("cpu", "cpu", False, "soft")
        assert route.attempts[0].ok
    assert result.environment["negotiated"]["path_mtu_bytes"] == 4096
    assert "rocev2 127." in result.environment["gid_pair"]


@pytest.mark.parametrize(
    ("target", "memory", "options", "code", "exit_code"),
    [
        ("nothing", "host,size=1MiB", {}, "unknown_region", 7),
        ("mem+4MiB", "host,size=1MiB", {}, "offset_past_end", 7),
        ("mem", "host,size=8MiB", {"size_bytes": 8 * MIB}, "region_too_small", 7),
        ("mem", "host,size=1MiB", {"size_bytes": 2 * MIB}, "size_does_not_fit", 2),
        ("mem", "file:/no/such/file", {}, "not_found", 3),
        ("mem", "host,size=1MiB", {"device": "mlx5_9"}, "no_device", 3),
        ("mem", "host,size=1MiB", {"via": "p2pmem:0000:01:00.0"}, "via_needs_file", 2),
        ("mem", "file:x.bin", {"via": "host,size=1MiB"}, "via_kind", 2),
        ("mem", "file:x.bin", {"via": "p2pmem:ffff:1f:1f.7"}, "no_device", 3),
        ("mem", "host,size=1MiB", {"token": b"secret"}, "auth_not_used", 7),
        ("sink", "host", {}, "missing_size", 7),
    ],
)
def test_what_cannot_be_done_says_why_and_what_to_type(served, target, memory, options, code, exit_code):
    result = api.write(f"{served}/{target}", memory, **options)
    assert result.error is not None and result.status == "failed"
    assert (result.error.code, result.exit_code) == (code, exit_code)
    assert result.error.why or result.error.fix
    assert result.results == () or result.results[0].bytes == 0


def test_a_server_that_is_not_there_is_said_quickly():
    began = time.monotonic()
    result = api.write("127.0.0.1:1/mem", "host,size=1MiB", timeouts=QUICK)
    assert (result.exit_code, result.error and result.error.code) == (3, "connect_refused")
    assert time.monotonic() - began < 3


def test_a_dry_run_plans_posts_nothing_and_changes_nothing(served):
    before = api.read(f"{served}/known", "host").verify.remote_digest
    request = api.make_request(Operation.WRITE, f"{served}/known", "host,size=3MiB", chunk_bytes=64 * 1024)
    result = api.finish(api.transfer(request, dry_run=True))
    assert (result.status, result.exit_code, result.results) == ("planned", 0, ())
    assert result.plan is not None and result.plan["transfer_bytes"] == 3 * MIB
    assert result.verify.status == "unverified"
    assert api.read(f"{served}/known", "host").verify.remote_digest == before


def test_a_plan_that_is_kept_is_the_dry_runs(served):
    request = api.make_request(Operation.WRITE, f"{served}/mem", "host,size=64KiB", chunk_bytes=16 * 1024)
    moved = api.finish(run_transfer(request, keep_plan=True))
    assert moved.status == "ok" and moved.plan is not None and moved.plan["totals"]["wrs"] == 4
    assert api.finish(api.transfer(request)).plan is None


def test_no_verify_and_shared_say_that_nothing_was_verified(served):
    assert api.write(f"{served}/mem", "host,size=1MiB", verify=False).verify.why == "--no-verify"
    shared = api.write(f"{served}/mem", "host,size=1MiB", shared=True).verify
    assert shared.status == "unverified" and "shared" in str(shared.why)


def test_faults_made_on_purpose_are_repaired_and_counted(served):
    result = api.write(f"{served}/mem", "host,size=3MiB,pattern=words:2", inject="drop=3%,dup=2%,reorder=3%,seed=4")
    assert (result.exit_code, result.verify.status) == (0, "verified")
    assert result.results[0].retransmitted_packets > 0
    assert any("on purpose" in warning for warning in result.warnings)


@pytest.mark.parametrize("at", [0, 70_001, 2 * MIB + 5])
@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("operation", ["write", "read"])
def test_a_byte_flipped_under_a_right_icrc_is_found(served, tmp_path, operation, staged, at):
    """The wire sees nothing wrong: only the digests of the final memory do."""
    (tmp_path / "source.bin").write_bytes(random.Random(4).randbytes(3 * MIB))
    options = {"inject": f"corrupt={at}", "staging_chunk_bytes": 256 * 1024}
    if operation == "write":
        memory = f"file:{tmp_path}/source.bin" if staged else "host,size=3MiB,pattern=words:2"
        result = api.write(f"{served}/mem", memory, **options)
    else:
        result = api.read(f"{served}/known", f"file:{tmp_path}/sink.bin" if staged else "host", **options)
    assert result.error is not None
    assert (result.exit_code, result.error.code) == (4, "verify_mismatch")
    verify = result.verify
    assert (verify.status, verify.first_bad_offset, verify.classification) == ("mismatch", at, "corrupt")
    assert "1 flipped bit in 1 byte" in str(verify.why)
    assert result.results[0].retransmitted_packets == 0 and not (tmp_path / "sink.bin").exists()


def test_a_byte_beyond_the_transfer_is_said_to_have_changed_nothing(served):
    result = api.write(f"{served}/mem", "host,size=1MiB", inject="corrupt=1MiB")
    assert result.exit_code == 0
    assert "corrupt=1048576 changed nothing: fewer bytes were moved" in result.warnings


def test_a_server_flips_no_byte():
    with (
        pytest.raises(RequestError, match="does not know which byte"),
        api.serving({"a": "host,size=1MiB"}, inject="corrupt=4"),
    ):
        pass


def test_require_direct_lets_host_memory_pass(served):
    assert api.write(f"{served}/mem", "host,size=1MiB", require_direct=True).exit_code == 0


def test_regions_are_listed(served):
    host, port = served.rsplit(":", 1)
    regions = {region.name: region for region in list_regions(api.parse_peer(f"{host}:{port}")[0])}
    assert set(regions) == {"mem", "known", "file", "sink"}
    assert (regions["mem"].kind, regions["mem"].length, regions["mem"].staged) == ("host", 3 * MIB, False)
    assert regions["file"].staged


def test_a_stop_in_mid_transfer_says_what_was_moved_and_leaves_no_sink(served, tmp_path):
    stop = StopRequest()
    sink = tmp_path / "partial.bin"
    request = api.make_request(
        Operation.READ,
        f"{served}/known",
        f"file:{sink}",
        inject="drop=30%,seed=1",
        staging_chunk_bytes=64 * 1024,
        timeouts=QUICK,
    )
    steps = run_transfer(request, stop=stop)
    next(steps)
    stop.set(2)
    result = api.finish(steps)
    assert (result.status, result.exit_code) == ("interrupted", 130)
    assert not sink.exists() and list(tmp_path.iterdir()) == []


def test_dropping_the_generator_closes_everything(served, tmp_path):
    before = threading.active_count()
    request = api.make_request(
        Operation.READ, f"{served}/known", f"file:{tmp_path}/x.bin", inject="drop=30%,seed=1", timeouts=QUICK
    )
    steps = run_transfer(request)
    next(steps)
    steps.close()
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() <= before
    # The lease is free again: nobody is refused as busy.
    assert api.write(f"{served}/known", "host,size=3MiB,pattern=words:5").exit_code == 0


def test_the_time_limit_is_an_exit_code_of_its_own(served):
    result = api.write(
        f"{served}/mem", "host,size=3MiB", inject="drop=60%,seed=2", timeouts=Timeouts(time_limit_s=0.5, idle_s=20)
    )
    assert (result.exit_code, result.error and result.error.code) == (6, "time_limit")


# --- with a script instead of a wire ----------------------------------------------------------------------------


@pytest.fixture
def scripted(monkeypatch) -> Iterator[Callable[[Script], None]]:
    """Client and server on one fabric; the client's device follows the given script."""
    fabric = ScriptedFabric()
    scripts: list[Script] = []

    def client_device(name: str, **_: object) -> tuple[ScriptedDevice, str]:
        return ScriptedDevice("near", fabric=fabric, script=scripts[-1]), "scripted"

    def server_device(name: str, **_: object) -> tuple[ScriptedDevice, str]:
        return ScriptedDevice("far", fabric=fabric), "scripted"

    monkeypatch.setattr("p2prw.engine.client.open_device", client_device)
    monkeypatch.setattr("p2prw.engine.server.server.open_device", server_device)
    yield scripts.append


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.READ])
def test_a_spoiled_byte_is_found_placed_and_ends_4(scripted, operation):
    # WRs of 1 MiB: the byte at 2 MiB + 12345 of the transfer arrives inverted.
    scripted(Script(faults=(Fault(2, spoil_at=12_345),)))
    near, far = "host,size=3MiB,pattern=words:1", "host,size=3MiB,pattern=words:1"
    with api.serving({"mem": far}) as address:
        request = api.make_request(operation, f"{address}/mem", near)
        result = api.finish(api.transfer(request))
    assert (result.exit_code, result.verify.status) == (4, "mismatch")
    assert result.verify.first_bad_offset == 2 * MIB + 12_345
    assert result.verify.classification == "corrupt"
    assert result.error is not None and str(2 * MIB + 12_345) in result.error.what
    assert result.partial and result.results[0].bytes == 3 * MIB


def test_data_that_never_arrived_ends_4_and_looks_like_zeros(scripted):
    scripted(Script(faults=(Fault(1, lose_data=True),)))
    with api.serving({"mem": "host,size=3MiB"}) as address:
        result = api.write(f"{address}/mem", "host,size=3MiB,pattern=words:1")
    assert (result.exit_code, result.verify.first_bad_offset) == (4, MIB)
    assert result.verify.classification == "all_zero"


def test_a_read_that_left_the_sinks_old_bytes_is_called_never_arrived(scripted):
    scripted(Script(faults=(Fault(1, lose_data=True),)))
    with api.serving({"mem": "host,size=3MiB,pattern=words:1"}) as address:
        result = api.read(f"{address}/mem", "host,size=3MiB,pattern=words:99")
    assert (result.exit_code, result.verify.first_bad_offset) == (4, MIB)
    assert result.verify.classification == "never_arrived"


def test_a_spoiled_file_never_appears_under_its_name(scripted, tmp_path: Path):
    scripted(Script(faults=(Fault(0, spoil_at=5),)))
    with api.serving({"out": f"file:{tmp_path}/out.bin"}) as address:
        wrote = api.write(f"{address}/out", "host,size=1MiB,pattern=words:1")
        scripted(Script(faults=(Fault(0, spoil_at=5),)))
    with api.serving({"mem": "host,size=1MiB,pattern=words:1"}) as address:
        read = api.read(f"{address}/mem", f"file:{tmp_path}/in.bin")
    assert wrote.exit_code == read.exit_code == 4
    assert wrote.verify.first_bad_offset == read.verify.first_bad_offset == 5
    assert list(tmp_path.iterdir()) == []


def test_memory_that_changes_under_the_digest_is_unstable_not_corrupt(scripted, monkeypatch):
    from p2prw.engine.memory.host import HostMemory

    scripted(Script())
    original, calls = HostMemory.read_at, [0]

    def restless(self: HostMemory, offset: int, into: memoryview) -> int:
        count = original(self, offset, into)
        calls[0] += 1
        into[0] = calls[0] & 0xFF
        return count

    with api.serving({"mem": "host,size=1MiB"}) as address:
        monkeypatch.setattr(HostMemory, "read_at", restless)
        monkeypatch.setattr(HostMemory, "in_place", lambda self: None)
        result = api.write(f"{address}/mem", "host,size=1MiB")
    assert (result.exit_code, result.verify.status) == (4, "unstable")
    assert result.error is not None and result.error.code == "verify_unstable"


def test_a_completion_error_is_in_the_result_with_what_was_moved(scripted):
    from p2prw.engine.model import WcStatus

    scripted(Script(faults=(Fault(2, status=WcStatus.REM_ACCESS_ERR),)))
    with api.serving({"mem": "host,size=4MiB"}) as address:
        result = api.write(f"{address}/mem", "host,size=4MiB", signal_every=1)
    assert (result.exit_code, result.partial) == (7, True)
    assert result.error is not None and (result.error.code, result.error.wc_status) == (
        "remote_access",
        "REM_ACCESS_ERR",
    )
    assert result.results[0].bytes == 2 * MIB


def broken_off(served, tmp_path, monkeypatch, target="sink", **options):
    """Write with `resume` until some blocks are noted, then lose the peer; return the source."""
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 4096 * 12)
    note, count = Manifest.note, [0]

    def failing(manifest: Manifest, index: int, digest: str) -> None:
        count[0] += 1
        if count[0] > 5:
            raise HostError("the disk is gone", why="a test", fix="nothing", code="io_error")
        note(manifest, index, digest)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "note", failing)
        result = api.write(f"{served}/{target}", f"file:{source}", resume=True, **options)
    assert result.error is not None and result.error.code == "io_error"
    assert any("--resume goes on from there" in warning for warning in result.warnings)
    return source


@pytest.fixture
def fresh_sink(tmp_path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "there"
    folder.mkdir()
    with api.serving({"sink": f"file:{folder}/sink.bin"}) as address:
        yield str(address), folder


def test_what_arrived_is_not_moved_again(fresh_sink, tmp_path, monkeypatch):
    served, folder = fresh_sink
    source = broken_off(served, tmp_path, monkeypatch)
    result = api.write(f"{served}/sink", f"file:{source}", resume=True)
    row = result.results[0]
    assert result.exit_code == 0 and row.skipped_bytes == 5 * MIB and row.bytes == 7 * MIB
    assert "resume" in result.phases and result.verify.blocks == 12
    assert [path.name for path in folder.iterdir()] == ["sink.bin"]
    assert (folder / "sink.bin").read_bytes() == source.read_bytes()


def test_a_source_that_changed_behind_its_time_is_found_by_its_digests(fresh_sink, tmp_path, monkeypatch):
    """Same size, same mtime, other bytes: no mixed file, and the server forgets what it noted."""
    served, folder = fresh_sink
    source = broken_off(served, tmp_path, monkeypatch)
    status = source.stat()
    changed = bytearray(source.read_bytes())
    changed[2 * MIB + 7] ^= 0xFF
    source.write_bytes(changed)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    result = api.write(f"{served}/sink", f"file:{source}", resume=True)
    assert result.exit_code == 0 and result.results[0].skipped_bytes == 0
    assert any("differs from the source at byte" in warning for warning in result.warnings)
    assert (folder / "sink.bin").read_bytes() == bytes(changed)


def test_another_range_starts_over(fresh_sink, tmp_path, monkeypatch):
    served, folder = fresh_sink
    source = broken_off(served, tmp_path, monkeypatch)
    result = api.write(f"{served}/sink", f"file:{source}", resume=True, size_bytes=6 * MIB)
    assert result.exit_code == 0 and result.results[0].skipped_bytes == 0
    assert any("another offset or size" in warning for warning in result.warnings)
    assert (folder / "sink.bin").read_bytes() == source.read_bytes()[: 6 * MIB]


def test_a_dry_run_leaves_alone_what_is_kept(fresh_sink, tmp_path, monkeypatch):
    served, folder = fresh_sink
    source = broken_off(served, tmp_path, monkeypatch)
    before = sorted(path.name for path in folder.iterdir())
    steps = api.transfer(
        api.make_request(Operation.WRITE, f"{served}/sink", f"file:{source}", resume=True), dry_run=True
    )
    assert api.finish(steps).status == "planned"
    assert sorted(path.name for path in folder.iterdir()) == before


def test_bytes_that_fail_verification_are_not_kept(fresh_sink, tmp_path, monkeypatch):
    served, folder = fresh_sink
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 4096 * 3)
    write_at = ResumableSink.write_at

    def corrupting(sink, offset, data):
        data[0] ^= 1
        write_at(sink, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(ResumableSink, "write_at", corrupting)
        result = api.write(f"{served}/sink", f"file:{source}", resume=True)
    assert result.exit_code == 4 and list(folder.iterdir()) == []
    assert not any("goes on from there" in warning for warning in result.warnings)


def test_releases_without_resume_at_either_end_still_work(fresh_sink, tmp_path, monkeypatch):
    served, folder = fresh_sink
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 9000)
    monkeypatch.setattr("p2prw.engine.server.client.CAPABILITIES", ())
    result = api.write(f"{served}/sink", f"file:{source}", resume=True)
    assert result.exit_code == 0 and any("the server's release cannot" in warning for warning in result.warnings)
    back = api.read(f"{served}/sink", f"file:{tmp_path}/back.bin", resume=True)
    assert back.exit_code == 0 and (tmp_path / "back.bin").read_bytes() == source.read_bytes()
    assert [path.name for path in folder.iterdir()] == ["sink.bin"]


def test_the_time_limit_and_a_stop_end_the_wait_between_attempts(monkeypatch):
    """The peer is lost after the grant each time: one attempt, then the wait, which both cut short."""

    def lost(client):
        raise PeerGone("it closed the connection", why="a test", fix="nothing")

    monkeypatch.setattr("p2prw.engine.client.LeaseClient.attach", lost)
    now = [0.0]
    request = api.make_request(Operation.WRITE, "127.0.0.1:1/a", "host,size=1MiB", retries=9)
    limited = replace(request, timeouts=Timeouts(time_limit_s=10.0))

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def run(wanted, stop=None):
        steps = run_transfer(wanted, stop=stop, clock=lambda: now[0], sleep=sleep)
        seen = []
        while True:
            try:
                seen.append(next(steps))
            except StopIteration as end:
                return seen, end.value

    seen, result = run(limited)
    assert (result.exit_code, result.error.code) == (1, "peer_lost") and 9 < now[0] < 11
    assert {progress.phase for progress in seen} == {"reconnect"} and seen[-1].reconnects == 4
    now[0] = 0.0
    _, result = run(request)
    assert result.exit_code == 1 and now[0] == pytest.approx(1 + 2 + 4 + 8 + 16 + 30 * 4)
    stop = StopRequest()
    steps = run_transfer(request, stop=stop, clock=lambda: now[0], sleep=sleep)
    assert next(steps).phase == "reconnect"
    stop.set()
    result = api.finish(steps)
    assert (result.exit_code, result.status) == (130, "interrupted")
