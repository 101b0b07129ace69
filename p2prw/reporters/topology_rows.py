"""Rows and plain text of `p2prw topology`: lines that grep and awk can use; `topology_page` paints them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from p2prw.engine.topology.pci import class_name
from p2prw.reporters.listing import table

if TYPE_CHECKING:
    from p2prw.engine.topology.link import Link
    from p2prw.engine.topology.pairs import Pair
    from p2prw.engine.topology.picture import Node
    from p2prw.engine.topology.rules import HostFacts

Row = Mapping[str, Any]

WORDS = {
    "bus_address": "bus",
    "through_host_bridge": "host",
    "not_supported": "no",
    "unknown": "?",
    "no_dma_path": "cpu",
}
"""A verdict in a cell of the matrix."""
LEGEND = (
    "bus: bus address, below the root; host: through the host bridge; no: not supported; ?: unknown; cpu: no DMA; "
    "the number is the distance"
)
_NOTHING = (
    "no pair to judge: P2PDMA needs a client (an RDMA NIC, an NVMe controller) and memory of a PCI device (p2pmem, "
    "vfio-pci, a GPU)"
)


def topology_rows(host: HostFacts, nodes: Iterable[Node], pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """Return the document's `results`: the host, the functions that are drawn, the verdicts."""
    processor = host.processor
    rows: list[dict[str, Any]] = [
        {
            "row": "host",
            "processor": processor.description if processor else None,
            "kernel": ".".join(map(str, host.kernel)) if host.kernel else None,
            "is_guest": host.is_guest,
        }
    ]
    rows += [_bridge_row(node) if node.function is None else _function_row(node) for node in nodes]
    return [*rows, *(_pair_row(pair) for pair in pairs)]


def _bridge_row(node: Node) -> dict[str, Any]:
    first = node.host_bridge.first if node.host_bridge else None
    return {
        "row": "host_bridge",
        "name": node.name,
        "first_address": first.address if first else None,
        "vendor_id": first.vendor_id if first else None,
        "device_id": first.device_id if first else None,
        "forwards": node.forwards,
        "on_path": node.on_path,
    }


def _function_row(node: Node) -> dict[str, Any]:
    function = node.function
    assert function is not None
    config = function.config
    return {
        "row": "function",
        "address": node.name,
        "parent": node.parent,
        "names": list(node.names),
        "roles": list(node.roles),
        "on_path": node.on_path,
        "vendor_id": function.vendor_id,
        "device_id": function.device_id,
        "class": None if function.class_code is None else class_name(function.class_code),
        "driver": node.driver,
        "port_type": config.port_type.value if config.port_type else None,
        "physical_function": node.physical_function,
        "acs": None
        if config.acs is None
        else {
            "supported": list(config.acs.supported()),
            "enabled": list(config.acs.enabled()),
            "redirects": config.acs.redirects,
        },
        "acs_unknown": config.acs_unknown.value if config.acs_unknown else None,
        "link": _link(function.link),
        "iommu_group": node.iommu.number if node.iommu else None,
        "iommu_mode": node.iommu.mode if node.iommu else None,
    }


def _pair_row(pair: Pair) -> dict[str, Any]:
    verdict = pair.verdict
    return {
        "row": "pair",
        "client": pair.client.name,
        "client_address": pair.client.address,
        "provider": pair.provider.name,
        "provider_address": pair.provider.address,
        "verdict": verdict.kind.value,
        "works": verdict.works,
        "distance": verdict.distance,
        "common": verdict.common,
        "path": list(verdict.path),
        "redirects": list(verdict.redirects),
        "reasons": [
            {"code": reason.code, "text": reason.text, "devices": list(reason.devices)} for reason in verdict.reasons
        ],
        "fixes": list(verdict.fixes),
        "holds_for": verdict.holds_for,
        "link": _link(verdict.link),
    }


def _link(link: Link | None) -> dict[str, Any] | None:
    if link is None:
        return None
    return {
        "speed_gt_per_s": link.speed_gt_per_s,
        "width_lanes": link.width_lanes,
        "ceiling_gbit_per_s": round(link.ceiling_gbit_per_s, 3),
    }


def rows_of(rows: Iterable[Row], *kinds: str) -> list[Row]:
    """Return the rows of some sorts."""
    return [row for row in rows if row["row"] in kinds]


# --- text ---------------------------------------------------------------------------------------------------


def topology_lines(rows: Sequence[Row]) -> list[str]:
    """Return the whole answer as lines."""
    pairs = rows_of(rows, "pair")
    lines = [f"{indent}{title}  {'  '.join(details)}".rstrip() for indent, _, title, details, _ in tree(rows)]
    if not pairs:
        return [*lines, _NOTHING]
    if len(pairs) > 1:
        for head, body in matrix(pairs):
            lines += ["", *table(head, body)]
        return [*lines, "", LEGEND, *hints(pairs)]
    return [*lines, *([""] if lines else []), *(f"{label}{text}" for label, text in verdict_lines(pairs[0]))]


def tree(rows: Iterable[Row], *, ascii_only: bool = True) -> Iterator[tuple[str, str, str, list[str], Row]]:
    """Yield (indent, indent of what folds, title, details, row) for each line of the tree."""
    last, more, down, empty = ("\\-", "+-", "| ", "  ") if ascii_only else ("└─", "├─", "│ ", "  ")
    drawn = rows_of(rows, "host_bridge", "function")
    children: dict[str | None, list[Row]] = {}
    for row in drawn:
        children.setdefault(row.get("parent"), []).append(row)
    todo = [(row, "", "") for row in children.get(None, [])[::-1]]
    while todo:
        row, indent, fold = todo.pop()
        below = children.get(row.get("address", row.get("name")), [])
        yield indent, fold + (down if below else empty), *label(row), row
        for number, child in enumerate(below[::-1]):
            todo.append((child, fold + (more if number else last), fold + (down if number else empty)))


def label(row: Row) -> tuple[str, list[str]]:
    """Return a title and what else there is to say about a row of the tree."""
    if row["row"] == "host_bridge":
        return f"{row['name']}  host bridge", [row["forwards"]] if row["forwards"] else []
    what = row["port_type"] if row["class"] in (None, "PCI bridge") else row["class"]
    title = "  ".join([row["address"], *row["names"], *([what] if what else [])])
    if row["roles"]:
        title += f"  <{' and '.join(row['roles'])}>"
    details = [acs_words(row)] if acs_words(row) else []
    if row["link"]:
        details.append(link_words(row["link"]))
    if row["iommu_group"] is not None:
        details.append(f"IOMMU group {row['iommu_group']} {row['iommu_mode'] or 'mode unknown'}")
    if row["physical_function"]:
        details.append(f"VF of {row['physical_function']}")
    return title, details


def acs_words(row: Row) -> str:
    """Return the ACS registers in words; empty where the function has none."""
    if row["acs_unknown"]:
        return f"ACS unknown ({row['acs_unknown']})"
    if row["acs"] is None:
        return ""
    on = " ".join(row["acs"]["enabled"]) or "off"
    return f"ACS {on}{' REDIRECTS' if row['acs']['redirects'] else ''} (can {' '.join(row['acs']['supported']) or '-'})"


def link_words(link: Row) -> str:
    """Return `16 GT/s x16, 252.1 Gb/s`."""
    return f"{link['speed_gt_per_s']:g} GT/s x{link['width_lanes']}, {link['ceiling_gbit_per_s']:.1f} Gb/s"


def verdict_lines(row: Row) -> list[tuple[str, str]]:
    """Return (label, text) for each line of one verdict; labels are indented and end in spaces."""
    distance = "" if row["distance"] is None else f", distance {row['distance']}"
    lines = [("", f"{row['client']} -> {row['provider']}: {row['verdict']}{distance}")]
    if len(row["path"]) > 1:
        lines.append(("  path:      ", " > ".join(row["path"])))
    if row["link"]:
        lines.append(("  ceiling:   ", f"{link_words(row['link'])} (the narrowest link, before packet headers)"))
    lines += [("  why:       ", reason["text"]) for reason in row["reasons"]]
    lines += [("  try:       ", fix) for fix in row["fixes"]]
    return [*lines, ("  holds for: ", row["holds_for"])]


def matrix(pairs: Sequence[Row], most_columns: int = 8) -> list[tuple[list[str], list[list[str]]]]:
    """Return tables of all verdicts, clients down and providers across, in blocks that fit a page."""
    clients = list(dict.fromkeys(row["client"] for row in pairs))
    providers = list(dict.fromkeys(row["provider"] for row in pairs))
    cells = {(row["client"], row["provider"]): cell(row) for row in pairs}
    blocks = []
    for start in range(0, len(providers), most_columns):
        some = providers[start : start + most_columns]
        short = [name.replace("p2pmem:", "").replace("vfio:", "").removeprefix("0000:") for name in some]
        head = ["CLIENT \\ MEMORY", *short]
        blocks.append((head, [[client, *(cells.get((client, name), "") for name in some)] for client in clients]))
    return blocks


def cell(row: Row) -> str:
    """Return `bus 4`."""
    return f"{WORDS[row['verdict']]} {'' if row['distance'] is None else row['distance']}".rstrip()


def hints(pairs: Sequence[Row]) -> list[str]:
    """Return what to type next, below a matrix."""
    hints = [f"p2prw topology {pairs[0]['client']} {pairs[0]['provider']} gives the reasons and the mend of a pair"]
    if any(row["verdict"] == "unknown" for row in pairs):
        fixes = dict.fromkeys(fix for row in pairs if row["verdict"] == "unknown" for fix in row["fixes"])
        hints += [f"try:  {fix}" for fix in fixes]
    return hints
