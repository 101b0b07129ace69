"""Verification: digests of the final memory at both ends, by the end that owns it, compared block by block.

A mismatch is digested once more. If a digest moved, the memory is `unstable` (somebody else writes there); if not, the
first bad block is fetched, the first bad byte is named and what it looks like is classified (`diagnose`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import NamedTuple

from p2prw.engine.ahead import SourceAhead
from p2prw.engine.control.channel import Channel
from p2prw.engine.control.messages import DIGESTS_PER_PAGE, Digest, Digests
from p2prw.engine.diagnose import Diagnosis, classify
from p2prw.engine.digest import ALGORITHM, BLOCK_BYTES, TotalDigest, digest_block, digest_blocks
from p2prw.engine.memory.base import MemorySource
from p2prw.engine.model import Operation, VerifyReport
from p2prw.errors import HostError, RemoteProtocolError

UNVERIFIED = VerifyReport(status="unverified")


@dataclass(frozen=True, slots=True)
class Previous:
    """What memory held before the transfer."""

    bytes_at: Callable[[int, int], bytes]
    """(offset, length), in the transfer."""
    why: str | None = None
    """What to say where these bytes are found instead of the data."""


class BadBlock(NamedTuple):
    """A block whose digests differ."""

    offset: int
    local: str
    remote: str


def receive_digests(
    expect: Callable[[str], Digests],
    lease: str,
    offset: int,
    length: int,
    *,
    read_remote: Callable[[int, int], bytes | None],
    tick: Callable[[], None],
) -> tuple[list[str], str]:
    """Return the digests that answer one `Digest`, and how the owner, or we, came to them.

    RemoteProtocolError for pages that answer something else; HostError where nobody can read the peer's memory.
    """
    expected, method = -(-length // BLOCK_BYTES), "owner-cpu"
    digests: list[str] = []
    while len(digests) < expected:
        page = expect("digests")
        its_turn = page.lease == lease and page.offset == offset + len(digests) * BLOCK_BYTES
        if its_turn and page.method == "client-read-back":
            return _read_back(offset, length, read_remote, tick), page.method
        if not its_turn or not page.digests:
            raise RemoteProtocolError("a page of digests that was not asked for", code="unexpected_message")
        digests += page.digests
        if page.method != "owner-cpu":
            # One word for both ends: the weaker one.
            method = page.method
    if len(digests) != expected:
        raise RemoteProtocolError("more digests than blocks", code="unexpected_message")
    return digests, method


def _read_back(
    offset: int, length: int, read_remote: Callable[[int, int], bytes | None], tick: Callable[[], None]
) -> list[str]:
    """Digest what our own RDMA READs bring back, where the owner cannot read its memory."""
    digests = []
    for start in range(offset, offset + length, BLOCK_BYTES):
        block = read_remote(start, min(BLOCK_BYTES, offset + length - start))
        if block is None:
            raise HostError(
                "the peer's memory cannot be verified",
                why="its owner cannot read it, and it could not be read back over RDMA (access=w?)",
                fix="--no-verify, or serve it with access=rw",
                code="cannot_verify",
                side="remote",
            )
        digests.append(digest_block(block))
        tick()
    return digests


@dataclass(slots=True)
class Verifier:
    """Compares [0, length) of a lease with the same bytes of local memory. Drive `run()`; it returns the report."""

    channel: Channel
    lease: str
    operation: Operation
    local: MemorySource
    length_bytes: int
    clock: Callable[[], float]
    expect: Callable[[str], Digests]
    """Waits for one page of digests; the argument names the wait."""
    read_remote: Callable[[int, int], bytes | None]
    """(offset, length) -> the peer's bytes by RDMA READ; None where the keys do not allow it."""
    tick: Callable[[], None]
    """Called between blocks: keeps the device going and looks at stop and time limit."""
    previous: tuple[Previous, ...] = ()
    """What the sink, or a ring on the way, held before, where that is known: bytes that never arrived show it."""
    reverse: bool = False
    """The peer's bytes are those that it READ from us (`Digest.reverse`)."""
    ahead: SourceAhead | None = None
    """Digests of the source that were made before, or are on their way."""
    blocks_done: int = 0
    method: str = "owner-cpu"
    """What the report says: how the owners came to their bytes."""

    def run(self) -> Generator[int, None, VerifyReport]:
        """Yield the bytes compared so far, now and then; return what was found.

        Holds one page of digests at a time, and those that were made ahead.
        """
        started_s = self.clock()
        self.method = self.local.digest_method
        local_total, remote_total = TotalDigest(), TotalDigest()
        bad_blocks, first_bad = 0, None
        ahead = self._made_ahead()
        stride = DIGESTS_PER_PAGE * BLOCK_BYTES
        for offset in range(0, self.length_bytes, stride):
            length = min(stride, self.length_bytes - offset)
            made = ahead[offset // BLOCK_BYTES : (offset + stride) // BLOCK_BYTES]
            local_page, remote_page = (made, []) if self.operation is Operation.WRITE else ([], made)
            asked = min(len(remote_page) * BLOCK_BYTES, length)
            if asked < length:
                self._ask(offset + asked, length - asked)
            self.blocks_done += len(local_page)
            begin = min(len(local_page) * BLOCK_BYTES, length)
            for digest in digest_blocks(self.local, offset + begin, length - begin, BLOCK_BYTES):
                local_page.append(digest)
                self.blocks_done += 1
                if self.blocks_done % 8 == 0:
                    self.tick()
                    yield min(self.blocks_done * BLOCK_BYTES, self.length_bytes)
            remote_page += self._remote_digests(offset + asked, length - asked)
            local_total.add(local_page)
            remote_total.add(remote_page)
            if local_page == remote_page:
                continue
            for index, pair in enumerate(zip(local_page, remote_page, strict=True)):
                if pair[0] != pair[1]:
                    bad_blocks += 1
                    first_bad = first_bad or BadBlock(offset + index * BLOCK_BYTES, *pair)
        report = VerifyReport(
            status="verified",
            method=self.method,
            algorithm=ALGORITHM,
            block_bytes=BLOCK_BYTES,
            blocks=self.blocks_done,
            blocks_ahead=len(self.ahead.digests) if self.ahead is not None else 0,
            elapsed_s=self.clock() - started_s,
            local_digest=local_total.hexdigest(),
            remote_digest=remote_total.hexdigest(),
        )
        return report if first_bad is None else self._diagnose(report, first_bad, bad_blocks)

    def _made_ahead(self) -> list[str]:
        """Return the digests of the source's first blocks, with those that the peer still owes."""
        if self.ahead is None:
            return []
        begin = len(self.ahead.digests) * BLOCK_BYTES
        owed = self._remote_digests(begin, self.ahead.asked_bytes - begin) if begin < self.ahead.asked_bytes else []
        return self.ahead.digests + owed

    def _ask(self, offset: int, length: int) -> None:
        self.channel.send(Digest(self.lease, offset, length, BLOCK_BYTES, reverse=self.reverse))

    def _remote_digests(self, offset: int, length: int) -> list[str]:
        digests, method = receive_digests(
            self.expect, self.lease, offset, length, read_remote=self.read_remote, tick=self.tick
        )
        if method != "owner-cpu":
            self.method = method
        return digests

    def _diagnose(self, report: VerifyReport, bad: BadBlock, bad_blocks: int) -> VerifyReport:
        offset = bad.offset
        length = min(BLOCK_BYTES, self.length_bytes - offset)
        local_again = next(iter(digest_blocks(self.local, offset, length, BLOCK_BYTES)))
        self._ask(offset, length)
        remote_again = self._remote_digests(offset, length)[0]
        found = f"{bad_blocks} of {report.blocks} blocks differ"
        if (local_again, remote_again) != (bad.local, bad.remote):
            side = "local" if local_again != bad.local else "remote"
            return _with(
                report,
                status="unstable",
                first_bad_offset=offset,
                why=f"{found}; the {side} bytes of the first one changed between two digests: "
                "something else writes to this memory",
            )
        remote = self.read_remote(offset, length)
        if remote is None or len(remote) != length:
            return _with(
                report,
                status="mismatch",
                first_bad_offset=offset,
                classification="corrupt",
                why=f"{found}; the block at this offset could not be read back to look closer",
            )
        local = bytearray(length)
        self.local.read_at(offset, memoryview(local))
        sent, arrived = (bytes(local), remote) if self.operation is Operation.WRITE else (remote, bytes(local))
        diagnosis = self._classify(sent, arrived, offset)
        if diagnosis.classification == "identical":
            # The digests differ, the bytes fetched by RDMA do not: CPU and device see different bytes.
            return _with(
                report,
                status="mismatch",
                first_bad_offset=offset,
                classification="incoherent",
                why=f"{found}, yet the bytes read over RDMA are right: CPU and device see different bytes",
            )
        return _with(
            report,
            status="mismatch",
            first_bad_offset=diagnosis.first_bad_offset,
            classification=diagnosis.classification,
            why=f"{found}; {diagnosis.why}",
        )

    def _classify(self, sent: bytes, arrived: bytes, offset: int) -> Diagnosis:
        for previous in self.previous:
            before = previous.bytes_at(offset, len(sent))
            # Where the peer's copy came back through the same ring as the data, both may be what the ring held before.
            against = bytes(len(sent)) if sent == arrived == before else sent
            diagnosis = classify(against, arrived, offset_bytes=offset, previous=before)
            if diagnosis.classification == "never_arrived":
                return replace(diagnosis, why=f"{diagnosis.why}; {previous.why}") if previous.why else diagnosis
        return classify(sent, arrived, offset_bytes=offset)


def _with(report: VerifyReport, **changes: object) -> VerifyReport:
    return replace(report, **changes)  # type: ignore[arg-type]
