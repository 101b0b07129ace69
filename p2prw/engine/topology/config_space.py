"""PCI configuration space: what kind of port it is, and what its ACS control register redirects. Pure.

The bytes come from a file that anybody may have written: whatever they are, the answer is a value, and what cannot be
known says why. Sources: PCI Local Bus 3.0 6.7 (capability list), PCI Express Base 7.9.1 (extended capabilities) and
7.7.11 (ACS), include/uapi/linux/pci_regs.h, drivers/pci/pci-sysfs.c (pci_read_config: 64 bytes without CAP_SYS_ADMIN).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

UNPRIVILEGED_BYTES = 64
UNPRIVILEGED_READS = (UNPRIVILEGED_BYTES, 128)
"""128 for a CardBus bridge."""
CONVENTIONAL_BYTES = 256
EXTENDED_BYTES = 4096

# include/uapi/linux/pci_regs.h
PCI_STATUS_CAP_LIST = 0x10
PCI_CAP_ID_EXP = 0x10
PCI_EXT_CAP_ID_ACS = 0x0D

ACS_BITS = {
    0x01: "SV",
    0x02: "TB",
    0x04: "RR",
    0x08: "CR",
    0x10: "UF",
    0x20: "EC",
    0x40: "DT",
}
"""Bits of the ACS capability and control registers, lowest first, by their short names."""
ACS_REDIRECT_MASK = 0x2C
"""RR, CR, EC: what pci_bridge_has_acs_redir (drivers/pci/p2pdma.c) takes for a redirect."""


class PortType(StrEnum):
    """PCI Express device/port type (PCI_EXP_FLAGS_TYPE)."""

    ENDPOINT = "endpoint"
    LEGACY_ENDPOINT = "legacy endpoint"
    ROOT_PORT = "root port"
    UPSTREAM = "switch upstream port"
    DOWNSTREAM = "switch downstream port"
    PCIE_TO_PCI = "PCIe-to-PCI bridge"
    PCI_TO_PCIE = "PCI-to-PCIe bridge"
    ROOT_ENDPOINT = "root complex integrated endpoint"
    EVENT_COLLECTOR = "root complex event collector"
    CONVENTIONAL = "conventional PCI"
    """No PCI Express capability at all."""


_TYPES = {
    0x0: PortType.ENDPOINT,
    0x1: PortType.LEGACY_ENDPOINT,
    0x4: PortType.ROOT_PORT,
    0x5: PortType.UPSTREAM,
    0x6: PortType.DOWNSTREAM,
    0x7: PortType.PCIE_TO_PCI,
    0x8: PortType.PCI_TO_PCIE,
    0x9: PortType.ROOT_ENDPOINT,
    0xA: PortType.EVENT_COLLECTOR,
}


class Unreadable(StrEnum):
    """Why something in configuration space is not known; the value is the sentence for people."""

    NEEDS_ROOT = "only the first 64 bytes of its configuration space may be read without CAP_SYS_ADMIN"
    MISSING = "its configuration space cannot be read"
    NO_ANSWER = "its configuration space reads 0xff: in D3cold, in reset, or gone from the bus"
    TRUNCATED = "its configuration space ends in the middle of a capability list"
    LOOP = "its capability list loops"
    GARBLED = "its capability list points outside the configuration space"
    ALL_ONES = "its ACS control register reads 0xffff"


@dataclass(frozen=True, slots=True)
class Acs:
    """The ACS registers of one function."""

    capability: int
    control: int

    @property
    def redirects(self) -> bool:
        """Peer-to-peer requests or completions go up to the root complex."""
        return bool(self.control & ACS_REDIRECT_MASK)

    @property
    def cleared(self) -> int:
        """The control register as `pci=disable_acs_redir=` leaves it."""
        return self.control & ~ACS_REDIRECT_MASK

    def enabled(self) -> tuple[str, ...]:
        """Return the names of the bits that are on."""
        return tuple(name for bit, name in ACS_BITS.items() if self.control & bit)

    def supported(self) -> tuple[str, ...]:
        """Return the names of the bits that could be on."""
        return tuple(name for bit, name in ACS_BITS.items() if self.capability & bit)


@dataclass(frozen=True, slots=True)
class ConfigSpace:
    """What was found. `acs` None and `acs_unknown` None: there is no ACS capability, and that is certain."""

    length_bytes: int
    port_type: PortType | None
    type_unknown: Unreadable | None
    acs: Acs | None
    acs_unknown: Unreadable | None


def parse_config(raw: bytes | None, size_bytes: int | None = None) -> ConfigSpace:
    """Return what the bytes say; `size_bytes` is the file's size where that is known (256 or 4096).

    A short read of a longer file never means "no ACS".
    """
    if not raw:
        return _unknown(0, Unreadable.MISSING)
    # A VF's vendor and device read 0xffff by specification; the rest of its header does not.
    if raw[:UNPRIVILEGED_BYTES].count(0xFF) == len(raw[:UNPRIVILEGED_BYTES]):
        return _unknown(len(raw), Unreadable.NO_ANSWER)
    port_type, type_unknown = _port_type(raw)
    acs, acs_unknown = _acs(raw, size_bytes)
    return ConfigSpace(len(raw), port_type, type_unknown, acs, acs_unknown)


def _unknown(length_bytes: int, why: Unreadable) -> ConfigSpace:
    return ConfigSpace(length_bytes, None, why, None, why)


def _short(raw: bytes) -> Unreadable:
    return Unreadable.NEEDS_ROOT if len(raw) in UNPRIVILEGED_READS else Unreadable.TRUNCATED


def _port_type(raw: bytes) -> tuple[PortType | None, Unreadable | None]:
    if len(raw) < UNPRIVILEGED_BYTES:
        return None, Unreadable.TRUNCATED
    if not raw[0x06] & PCI_STATUS_CAP_LIST:
        return PortType.CONVENTIONAL, None
    seen: set[int] = set()
    position = raw[0x34] & 0xFC
    while position:
        if position in seen:
            return None, Unreadable.LOOP
        seen.add(position)
        if position < UNPRIVILEGED_BYTES:
            return None, Unreadable.GARBLED
        if position + 4 > len(raw):
            return None, _short(raw)
        if raw[position] == PCI_CAP_ID_EXP:
            kind = _TYPES.get(raw[position + 2] >> 4)
            return (kind, None) if kind else (None, Unreadable.GARBLED)
        position = raw[position + 1] & 0xFC
    return PortType.CONVENTIONAL, None


def _acs(raw: bytes, size_bytes: int | None) -> tuple[Acs | None, Unreadable | None]:
    if size_bytes == CONVENTIONAL_BYTES or (size_bytes is None and len(raw) == CONVENTIONAL_BYTES):
        # No extended configuration space, or none that the kernel reaches: it finds no ACS either.
        return None, None
    if len(raw) < CONVENTIONAL_BYTES:
        return None, _short(raw)
    seen: set[int] = set()
    position = CONVENTIONAL_BYTES
    while position >= CONVENTIONAL_BYTES:
        if position in seen:
            return None, Unreadable.LOOP
        seen.add(position)
        if position + 8 > len(raw):
            return None, Unreadable.GARBLED if position + 8 > EXTENDED_BYTES else Unreadable.TRUNCATED
        header = int.from_bytes(raw[position : position + 4], "little")
        if header in (0, 0xFFFFFFFF):
            return None, None
        if header & 0xFFFF == PCI_EXT_CAP_ID_ACS:
            capability = int.from_bytes(raw[position + 4 : position + 6], "little")
            control = int.from_bytes(raw[position + 6 : position + 8], "little")
            return (None, Unreadable.ALL_ONES) if control == 0xFFFF else (Acs(capability, control), None)
        position = header >> 20 & 0xFFC
    return None, None
