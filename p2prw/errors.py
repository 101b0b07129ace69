"""Every error a user can meet: what happened, why, and what to type; each class carries its exit code.

Nothing here prints. `p2prw.cli` is the one place where an exception becomes an exit code.

    P2prwError
    ├─ RequestError      2    a bad option, a bad YAML file, a size that does not fit
    ├─ HostError         3    no device, memory or file; cannot map, register, resolve or connect; no right
    ├─ TransferError     1    a completion error, a peer lost after connect, a deadline inside a transfer
    ├─ VerifyError       4    the bytes that arrived are not the bytes that were sent
    ├─ ThresholdError    5    a figure the user asked for was missed
    ├─ TimeLimitError    6    --time-limit ran out
    ├─ PeerRefusedError  7    the peer refused, speaks another version, or is no p2prw at all (7 too: RemoteAccessError)
    ├─ InterruptedTransfer  130 / 143    SIGINT or SIGTERM
    └─ ProtocolError     7    the rules of a protocol were broken
       ├─ LocalProtocolError    by us: a defect in p2prw
       └─ RemoteProtocolError   by the peer
"""

from __future__ import annotations

import errno as errno_module

# Python lists one name a number and picks ENOTSUP; the kernel, and whoever searches for it, says EOPNOTSUPP.
_ERRNO_NAMES = {**errno_module.errorcode, errno_module.EOPNOTSUPP: "EOPNOTSUPP"}


def errno_name(number: int) -> str:
    """Return the kernel's name of an errno ("ENOMEM"), or its digits where there is none."""
    return _ERRNO_NAMES.get(number, str(number))


class P2prwError(Exception):
    """What happened, why, and what to type next.

    `code` is a stable snake_case word for machines; `side` is "local" or "remote"; `errno` is the
    kernel's name for it ("ENOMEM") and `wc_status` the work completion's ("REM_ACCESS_ERR"), where known.
    """

    exit_code = 1
    default_code = "error"
    more: tuple[P2prwError, ...] = ()
    """Others that were found with it, as in a file with several mistakes."""
    unshown = 0
    """How many more there are."""

    def __init__(
        self,
        what: str,
        *,
        why: str | None = None,
        fix: str | None = None,
        code: str | None = None,
        side: str = "local",
        errno: int | str | None = None,
        wc_status: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.code = code or self.default_code
        self.side = side
        self.errno = errno_name(errno) if isinstance(errno, int) else errno
        self.wc_status = wc_status

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"why:  {self.why}")
        if self.fix:
            lines.append(f"try:  {self.fix}")
        return "\n  ".join(lines)


class RequestError(P2prwError):
    """The request itself is wrong: nothing was opened."""

    exit_code = 2
    default_code = "usage"


class HostError(P2prwError):
    """This host (or the way to the peer) cannot do it."""

    exit_code = 3
    default_code = "environment"


class TransferError(P2prwError):
    """Bytes were on their way and did not all arrive."""

    exit_code = 1
    default_code = "transfer_failed"


class CompletionError(TransferError):
    """A work request completed with an error status."""

    default_code = "completion_error"


class RemoteAccessError(CompletionError):
    """The peer's device refused a key, a range or a right: a refusal as much as one in words."""

    exit_code = 7
    default_code = "remote_access"


class PeerGone(TransferError):
    """The peer went away after the connection stood."""

    default_code = "peer_lost"


class DeadlineExceeded(TransferError):
    """A named wait ran out."""

    default_code = "deadline"


class VerifyError(P2prwError):
    """The final memory does not hold the bytes that were sent."""

    exit_code = 4
    default_code = "verify_mismatch"


class ThresholdError(P2prwError):
    """A figure the user asked for was missed."""

    exit_code = 5
    default_code = "threshold_missed"


class TimeLimitError(P2prwError):
    """`--time-limit` ran out."""

    exit_code = 6
    default_code = "time_limit"


class PeerRefusedError(P2prwError):
    """The peer said no, with a reason."""

    exit_code = 7
    default_code = "refused"


class InterruptedTransfer(P2prwError):
    """SIGINT (130) or SIGTERM (143) arrived."""

    exit_code = 130
    default_code = "interrupted"

    def __init__(self, what: str = "interrupted", *, signal_number: int = 2) -> None:
        super().__init__(what, code="interrupted" if signal_number == 2 else "terminated")
        self.exit_code = 128 + signal_number


class ProtocolError(P2prwError):
    """A rule of the control protocol or of RoCEv2 was broken."""

    exit_code = 7
    default_code = "protocol"


class LocalProtocolError(ProtocolError):
    """We broke the rule: a defect in p2prw."""

    exit_code = 1
    default_code = "local_protocol"


class RemoteProtocolError(ProtocolError):
    """The peer broke the rule."""

    default_code = "remote_protocol"
    default_why = "the other side does not keep to p2prw's protocol: another program, another release, or a defect"
    default_fix = "p2prw version (on both sides); the same release at both ends, and the right port"

    def __init__(self, what: str, *, why: str | None = None, fix: str | None = None, code: str | None = None) -> None:
        super().__init__(what, why=why or self.default_why, fix=fix or self.default_fix, code=code, side="remote")


# docs/contract.md section 3: "The worst wins".
SEVERITY = (130, 143, 4, 1, 7, 3, 6, 5, 2, 0)


def worst_exit_code(codes: list[int]) -> int:
    """Return the exit code that wins when several things went wrong; 0 when nothing did."""
    return min(codes, key=lambda code: SEVERITY.index(code) if code in SEVERITY else 3, default=0)
