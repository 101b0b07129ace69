"""Golden machines (tests/golden): what each one's pairs come to. The table below is written by hand, from the rules.

`expected.json` beside each machine holds the whole verdicts; P2PRW_UPDATE_GOLDEN=1 writes them (and the invented
machines themselves) again. Collected machines are never rewritten.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2prw.engine.topology.endpoints import find_client, list_clients, list_providers
from p2prw.engine.topology.pairs import Pair, Topology
from p2prw.engine.topology.snapshot import FILE_NAME, dump_machine, open_tree

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
MACHINES = sorted(path.parent.name for path in GOLDEN.glob(f"*/{FILE_NAME}"))
UPDATE = bool(os.environ.get("P2PRW_UPDATE_GOLDEN"))

INTEL = "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nflags\t\t: fpu vme sse2\n"
AMD = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nflags\t\t: fpu vme sse2\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
BUS, HOST, NO, UNKNOWN, CPU = "bus_address", "through_host_bridge", "not_supported", "unknown", "no_dma_path"
ON = 0x1D
MANY = 20

# (machine, client, memory) -> verdict, distance, codes of the reasons that must be there.
EXPECTED: list[tuple[str, str, str, str, int | None, set[str]]] = [
    ("one-switch-gpu-nic", "mlx5_0", "0000:04:00.0", BUS, 4, {"common_bridge"}),
    ("one-switch-gpu-nic", "mlx5_1", "0000:04:00.0", NO, 6, {"no_common_bridge", "host_bridge_not_listed"}),
    ("one-switch-gpu-nic", "rxe0", "0000:04:00.0", CPU, None, {"cpu_moves"}),
    ("switch-with-acs", "mlx5_0", "0000:04:00.0", NO, 4, {"acs_redirect", "host_bridge_not_listed"}),
    ("switch-with-acs-skylake", "mlx5_0", "0000:19:00.0", HOST, 4, {"acs_redirect", "host_bridge_listed"}),
    ("unprivileged", "mlx5_0", "0000:04:00.0", UNKNOWN, 4, {"acs_unknown", "acs_decides"}),
    ("skylake-two-sockets", "mlx5_0", "0000:31:00.0", HOST, 4, {"host_bridge_listed"}),
    ("skylake-two-sockets", "mlx5_0", "0000:86:00.0", HOST, 4, {"host_bridge_listed"}),
    ("sandy-bridge-two-sockets", "nvme0", "nvme1", HOST, 4, {"host_bridge_listed"}),
    ("sandy-bridge-two-sockets", "nvme0", "nvme2", NO, 4, {"same_host_bridge_only"}),
    ("haswell", "nvme0", "nvme1", HOST, 4, {"host_bridge_listed"}),
    ("ice-lake", "nvme0", "nvme1", HOST, 4, {"host_bridge_listed"}),
    ("ice-lake", "mlx5_0", "nvme1", HOST, 4, {"host_bridge_listed"}),
    ("sapphire-rapids-dsa", "mlx5_0", "nvme0", NO, 4, {"host_bridge_not_listed"}),
    ("granite-rapids-dsa-7.2", "mlx5_0", "nvme0", HOST, 4, {"host_bridge_listed"}),
    ("epyc", "mlx5_0", "nvme0", HOST, 4, {"amd_zen"}),
    ("epyc", "mlx5_0", "nvme1", HOST, 4, {"amd_zen"}),
    ("arm-server", "mlx5_0", "nvme0", NO, 6, {"no_common_bridge", "host_bridge_not_listed"}),
    ("arm-server", "mlx5_0", "nvme1", BUS, 4, {"common_bridge"}),
    ("vf-pair", "mlx5_2", "0000:01:00.3", BUS, 2, {"common_bridge"}),
    ("vf-pair", "mlx5_0", "0000:01:00.3", BUS, 2, {"common_bridge"}),
    ("vf-pair", "mlx5_2", "0000:02:00.0", NO, 4, {"no_common_bridge"}),
    ("pcie-to-pci", "0000:03:04.0", "0000:03:05.0", BUS, 2, {"common_bridge"}),
    ("pcie-to-pci", "mlx5_0", "0000:03:05.0", NO, 5, {"no_common_bridge"}),
    ("vmd", "nvme0", "nvme1", NO, 4, {"no_common_bridge", "host_bridge_not_listed"}),
    ("vmd", "nvme0", "nvme2", NO, 4, {"no_common_bridge"}),
    ("d3cold", "mlx5_0", "0000:04:00.0", UNKNOWN, 4, {"acs_unknown"}),
    ("unreadable-config", "mlx5_0", "0000:04:00.0", UNKNOWN, 4, {"acs_unknown"}),
    ("capability-loop", "mlx5_0", "0000:04:00.0", UNKNOWN, 4, {"acs_unknown"}),
    ("truncated-config", "mlx5_0", "0000:04:00.0", UNKNOWN, 4, {"acs_unknown"}),
    ("vanishing", "mlx5_0", "0000:04:00.0", UNKNOWN, None, {"gone"}),
    ("garbled", "mlx5_0", "0000:04:00.0", BUS, 4, {"common_bridge"}),
    ("lab-iommu-acs", "04:00.0", "p2pmem:03:00.0", BUS, 4, {"common_bridge", "guest_iommu"}),
    ("lab-iommu-acs", "06:00.1", "p2pmem:06:00.0", NO, 2, {"acs_redirect", "host_bridge_not_listed"}),
    ("firecracker", "eth0", "0000:00:02.0", HOST, 2, {"amd_zen"}),
]  # fmt: skip


def invented(builder: Any) -> dict[str, Any]:
    """Return the invented machines; ids are real where a rule asks for them, the rest is made up."""
    made: dict[str, Any] = {}

    def new(name: str, note: str, cpuinfo: str = INTEL, kernel: str = "6.17.0") -> Any:
        made[name] = builder(cpuinfo, kernel, f"{note} Hand made.")
        return made[name]

    def one_switch(machine: Any, first: tuple[int, int] = (0x8086, 0x3E30), **switch: Any) -> Any:
        machine.root_bus("pci0000:00", first)
        left, right = machine.switch("0000:01:00.0", machine.port("0000:00:01.0", "pci0000:00", acs=0), 2, **switch)
        machine.nic("0000:03:00.0", left, "mlx5_0")
        machine.gpu("0000:04:00.0", right)
        return machine

    machine = one_switch(new("one-switch-gpu-nic", "A workstation: NIC and GPU under one switch, a second NIC beside."))
    machine.nic("0000:07:00.0", machine.port("0000:00:02.0", "pci0000:00", acs=0), "mlx5_1")
    machine.tree["sys/class/infiniband"]["rxe0"] = {"link": "sys/devices/virtual/infiniband/rxe0"}
    machine.tree["sys/devices/virtual/infiniband/rxe0"] = {"node_type": "1: CA"}

    one_switch(new("switch-with-acs", "The same with an IOMMU: the kernel set ACS at the switch's ports."), acs=ON)

    machine = new("switch-with-acs-skylake", "ACS at the ports of a switch, below a Skylake-E root port.")
    machine.root_bus("pci0000:16", (0x8086, 0x2030), kind="root port", code=0x060400)
    left, right = machine.switch("0000:17:00.0", "0000:16:00.0", 2, acs=ON)
    machine.nic("0000:1a:00.0", left, "mlx5_0")
    machine.gpu("0000:19:00.0", right)

    machine = one_switch(new("unprivileged", "What a user without CAP_SYS_ADMIN sees: 64 bytes of 4096."), acs=ON)
    for entries in machine.tree.values():
        if "config" in entries:
            entries["config"] = {
                "bytes": {row: text for row, text in entries["config"]["bytes"].items() if int(row, 16) < 64},
                "length": 64,
                "size": 4096,
            }

    machine = new("skylake-two-sockets", "Two sockets of Skylake-E: a NIC and a GPU on the first, a GPU on the second.")
    for bus, below in (("pci0000:16", "0000:17:00.0"), ("pci0000:30", "0000:31:00.0"), ("pci0000:85", "0000:86:00.0")):
        machine.root_bus(bus, (0x8086, 0x2030), kind="root port", code=0x060400)
        port = f"{bus.removeprefix('pci')}:00.0"
        if bus == "pci0000:16":
            machine.nic(below, port, "mlx5_0")
        else:
            machine.gpu(below, port)

    for name, device, note in (
        (
            "sandy-bridge-two-sockets",
            0x3C00,
            "Sandy Bridge-E, two sockets: NVMe below two root ports of one, one of the other.",
        ),
        ("haswell", 0x2F00, "Haswell-E: two NVMe below two root ports."),
    ):
        machine = new(name, note)
        machine.root_bus("pci0000:00", (0x8086, device))
        for number in (0, 1):
            port = machine.port(f"0000:00:0{number + 1}.0", "pci0000:00", acs=0)
            machine.nvme(f"0000:0{number + 1}:00.0", port, f"nvme{number}", p2pmem=1 << 20)
        if name.startswith("sandy"):
            machine.root_bus("pci0000:80", (0x8086, device))
            machine.nvme("0000:81:00.0", machine.port("0000:80:02.0", "pci0000:80", acs=0), "nvme2", p2pmem=1 << 20)

    machine = new("ice-lake", "Ice Lake: 8086:09a2 is the first function of every root bus.")
    for bus in ("16", "30"):
        machine.root_bus(f"pci0000:{bus}", (0x8086, 0x09A2))
        machine.port(f"0000:{bus}:02.0", f"pci0000:{bus}", acs=ON, group=(int(bus), "DMA-FQ"))
        machine.port(f"0000:{bus}:03.0", f"pci0000:{bus}", acs=ON, group=(int(bus) + 100, "DMA-FQ"))
    machine.nvme("0000:17:00.0", "0000:16:02.0", "nvme0", p2pmem=1 << 20)
    machine.nvme("0000:18:00.0", "0000:16:03.0", "nvme1", p2pmem=1 << 20)
    machine.nic("0000:31:00.0", "0000:30:02.0", "mlx5_0")

    for name, device, kernel, note in (
        (
            "sapphire-rapids-dsa",
            0x0B25,
            "6.8.0",
            "A DSA is first on the NIC's root bus, and the kernel does not know it.",
        ),
        ("granite-rapids-dsa-7.2", 0x11FB, "7.2.1", "The same on a kernel that does."),
    ):
        machine = new(name, note, kernel=kernel)
        machine.root_bus("pci0000:6a", (0x8086, device))
        machine.nic("0000:6b:00.0", machine.port("0000:6a:02.0", "pci0000:6a", acs=ON), "mlx5_0")
        machine.root_bus("pci0000:30", (0x8086, 0x09A2))
        machine.nvme("0000:31:00.0", machine.port("0000:30:02.0", "pci0000:30", acs=ON), "nvme0", p2pmem=1 << 20)

    machine = new("epyc", "AMD EPYC: every quadrant is a host bridge of its own; no whitelist entry is asked for.", AMD)
    for bus in ("00", "40"):
        machine.root_bus(f"pci0000:{bus}", (0x1022, 0x14A4))
        machine.port(f"0000:{bus}:01.1", f"pci0000:{bus}", acs=ON, vendor=0x1022, device=0x14AB)
        machine.port(f"0000:{bus}:03.1", f"pci0000:{bus}", acs=ON, vendor=0x1022, device=0x14AB)
    machine.nic("0000:01:00.0", "0000:00:01.1", "mlx5_0")
    machine.nvme("0000:02:00.0", "0000:00:03.1", "nvme0", p2pmem=1 << 20)
    machine.nvme("0000:41:00.0", "0000:40:01.1", "nvme1", p2pmem=1 << 20)

    machine = new("arm-server", "An ARM server: no entry in mainline, so only what shares a switch.", ARM)
    machine.root_bus("pci0000:00")
    machine.root_bus("pci0001:00")
    machine.port("0000:00:00.0", "pci0000:00", vendor=0x1DEF, device=0xE101, acs=0)
    left, right = machine.switch("0000:01:00.0", "0000:00:00.0", 2)
    machine.nic("0000:03:00.0", left, "mlx5_0")
    machine.nvme("0000:04:00.0", right, "nvme1", p2pmem=1 << 20)
    machine.port("0001:00:00.0", "pci0001:00", vendor=0x1DEF, device=0xE101, acs=0)
    machine.nvme("0001:01:00.0", "0001:00:00.0", "nvme0", p2pmem=1 << 20)

    machine = new("vf-pair", "Two VFs of one NIC (the second is in VFIO's hands), a GPU below another root port.")
    machine.root_bus("pci0000:00", (0x8086, 0x3E30))
    port = machine.port("0000:00:01.0", "pci0000:00", acs=0)
    machine.nic("0000:01:00.0", port, "mlx5_0")
    machine.nic("0000:01:00.2", port, "mlx5_2", physfn="0000:01:00.0", link=None)
    machine.function("0000:01:00.3", port, 0x15B3, 0x101E, physfn="0000:01:00.0", driver="vfio-pci")
    machine.gpu("0000:02:00.0", machine.port("0000:00:02.0", "pci0000:00", acs=0))

    machine = new(
        "pcie-to-pci", "Two conventional cards behind a PCIe-to-PCI bridge: 256 bytes of configuration space."
    )
    machine.root_bus("pci0000:00", (0x8086, 0x3E30))
    bridge = machine.port(
        "0000:02:00.0", machine.port("0000:00:1c.0", "pci0000:00", acs=0), "pcie to pci", vendor=0x1B21, device=0x1080
    )
    machine.function("0000:03:04.0", bridge, 0x1AF4, 0x1110, kind=None, code=0x050000)
    machine.function("0000:03:05.0", bridge, 0x1AF4, 0x1110, kind=None, code=0x050000, driver="vfio-pci")
    machine.nic("0000:01:00.0", machine.port("0000:00:01.0", "pci0000:00", acs=0), "mlx5_0")

    machine = new("vmd", "Two NVMe behind a VMD (a domain inside a device), one beside it.")
    machine.root_bus("pci0000:00", (0x8086, 0x9A14))
    machine.function("0000:00:0e.0", "pci0000:00", 0x8086, 0x467F, kind="integrated", code=0x010400, driver="vmd")
    machine.root_bus("pci10000:e0", place=f"{machine.places['0000:00:0e.0']}/pci10000:e0")
    for number in (0, 1):
        port = machine.port(f"10000:e0:0{number + 6}.0", "pci10000:e0", acs=0)
        machine.nvme(f"10000:e{number + 1}:00.0", port, f"nvme{number}", p2pmem=1 << 20)
    machine.nvme("0000:01:00.0", machine.port("0000:00:06.0", "pci0000:00", acs=0), "nvme2", p2pmem=1 << 20)

    broken: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
        "d3cold": ("The port above the GPU sleeps: 0xff.", lambda port: port.update(
            config={"bytes": {f"{row:03x}": "ff" * 16 for row in range(0, 256, 16)}, "length": 256, "size": 4096})),
        "unreadable-config": ("The kernel refuses the port's configuration space.", lambda port: port.update(
            config={"errno": "EIO"})),
        "capability-loop": ("The port's capability lists lead back to themselves.", lambda port: port["config"].update(
            bytes={"000": "b510968700001000" + "00" * 8, "030": "00000000" "40" + "00" * 11,
                   "040": "0550" + "00" * 14, "050": "0540" + "00" * 14, "100": "01000110" + "00" * 12})),
        "truncated-config": ("The copy of its configuration space ends at 0x104.", lambda port: port["config"].update(
            length=0x104, size=4096)),
        "vanishing": ("The GPU's port was pulled while it was read.", lambda port: port.update(
            vendor={"errno": "ENODEV"}, device={"errno": "ENODEV"}, config={"errno": "ENODEV"})),
        "garbled": ("Garbage where numbers should be; nothing of it decides.", lambda port: port.update(
            {"class": "what", "current_link_speed": "fast", "current_link_width": "-1", "numa_node": "\ufffd",
             "resource": "what is this\n0x0 0x1\n0xzz 0x1 0x2"})),
    }  # fmt: skip
    for name, (note, spoil) in broken.items():
        machine = one_switch(new(name, note))
        spoil(machine.tree[f"sys/{machine.places['0000:02:01.0']}"])
    return made


def machine(name: str) -> Topology:
    return Topology(open_tree(GOLDEN / name))


def described(pairs: tuple[Pair, ...]) -> Any:
    """Return all there is to a verdict, or a line for each of very many."""
    if len(pairs) > MANY:
        return {f"{one.client.name} -> {one.provider.name}": line_of(one) for one in pairs}
    return [whole(pair) for pair in pairs]


def line_of(pair: Pair) -> str:
    verdict = pair.verdict
    return " ".join([verdict.kind, str(verdict.distance), *(reason.code for reason in verdict.reasons)])


def whole(pair: Pair) -> dict[str, Any]:
    verdict = dataclasses.asdict(pair.verdict)
    verdict["reasons"] = [f"{reason.code}: {reason.text}" for reason in pair.verdict.reasons]
    del verdict["link"]
    link = pair.verdict.link
    return {"pair": f"{pair.client.name} -> {pair.provider.name}", **verdict, "link": link and link.description}


def test_invented_machines_are_as_they_were_made(builder) -> None:
    for name, made in invented(builder).items():
        file = GOLDEN / name / FILE_NAME
        text = dump_machine(made.tree, made.note)
        if UPDATE:
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        assert file.read_text() == text, name


def test_there_are_enough() -> None:
    assert len(MACHINES) >= 20
    assert {name for name, *_ in EXPECTED} <= set(MACHINES)


@pytest.mark.parametrize(("name", "client", "memory", "kind", "distance", "reasons"), EXPECTED)
def test_what_the_rules_say(name, client, memory, kind, distance, reasons) -> None:
    verdict = machine(name).pair(client, memory).verdict
    assert (verdict.kind.value, verdict.distance) == (kind, distance), verdict.why
    assert reasons <= {reason.code for reason in verdict.reasons}
    assert verdict.fixes or verdict.works
    assert verdict.holds_for


@pytest.mark.parametrize("name", MACHINES)
def test_all_pairs_are_as_expected(name) -> None:
    topology = machine(name)
    clients = list_clients(topology.sysfs)
    if not clients:
        clients = tuple(find_client(topology.sysfs, net) for net in topology.sysfs.list("class/net"))
    providers = list_providers(topology.sysfs)
    found = described(topology.pairs(clients, providers))
    file = GOLDEN / name / "expected.json"
    if UPDATE:
        file.write_text(json.dumps(found, indent=1) + "\n")
    assert json.loads(json.dumps(found)) == json.loads(file.read_text())


def test_unprivileged_never_says_no_acs() -> None:
    """The same machine as root and as a user: unknown, and what would tell."""
    as_root, as_user = machine("switch-with-acs"), machine("unprivileged")
    assert as_root.pair("mlx5_0", "0000:04:00.0").verdict.redirects == ("0000:02:01.0", "0000:02:00.0")
    verdict = as_user.pair("mlx5_0", "0000:04:00.0").verdict
    assert verdict.fixes == ("run as root to read ACS: sudo p2prw topology",)
    chain = as_user.chain("0000:03:00.0")
    assert chain is not None
    assert all(function.config.acs is None and function.config.acs_unknown for function in chain.functions)


@pytest.mark.parametrize("name", MACHINES)
def test_machines_are_small(name) -> None:
    assert (GOLDEN / name / FILE_NAME).stat().st_size < 96 * 1024
