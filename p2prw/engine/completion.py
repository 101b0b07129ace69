"""What an error completion means to the person at the keyboard: a code, a reason, and what to type. Pure."""

from __future__ import annotations

from p2prw.engine.model import Completion, WcStatus
from p2prw.errors import CompletionError, RemoteAccessError

_WHY = {
    WcStatus.REM_ACCESS_ERR: (
        "the peer's device refused the key, the range or the right",
        "look at the server's output; has the lease been released, or the server restarted?",
    ),
    WcStatus.RETRY_EXC_ERR: (
        "no acknowledgement came: peer gone, packets lost or blocked, or their ICRC does not match",
        "check that UDP port 4791 passes in both directions without address translation; --retry-cnt, --timeout",
    ),
    WcStatus.RNR_RETRY_EXC_ERR: (
        "the peer had no receive posted for too long",
        "--rnr-retry, or look at the load of the peer",
    ),
    WcStatus.REM_INV_REQ_ERR: (
        "the peer's device called the request invalid",
        "lower --chunk or --max-rd-atomic; see the server's output",
    ),
    WcStatus.LOC_PROT_ERR: ("a local key or range was wrong", "this is a defect in p2prw: run again with --debug"),
}

_CODES = {
    WcStatus.REM_ACCESS_ERR: "remote_access",
    WcStatus.REM_INV_REQ_ERR: "remote_invalid_request",
    WcStatus.REM_OP_ERR: "remote_operation",
    WcStatus.RETRY_EXC_ERR: "retry_exceeded",
    WcStatus.RNR_RETRY_EXC_ERR: "rnr_retry_exceeded",
    WcStatus.LOC_PROT_ERR: "local_protection",
    WcStatus.WR_FLUSH_ERR: "flushed",
}


def completion_error(completion: Completion, bytes_done: int, total_bytes: int) -> CompletionError:
    """Return the error of a work completion that is not SUCCESS; names as `enum ibv_wc_status` has them."""
    status = completion.status
    why, fix = _WHY.get(status, ("the device reported it", "run again with --debug and --pcap FILE"))
    cls = RemoteAccessError if status is WcStatus.REM_ACCESS_ERR else CompletionError
    return cls(
        f"work request {completion.wr_id} completed with {status.name} after {bytes_done} of {total_bytes} bytes",
        why=why,
        fix=fix,
        code=_CODES.get(status, "completion_error"),
        wc_status=status.name,
        side="remote" if status.name.startswith("REM_") else "local",
    )
