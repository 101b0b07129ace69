"""stdout for machines: one `p2prw/1` document, or one JSON object a line (started, progress, warning, result)."""

from __future__ import annotations

from typing import Any

from p2prw.engine.events import Progress
from p2prw.engine.model import TransferRequest, TransferResult
from p2prw.reporters.document import dump, dump_pretty, transfer_document
from p2prw.reporters.output import Output

STREAM_SCHEMA = "p2prw-stream/1"


class JsonPrinter:
    """Exactly one document, at the end."""

    def __init__(self, stdout: Output) -> None:
        self.stdout = stdout

    def started(self, request: TransferRequest) -> None:
        """Say nothing."""

    def progress(self, progress: Progress) -> None:
        """Say nothing."""

    def warning(self, text: str) -> None:
        """Say nothing: the document has `warnings`."""

    def finished(self, result: TransferResult) -> None:
        """Print the document."""
        self.stdout.raw(dump_pretty(transfer_document(result)))

    def close(self) -> None:
        """Nothing to close."""


class StreamPrinter:
    """NDJSON; the last line's `result` is the document of `--json`."""

    def __init__(self, stdout: Output) -> None:
        self.stdout = stdout

    def event(self, event: str, **members: Any) -> None:
        """Print one line."""
        self.stdout.raw(dump({"schema": STREAM_SCHEMA, "event": event, **members}))

    def started(self, request: TransferRequest) -> None:
        """Print what is about to be done; the token is never part of it."""
        self.event(
            "started",
            command=request.operation.value,
            peer=str(request.peer),
            region=request.region,
            region_offset_bytes=request.region_offset,
            memory=request.memory.text or request.memory.kind,
            size_bytes=request.size_bytes,
            device=request.device,
        )

    def progress(self, progress: Progress) -> None:
        """Print one sample."""
        self.event(
            "progress",
            phase=progress.phase,
            bytes=progress.bytes_done,
            size_bytes=progress.bytes_total,
            elapsed_s=progress.elapsed_s,
            bw_bytes_per_s=progress.bw_bytes_per_s,
            wqes_in_flight=progress.wqes_in_flight,
            wqes_total=progress.wqes_total,
            route=progress.route,
            retries=progress.retries,
            reconnects=progress.reconnects,
        )

    def warning(self, text: str) -> None:
        """Print one warning."""
        self.event("warning", text=text)

    def finished(self, result: TransferResult) -> None:
        """Print the last line."""
        self.event("result", result=transfer_document(result))

    def close(self) -> None:
        """Nothing to close."""
