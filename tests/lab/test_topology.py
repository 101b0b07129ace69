"""Trees become QEMU options; wrong trees are refused by name; QEMU itself accepts every tree of the lab."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.errors import MissingError, TopologyError
from lab.host import NEEDS, check_host_packages
from lab.topology import Topology, load_topology, parse_topology, qemu_options, topology_names

FILES = Path("/files")


def options(*devices, **more) -> list[str]:
    return qemu_options(parse_topology("t", {"devices": list(devices), **more}), FILES)


def test_nvme_on_the_root_bus() -> None:
    assert options({"nvme": {"serial": "a", "cmb": "64MiB"}}, {"nvme": {"serial": "b"}}) == [
        *("-drive", "file=/files/nvme-a.img,if=none,id=drive-a,format=raw"),
        *("-device", "nvme,drive=drive-a,serial=a,cmb_size_mb=64,bus=pcie.0,addr=0x10"),
        *("-drive", "file=/files/nvme-b.img,if=none,id=drive-b,format=raw"),
        *("-device", "nvme,drive=drive-b,serial=b,bus=pcie.0,addr=0x11"),
    ]


def test_switch_below_a_root_port_has_a_port_for_each_device() -> None:
    nvme = {"nvme": {"serial": "a"}}, {"nvme": {"serial": "b"}}
    devices = [word for word in options({"root_port": [{"switch": list(nvme)}]}) if ",bus=" in word]
    assert devices == [
        "pcie-root-port,id=rp0,chassis=1,slot=0,bus=pcie.0,addr=0x10",
        "x3130-upstream,id=up1,bus=rp0",
        "xio3130-downstream,id=dn2,chassis=2,slot=0,bus=up1",
        "nvme,drive=drive-a,serial=a,bus=dn2",
        "xio3130-downstream,id=dn3,chassis=3,slot=0,bus=up1",
        "nvme,drive=drive-b,serial=b,bus=dn3",
    ]


def test_pci_bridge_numbers_its_slots() -> None:
    words = options({"pci_bridge": [{"ivshmem": {"name": "x"}}, {"ivshmem": {"name": "y", "size": "1MiB"}}]})
    assert words[1] == "pcie-pci-bridge,id=pci0,bus=pcie.0,addr=0x10"
    assert words[3] == "memory-backend-file,id=mem-x,share=on,mem-path=/files/ivshmem-x.img,size=16777216"
    assert [word for word in words if word.startswith("ivshmem")] == [
        "ivshmem-plain,memdev=mem-x,bus=pci0,addr=0x1",
        "ivshmem-plain,memdev=mem-y,bus=pci0,addr=0x2",
    ]


def test_iommu_stands_before_the_devices_it_translates_for() -> None:
    words = options({"nvme": {"serial": "a"}}, iommu=True, kernel=["intel_iommu=on"])
    assert words[:4] == ["-M", "q35,kernel-irqchip=split", "-device", "intel-iommu,intremap=off,caching-mode=on"]


def test_processor_of_the_command_line_wins() -> None:
    topology = Topology("t", cpu="EPYC")
    assert qemu_options(topology, FILES) == ["-cpu", "EPYC"]
    assert qemu_options(topology, FILES, cpu="Skylake-Server") == ["-cpu", "Skylake-Server"]


def test_a_comma_in_a_path_does_not_end_the_value() -> None:
    words = qemu_options(parse_topology("t", {"devices": [{"nvme": {"serial": "a"}}]}), Path("/a,b"))
    assert words[1] == "file=/a,,b/nvme-a.img,if=none,id=drive-a,format=raw"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "a topology is a map"),
        ({"device": []}, "unknown key 'device'"),
        ({"devices": {}}, None),
        ({"devices": {"nvme": 1}}, "devices are a list"),
        ({"devices": ["nvme"]}, "one word and what belongs to it"),
        ({"devices": [{"gpu": {}}]}, "t/gpu: unknown device"),
        ({"devices": [{"nvme": {"name": "a"}}]}, "its keys are cmb, serial, size"),
        ({"devices": [{"nvme": {"serial": "a,b"}}]}, "serial is a short word"),
        ({"devices": [{"nvme": {"serial": "a", "cmb": "64M"}}]}, "t/nvme/cmb: a size is a number and MiB"),
        ({"devices": [{"nvme": {"serial": "a", "cmb": "0MiB"}}]}, "a size is a number and MiB"),
        ({"devices": [{"nvme": {"serial": "a"}}] * 2}, "two devices share nvme-a.img"),
        ({"devices": [{"root_port": [{"nvme": {"serial": "a"}}, {"nvme": {"serial": "b"}}]}]}, "takes one device"),
    ],
)
def test_wrong_trees_are_refused(document, message) -> None:
    if message is None:
        assert parse_topology("t", document).devices == ()
        return
    with pytest.raises(TopologyError, match=message):
        parse_topology("t", document)


def test_unknown_names_are_told_what_there_is(tmp_path) -> None:
    with pytest.raises(TopologyError, match=r"no topology 'nope'.*one_switch"):
        load_topology("nope")
    own = tmp_path / "own.yaml"
    own.write_text("devices: [{nvme: {serial: z}}]")
    assert load_topology(str(own)).files()[0].file_name == "nvme-z.img"
    own.write_text("devices: [")
    with pytest.raises(TopologyError, match=r"own\.yaml"):
        load_topology(str(own))


def test_what_the_tests_use_is_there() -> None:
    guests = Path(__file__).parent / "guest"
    used = {path.name for path in guests.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert used <= set(topology_names())


@pytest.mark.parametrize("name", topology_names())
def test_qemu_accepts(name, tmp_path, force_lab) -> None:
    """QEMU builds the machine and stops before its first instruction: a second, and no guest."""
    try:
        check_host_packages([need for need in NEEDS if need.program == "qemu-system-x86_64"])
    except MissingError as error:
        force_lab(str(error))
    topology = load_topology(name)
    assert topology.about, "say what it shows"
    for file in topology.files():
        with (tmp_path / file.file_name).open("wb") as opened:
            opened.truncate(file.length_bytes)
    command = ["qemu-system-x86_64", "-machine", "q35", "-cpu", "max", "-m", "256M", "-display", "none", "-S"]
    command += ["-monitor", "stdio", "-serial", "none", *qemu_options(topology, tmp_path)]
    done = subprocess.run(command, input="info pci\nquit\n", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.lstrip().startswith("Bus")]
    assert len(rows) > len(topology.devices), done.stdout


def test_functions_share_a_slot() -> None:
    twins = {"functions": [{"nvme": {"serial": "x", "cmb": "2MiB"}}, {"nvme": {"serial": "y"}}]}
    below = [word for word in options({"root_port": [twins]}) if word.startswith("nvme")]
    assert below == [
        "nvme,drive=drive-x,serial=x,cmb_size_mb=2,bus=rp0,addr=0x0.0x0,multifunction=on",
        "nvme,drive=drive-y,serial=y,bus=rp0,addr=0x0.0x1,multifunction=on",
    ]
    on_the_root_bus = [word for word in options(twins) if word.startswith("nvme")]
    assert on_the_root_bus[1].endswith("bus=pcie.0,addr=0x10.0x1,multifunction=on")
    topology = parse_topology("t", {"devices": [{"root_port": [twins]}]})
    assert topology.serials() == ["x", "y"] and topology.serials(with_cmb=True) == ["x"]


def test_functions_are_devices() -> None:
    with pytest.raises(TopologyError, match="each an nvme or ivshmem"):
        parse_topology("t", {"devices": [{"functions": [{"root_port": []}]}]})
