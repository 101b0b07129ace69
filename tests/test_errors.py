"""Errors: exit codes as the contract has them, texts in one order, the worst wins."""

from __future__ import annotations

import errno

import pytest

from p2prw import errors
from p2prw.errors import HostError, InterruptedTransfer, P2prwError, RemoteProtocolError, worst_exit_code


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (errors.RequestError, 2),
        (errors.HostError, 3),
        (errors.TransferError, 1),
        (errors.CompletionError, 1),
        (errors.PeerGone, 1),
        (errors.DeadlineExceeded, 1),
        (errors.VerifyError, 4),
        (errors.ThresholdError, 5),
        (errors.TimeLimitError, 6),
        (errors.PeerRefusedError, 7),
        (errors.RemoteProtocolError, 7),
    ],
)
def test_exit_codes_are_the_contracts(kind, exit_code):
    error = kind("what")
    assert error.exit_code == exit_code and error.code.islower() and isinstance(error, P2prwError)


def test_what_why_try_stand_in_this_order_and_the_fix_is_last():
    error = HostError("cannot map", why="no right", fix="run as root", errno=errno.EACCES)
    assert str(error).splitlines() == ["cannot map", "  why:  no right", "  try:  run as root"]
    assert error.errno == "EACCES"
    assert HostError("x", errno=95).errno == "EOPNOTSUPP", "as the kernel calls it"
    assert HostError("x", errno=4711).errno == "4711"


def test_signals_are_128_plus_n():
    assert InterruptedTransfer(signal_number=2).exit_code == 130
    assert InterruptedTransfer(signal_number=15).exit_code == 143
    assert InterruptedTransfer(signal_number=15).code == "terminated"


def test_a_remote_protocol_error_is_the_other_sides():
    assert RemoteProtocolError("x").side == "remote"


@pytest.mark.parametrize(
    ("codes", "worst"),
    [([], 0), ([0, 0], 0), ([5, 6], 6), ([3, 7, 5], 7), ([1, 7], 1), ([4, 1], 4), ([143, 4], 143), ([0, 2], 2)],
)
def test_the_worst_wins(codes, worst):
    assert worst_exit_code(codes) == worst
