"""From a request to a plan, and from a plan to a result; `smoke` is the whole of `p2prw smoke` as a function call."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from p2prw.engine.inventory import Inventory, take_inventory
from p2prw.engine.memory.prepare import prepare_memory
from p2prw.engine.model import ErrorReport, ServedRegion
from p2prw.engine.outcome import error_report
from p2prw.engine.peer import list_regions
from p2prw.engine.smoke.discover import find_devices, find_memories
from p2prw.engine.smoke.model import (
    SMALL_BYTES,
    CellResult,
    Preset,
    Skip,
    SmokeDevice,
    SmokeEvent,
    SmokeMemory,
    SmokePlan,
    SmokeRegion,
    SmokeRequest,
    SmokeResult,
)
from p2prw.engine.smoke.plan import make_plan
from p2prw.engine.smoke.regions import regions_of_peer, spec_of, standing_regions
from p2prw.engine.smoke.runner import Runner
from p2prw.engine.stop import StopRequest
from p2prw.engine.topology.memory_devices import list_memory_devices
from p2prw.engine.topology.sysfs import SysfsRoot
from p2prw.errors import HostError, P2prwError, worst_exit_code

FOLDER_PREFIX = "p2prw-smoke-"
"""Of our own files under TMPDIR; the folder is gone when the test has ended."""

PlanListener = Callable[[SmokePlan], None]


def smoke(
    request: SmokeRequest,
    *,
    stop: StopRequest | None = None,
    on_plan: PlanListener | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[SmokeEvent, None, SmokeResult]:
    """Yield what happens to each cell and return the result. P2prwError only for what precedes the first cell."""
    stop = StopRequest() if stop is None else stop
    began_s = clock()
    with ExitStack() as stack:
        folder = stack.enter_context(_own_folder())
        plan = _plan(request, folder, stop)
        if on_plan is not None:
            on_plan(plan)
        runner = Runner(plan, request, stop, clock)
        yield from runner.run()
    return _result(request, plan, runner, clock() - began_s)


def regions_to_serve() -> tuple[tuple[ServedRegion, ...], tuple[Skip, ...]]:
    """Return the regions of `serve --smoke` on this host, and what cannot be offered."""
    memory = list_memory_devices(SysfsRoot())
    memories, skips = find_memories(Inventory((), memory, ()), ())
    memories, unusable = _usable(memories)
    return standing_regions(memories), (*skips, *unusable)


def _plan(request: SmokeRequest, folder: str, stop: StopRequest) -> SmokePlan:
    regions: tuple[SmokeRegion, ...] | None = None
    if request.peer is not None:
        regions = _peer_regions(request, stop)
    inventory = take_inventory(request.verbs_binding)
    memories, skips = find_memories(inventory, request.memories)
    memories, unusable = _usable(memories)
    devices = [SmokeDevice("auto", "", "auto")]
    if request.peer is None or request.devices:
        devices, unfit = find_devices(inventory, request.devices, every_address=request.preset is Preset.FULL)
        skips += unfit
    if request.inject:
        skips += [
            Skip(one.place, None, "--inject is for software devices") for one in devices if one.provider == "verbs"
        ]
        devices = [one for one in devices if one.provider != "verbs"]
    plan = make_plan(request, devices, memories, regions, folder)
    if not plan.cells:
        why = "; ".join(f"{one.device or one.memory}: {one.reason}" for one in (*skips, *unusable, *plan.skips))
        raise HostError("nothing takes part in the smoke test", why=why, fix="p2prw devices", code="nothing_to_do")
    return replace(plan, skips=(*plan.skips, *skips, *unusable))


def _peer_regions(request: SmokeRequest, stop: StopRequest) -> tuple[SmokeRegion, ...]:
    assert request.peer is not None
    timeouts = request.timeouts
    if timeouts.time_limit_s is not None:
        timeouts = replace(timeouts, connect_retry_s=min(timeouts.connect_retry_s, timeouts.time_limit_s))
    regions = regions_of_peer(list_regions(request.peer, request.token, timeouts, tls=request.tls, stop=stop))
    if not regions:
        raise HostError(
            f"{request.peer} offers nothing for smoke tests",
            why="smoke writes to regions only that are there for it: smoke-host, smoke-p2pmem-...",
            fix="p2prw serve --smoke   (there)",
            code="no_smoke_region",
            side="remote",
        )
    return regions


def _usable(memories: Sequence[SmokeMemory]) -> tuple[list[SmokeMemory], list[Skip]]:
    """Ask the host for each; what was found but cannot be had is left out, what was named is an error."""
    usable: list[SmokeMemory] = []
    skips: list[Skip] = []
    for memory in memories:
        try:
            if memory.kind != "file":
                prepare_memory(spec_of(memory.kind, memory.name, SMALL_BYTES, 0), "source")
            usable.append(memory)
        except P2prwError as error:
            if memory.named:
                raise
            skips.append(Skip(None, memory.name, f"{error.what}: {error.why}" if error.why else error.what))
    return usable, skips


@contextmanager
def _own_folder() -> Iterator[str]:
    try:
        folder = tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, ignore_cleanup_errors=True)
    except OSError as error:
        raise HostError(
            f"cannot make a folder in {tempfile.gettempdir()}: {(error.strerror or str(error)).lower()}",
            why="smoke keeps the files it moves there",
            fix="TMPDIR=DIRECTORY that can be written to",
            code="smoke_file",
            errno=error.errno,
        ) from error
    with folder:
        yield folder.name


def _result(request: SmokeRequest, plan: SmokePlan, runner: Runner, elapsed_s: float) -> SmokeResult:
    failed = [one for one in runner.results if one.status == "fail"]
    codes = [one.exit_code for one in failed]
    if runner.end is not None:
        codes.append(runner.end.exit_code)
    exit_code = worst_exit_code(codes)
    error = None
    if runner.end is not None and runner.end.exit_code == exit_code:
        left = sum(1 for one in runner.results if one.status == "not_run")
        runner.end.why = f"{left} of {len(plan.cells)} cells were not run"
        runner.end.fix = runner.end.fix or "p2prw smoke --quick"
        error = error_report(runner.end)
    elif failed:
        error = _summary([one for one in failed if one.exit_code == exit_code], len(failed), len(plan.cells))
    warnings = dict.fromkeys(text for one in runner.results if one.transfer for text in one.transfer.warnings)
    return SmokeResult(
        request=request,
        cells=tuple(runner.results),
        skips=plan.skips,
        exit_code=exit_code,
        elapsed_s=elapsed_s,
        error=error,
        stopped=runner.end is not None,
        warnings=tuple(warnings),
    )


def _summary(worst: Sequence[CellResult], failed: int, cells: int) -> ErrorReport:
    first = worst[0]
    cell = first.cell
    assert first.error is not None
    return replace(
        first.error,
        what=f"{failed} of {cells} cells failed",
        why=f"{cell.place} {cell.operation} {cell.local} {cell.size_class}: {first.error.what}",
        fix=cell.command if cell.serve_command is None else f"{cell.serve_command} & {cell.command}",
    )
