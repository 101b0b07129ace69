"""What can go wrong before and around a guest; each class carries the exit code of `lab/run`.

The codes are those of scripts/setup.sh (70, 75) and of timeout(1) (124), so that a caller can tell "the network" from
"this machine" from "the command".
"""

from __future__ import annotations


class LabError(Exception):
    """The lab itself failed, not the command in the guest."""

    exit_code = 70


class FetchError(LabError):
    """Something could not be had over the network; trying again later may help."""

    exit_code = 75

    def __init__(self, what: str) -> None:
        super().__init__(f"could not fetch the lab: {what}")


class MissingError(LabError):
    """This machine lacks something that the lab must not, or cannot, install; the text says what to type."""


class TopologyError(LabError):
    """A topology file is wrong, or there is none of that name."""

    exit_code = 2


class GuestTimeout(LabError):
    """The guest ran past its time and was killed."""

    exit_code = 124
