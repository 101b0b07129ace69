"""The painted tree and matrix: the same facts as the plain lines, folded to the width, safe for a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from p2prw.engine.topology.pairs import Topology
from p2prw.engine.topology.picture import draw
from p2prw.engine.topology.snapshot import open_tree
from p2prw.reporters.output import Output
from p2prw.reporters.page import print_page
from p2prw.reporters.topology_page import topology_page
from p2prw.reporters.topology_picture import dot, svg
from p2prw.reporters.topology_rows import matrix, rows_of, topology_lines, topology_rows

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def rows(name: str, *pair: str):
    topology = Topology(open_tree(GOLDEN / name))
    pairs = (topology.pair(*pair),) if pair else topology.all_pairs()
    return topology_rows(topology.host, draw(topology, pairs), pairs)


def printed(parts, width: int = 80) -> str:
    stream = io.StringIO()
    print_page(parts, Output(stream), {"TERM": "xterm-256color", "COLUMNS": str(width), "NO_COLOR": "1"})
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 132])
def test_a_pair_fits_the_width(width) -> None:
    text = printed(topology_page(rows("switch-with-acs", "mlx5_0", "04:00.0")), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "└─0000:00:01.0" in text
    folded = " ".join(text.split())
    for part in ("not_supported, distance 4", "ACS SV RR CR UF REDIRECTS", "pci=disable_acs_redir=", "holds for:"):
        assert part in folded


def test_the_matrix_fits(width: int = 80) -> None:
    text = printed(topology_page(rows("lab-shapes")), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "CLIENT \\ MEMORY" in text and "bus 4" in text and "no 3" in text


def test_nothing_to_judge() -> None:
    assert "no pair to judge" in " ".join(printed(topology_page(rows("firecracker"))).split())


def test_the_matrix_comes_in_blocks() -> None:
    pairs = [
        {"client": f"c{c}", "provider": f"p2pmem:0000:{p:02x}:00.0", "verdict": "bus_address", "distance": c + p}
        for c in range(2)
        for p in range(10)
    ]
    blocks = matrix(pairs, most_columns=4)
    assert [len(head) for head, _ in blocks] == [5, 5, 3]
    assert blocks[2][1][1] == ["c1", "bus 9", "bus 10"]


def test_names_from_outside_stay_text() -> None:
    made = rows("one-switch-gpu-nic", "mlx5_0", "04:00.0")
    for row in rows_of(made, "function"):
        row["names"] = ['\x1b[31m</text>"evil\\[bold]']  # type: ignore[index]
    assert "\x1b[31m" not in printed(topology_page(made))
    picture, graph = svg(made), dot(made)
    assert "&lt;/text&gt;" in picture and "\x1b" not in picture
    assert '\\"evil' in graph and "\x1b" not in graph


def test_dot_marks_the_path() -> None:
    graph = dot(rows("one-switch-gpu-nic", "mlx5_0", "04:00.0"))
    assert '"0000:01:00.0" -> "0000:02:00.0" [dir=none, penwidth=3];' in graph
    assert '"pci0000:00" -> "0000:00:01.0" [dir=none, color=gray];' in graph
    assert "bus_address, distance 4" in graph


def test_svg_holds_every_box() -> None:
    made = rows("epyc", "mlx5_0", "nvme1")
    picture = svg(made)
    for row in rows_of(made, "function"):
        assert row["address"] in picture
    assert "through_host_bridge, distance 4" in picture


def test_lines_end_with_the_next_step() -> None:
    lines = topology_lines(rows("d3cold", "mlx5_0", "04:00.0"))
    assert any("echo on > /sys/bus/pci/devices/0000:02:01.0/power/control" in line for line in lines)
    lines = topology_lines(rows("vmd"))
    assert lines[-1].startswith("p2prw topology nvme0 p2pmem:0000:01:00.0 gives the reasons")
