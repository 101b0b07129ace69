"""`p2prw topology` on copied machines: what is printed, what is written, how it ends."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def machine(name: str) -> tuple[str, str]:
    return "--sysfs", str(GOLDEN / name)


def test_a_pair_with_reasons_and_mend(run) -> None:
    result = run("topology", "mlx5_0", "04:00.0", *machine("switch-with-acs"))
    assert result.exit_code == 0, "answered, whatever the answer"
    lines = result.stdout.splitlines()
    assert "mlx5_0 -> 04:00.0: not_supported, distance 4" in lines
    assert "  path:      0000:03:00.0 > 0000:02:00.0 > 0000:01:00.0 > 0000:02:01.0 > 0000:04:00.0" in lines
    assert any("pci=disable_acs_redir=0000:02:01.0;0000:02:00.0" in line for line in lines)
    assert any(
        line.startswith("    +-0000:02:00.0  switch downstream port  ACS SV RR CR UF REDIRECTS") for line in lines
    )
    assert result.stderr == ""


def test_the_document(run) -> None:
    document, _ = run.json("topology", "mlx5_0", "04:00.0", "--json", *machine("switch-with-acs"))
    rows = document["results"]
    (pair,) = [row for row in rows if row["row"] == "pair"]
    assert (pair["verdict"], pair["works"], pair["distance"]) == ("not_supported", False, 4)
    assert pair["redirects"] == ["0000:02:01.0", "0000:02:00.0"]
    assert [reason["code"] for reason in pair["reasons"]] == ["acs_redirect", "host_bridge_not_listed"]
    assert pair["link"]["ceiling_gbit_per_s"] == pytest.approx(252.062, abs=0.01)
    functions = {row["address"]: row for row in rows if row["row"] == "function"}
    assert functions["0000:02:00.0"]["acs"] == {
        "supported": ["SV", "TB", "RR", "CR", "UF", "DT"], "enabled": ["SV", "RR", "CR", "UF"], "redirects": True,
    }  # fmt: skip
    assert functions["0000:03:00.0"]["parent"] == "0000:02:00.0"
    assert rows[0] == {"row": "host", "processor": "GenuineIntel family 0x6", "kernel": "6.17", "is_guest": False}


@pytest.mark.parametrize("name", sorted(path.parent.name for path in GOLDEN.glob("*/machine.json")))
def test_every_machine_as_matrix_in_every_form(run, name, tmp_path) -> None:
    document, _ = run.json("topology", "--json", *machine(name))
    pairs = [row for row in document["results"] if row["row"] == "pair"]
    picture, graph = tmp_path / "x.svg", tmp_path / "x.dot"
    result = run("topology", *machine(name), "--svg", str(picture), "--dot", str(graph))
    assert result.exit_code == 0
    for row in pairs:
        assert row["client"] in result.stdout
    if len(pairs) > 1:
        assert "CLIENT \\ MEMORY" in result.stdout
    root = ET.fromstring(picture.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert graph.read_text().startswith("digraph p2pdma {")
    assert f"svg: {picture}" in result.stderr


def test_without_privilege_it_says_what_would_tell(run) -> None:
    result = run("topology", "mlx5_0", "04:00.0", *machine("unprivileged"))
    assert result.exit_code == 0
    assert "mlx5_0 -> 04:00.0: unknown, distance 4" in result.stdout
    assert "  try:       run as root to read ACS: sudo p2prw topology" in result.stdout
    assert result.stdout.count("ACS unknown (only the first 64 bytes") == 6, "at every function, never a guess"
    assert "no ACS" not in result.stdout and "ACS off" not in result.stdout


def test_a_software_device_has_its_own_answer(run) -> None:
    document, result = run.json("topology", "rxe0", "04:00.0", "--json", *machine("one-switch-gpu-nic"))
    (pair,) = [row for row in document["results"] if row["row"] == "pair"]
    assert (pair["verdict"], pair["works"], pair["path"]) == ("no_dma_path", False, [])
    assert "rxe0 (rxe) moves bytes with the CPU" in pair["reasons"][0]["text"]
    assert result.exit_code == 0


def test_a_vf_and_a_host_without_devices(run, tmp_path) -> None:
    assert "VF of 0000:01:00.0" in run("topology", "mlx5_2", "01:00.3", *machine("vf-pair")).stdout
    (tmp_path / "sys/bus/pci/devices").mkdir(parents=True)
    result = run("topology", "--sysfs", str(tmp_path))
    assert result.exit_code == 0 and result.stdout.startswith("no pair to judge")


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["mlx5_9", "04:00.0"], "no_device", 3),
        (["mlx5_0", "09:00.0"], "no_device", 3),
        (["mlx5_0"], "usage", 2),
        (["mlx5_0", "host,size=1M"], "host_memory", 2),
        (["mlx5_0", "cuda:0"], "needs_pci_address", 2),
        (["a", "b", "c"], "usage", 2),
    ],
)
def test_refusals(run, arguments, code, exit_code) -> None:
    document, result = run.json("topology", *arguments, "--json", *machine("one-switch-gpu-nic"))
    assert (document["error"]["code"], result.exit_code) == (code, exit_code)
    assert document["error"]["try"]


def test_trees_that_are_none(run, tmp_path) -> None:
    document, result = run.json("topology", "--json", "--sysfs", str(tmp_path))
    assert (document["error"]["code"], result.exit_code) == ("no_sysfs_tree", 3)
    (tmp_path / "machine.json").write_text(json.dumps({"schema": "other"}))
    document, result = run.json("topology", "--json", "--sysfs", str(tmp_path))
    assert (document["error"]["code"], result.exit_code) == ("bad_snapshot", 3)


def test_a_picture_that_cannot_be_written(run, tmp_path) -> None:
    document, result = run.json(
        "topology", "--json", "--svg", str(tmp_path / "no/where.svg"), *machine("one-switch-gpu-nic")
    )
    assert (document["error"]["code"], result.exit_code) == ("report_file", 3)


def test_this_host(run) -> None:
    document, result = run.json("topology", "--json")
    assert result.exit_code == 0
    assert document["results"][0]["row"] == "host"
