"""Runs the rows of a scenario: one after the other, those of one group together, servers in the background.

Every wait has a deadline: the row's, the scenario's, and a grace for what was told to stop. Whatever happens, no child
lives when `run` returns. Events come out as a generator, so that the caller draws and this module does not.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

from p2prw.engine.stop import StopRequest
from p2prw.errors import HostError
from p2prw.scenario.child import Child, end_all, wait_any
from p2prw.scenario.model import Row, RowResult, Scenario, command_line
from p2prw.scenario.needs import Host, lacks
from p2prw.scenario.verdict import decide, parse_document
from p2prw.scenario.words import inherited

READY_S = 60.0
"""How long a server may take to say that it is ready: it touches all its memory first."""
GRACE_S = 10.0
"""How long a command may take to end after a signal: it drains, tells its peer, prints."""
LIMIT_SLACK_S = 15.0
"""A row has --time-limit itself; this much later it is ended from outside."""
TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class RowEvent:
    """A row began, or ended."""

    kind: Literal["started", "finished"]
    row: Row
    result: RowResult | None = None


@dataclass(slots=True)
class _Server:
    row: Row
    child: Child
    address: str
    command: str


class Runner:
    """One run of one scenario; `results` grows as rows end and holds every row at the end."""

    def __init__(
        self,
        scenario: Scenario,
        environ: Mapping[str, str],
        host: Host,
        stop: StopRequest,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scenario = scenario
        self.host = host
        self.stop = stop
        self.clock = clock
        self.environ = inherited(environ)
        self.results: dict[int, RowResult] = {}
        self.servers: dict[int, _Server] = {}
        self.halted: str | None = None
        """Why no more rows are started."""
        self.out_of_time = False
        self.started_s = clock()

    def run(self) -> Iterator[RowEvent]:
        """Run all rows; yields an event for each beginning and each end."""
        self.started_s = self.clock()
        try:
            with _directory() as directory:
                for _, rows in groupby(self.scenario.rows, key=lambda row: row.group):
                    yield from self._run_group(list(rows), directory)
            yield from self._end_servers()
        finally:
            end_all([server.child for server in self.servers.values()], 0.0)

    def ordered(self) -> list[RowResult]:
        """Return the results in the order of the file; a row that nothing came of was not run."""
        rows = self.scenario.rows
        return [self.results.get(row.number) or self._not_run(row, "the scenario ended before") for row in rows]

    # --- one group ---

    def _run_group(self, rows: list[Row], directory: Path) -> Iterator[RowEvent]:
        for batch in [rows] if rows[0].together else [[row] for row in rows]:
            servers = [row for row in batch if row.action == "serve"]
            clients = [row for row in batch if row.action != "serve"]
            for row in servers:
                yield from self._start_server(row, directory)
            yield from self._run_clients(clients)

    def _refusal(self, row: Row) -> RowResult | None:
        """Return the result of a row that is not to be started, None for one that is."""
        self._look_at_limits()
        if self.halted:
            return self._not_run(row, self.halted)
        for need in row.needs:
            reason = lacks(need, self.host)
            if reason:
                return RowResult(row, "skip", reason=f"{need.text}: {reason}")
        for number in row.servers:
            if number not in self.servers:
                server = self.results[number]
                reason = f"its server {server.row.name} did not start: {server.reason}"
                return RowResult(row, "skip", reason=reason) if server.status == "skip" else self._not_run(row, reason)
        return None

    def _run_clients(self, rows: list[Row]) -> Iterator[RowEvent]:
        running: dict[int, tuple[Row, Child]] = {}
        stopped: set[int] = set()
        for row in rows:
            refused = self._refusal(row)
            if refused is not None:
                yield self._keep(refused)
                continue
            yield RowEvent("started", row)
            try:
                running[row.number] = (row, Child(row.command_words(self._addresses()), self.environ))
            except OSError as error:
                yield self._keep(self._could_not_start(row, error))
        try:
            while running:
                self._wait([child for _, child in running.values()])
                for number, (row, child) in list(running.items()):
                    if child.ended:
                        del running[number]
                        yield self._keep(self._ended(row, child, number in stopped))
                        child.close()
                    elif self._is_over(row, child):
                        stopped.add(number)
                        end_all([child], GRACE_S)
                if self._look_at_limits():
                    stopped |= running.keys() if self.out_of_time else set()
                    end_all(
                        [child for _, child in running.values()], GRACE_S, self.stop.signal_number or signal.SIGTERM
                    )
        finally:
            end_all([child for _, child in running.values()], 0.0)

    def _is_over(self, row: Row, child: Child) -> bool:
        return row.time_limit_s is not None and child.elapsed_s > row.time_limit_s + LIMIT_SLACK_S

    def _ended(self, row: Row, child: Child, out_of_time: bool) -> RowResult:
        document = parse_document(child.stdout)
        result = decide(
            row,
            child.exit_code,
            document,
            elapsed_s=child.elapsed_s,
            out_of_time=out_of_time,
            stderr_tail=child.stderr_tail,
        )
        if self.stop and result.status == "fail":
            number = self.stop.signal_number or signal.SIGINT
            result = replace(result, exit_code=128 + number, reason="interrupted in the middle of it")
        return replace(result, **self._commands_of(row))  # type: ignore[arg-type]

    def _could_not_start(self, row: Row, error: OSError) -> RowResult:
        reason = f"the command could not be started: {(error.strerror or str(error)).lower()}"
        return RowResult(row, "fail", 3, reason, "cannot_start", **self._commands_of(row))  # type: ignore[arg-type]

    def _commands_of(self, row: Row) -> dict[str, object]:
        servers = tuple(self.servers[number].command for number in row.servers if number in self.servers)
        return {"command": command_line(row.command_words(self._addresses())), "servers": servers}

    def _not_run(self, row: Row, reason: str) -> RowResult:
        return RowResult(row, "not_run", reason=reason, command=command_line(row.command_words(self._planned())))

    def _keep(self, result: RowResult) -> RowEvent:
        self.results[result.row.number] = result
        if result.status == "fail" and self.scenario.on_failure == "stop" and not self.halted:
            self.halted = f"stopped at the first failure ({result.row.name})"
        return RowEvent("finished", result.row, result)

    def _addresses(self) -> dict[int, str]:
        return {number: server.address for number, server in self.servers.items()}

    def _planned(self) -> dict[int, str]:
        return {**self.scenario.planned_addresses(), **self._addresses()}

    # --- time and signals ---

    def _look_at_limits(self) -> bool:
        """Note that the user or the clock has ended the scenario; True where one has."""
        limit_s = self.scenario.time_limit_s
        if self.stop:
            self.halted = "interrupted"
        elif limit_s is not None and self.clock() - self.started_s > limit_s:
            self.out_of_time = True
            self.halted = f"the scenario's time limit of {limit_s:g} s ran out"
        return bool(self.stop) or self.out_of_time

    def _wait(self, children: list[Child]) -> None:
        """Wait one tick, or less; servers are read too, or they would stand still once their pipes are full."""
        alive = [server.child for server in self.servers.values() if not server.child.ended]
        wait_any([*children, *alive], TICK_S)

    # --- servers ---

    def _start_server(self, row: Row, directory: Path) -> Iterator[RowEvent]:
        refused = self._refusal(row)
        if refused is not None:
            yield self._keep(refused)
            return
        yield RowEvent("started", row)
        ready = directory / f"ready-{row.number}"
        words = row.command_words(self._addresses())
        try:
            child = Child((*words, "--listen", row.listen, "--ready-file", str(ready)), self.environ)
        except OSError as error:
            yield self._keep(self._could_not_start(row, error))
            return
        deadline_s = self.clock() + READY_S
        address = ""
        while not (address := _address_in(ready)) and not child.ended:
            if self._look_at_limits() or self.clock() > deadline_s:
                end_all([child], GRACE_S)
                break
            self._wait([child])
        command = command_line((*words, "--listen", address or row.planned_address))
        if address and not child.ended:
            self.servers[row.number] = _Server(row, child, address, command)
            return
        end_all([child], 0.0)
        late = self.clock() > deadline_s or self.out_of_time
        result = self._ended(row, child, late)
        if result.status == "pass":
            # It ended, and well, before anybody could come.
            result = replace(
                result, status="fail", exit_code=1, reason="the server ended at once", error_code="server_ended"
            )
        child.close()
        yield self._keep(replace(result, command=command))

    def _end_servers(self) -> Iterator[RowEvent]:
        """End every server and judge how it ended: well, unless it died before it was told to."""
        died = {number for number, server in self.servers.items() if server.child.ended}
        end_all([server.child for server in self.servers.values()], GRACE_S)
        for number, server in self.servers.items():
            child = server.child
            document = parse_document(child.stdout)
            result = decide(
                server.row,
                child.exit_code,
                document,
                elapsed_s=child.elapsed_s,
                stderr_tail=child.stderr_tail,
            )
            if number in died and child.exit_code < 0:
                result = replace(
                    result, reason=f"{result.reason}, in the middle of the scenario", error_code="server_died"
                )
            child.close()
            yield self._keep(replace(result, command=server.command))


@contextmanager
def _directory() -> Iterator[Path]:
    """Give a directory for ready files. HostError where there is no room for one."""
    try:
        directory = tempfile.TemporaryDirectory(prefix="p2prw-run-", ignore_cleanup_errors=True)
    except OSError as error:
        raise HostError(
            f"no directory for temporary files: {(error.strerror or str(error)).lower()}",
            why="servers write their address there",
            fix="TMPDIR=/var/tmp p2prw run ...",
            code="no_temporary_directory",
            errno=error.errno,
        ) from error
    with directory as name:
        yield Path(name)


def _address_in(ready: Path) -> str:
    try:
        return ready.read_text("utf-8").strip()
    except OSError:
        return ""
