"""One step, with the variables of one row filled in, to the row's command line, checked as the command itself will.

A key that the command of a row does not have is refused: accepted and ignored, it would be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import yaml

from p2prw.config_problems import Problems
from p2prw.config_settings import keys_of
from p2prw.config_yaml import EXTRA_KEYS, Placed, Reader
from p2prw.errors import RequestError
from p2prw.scenario.model import Row
from p2prw.scenario.option_words import bench_words, smoke_words
from p2prw.scenario.words import serve_words, transfer_words
from p2prw.targets import parse_host

FIRST_PORT = 18515
Fill = Callable[[yaml.Node, Mapping[str, str], set[int]], yaml.Node]
"""(node, values of the matrix, servers that it names) -> the node with variables filled in."""


class RowMaker:
    """Makes the rows of one file, in order; `rows` holds those before, whose servers it may name."""

    def __init__(
        self,
        path: str,
        environ: Mapping[str, str],
        seed: int,
        nodes: Mapping[str, yaml.Node],
        fill: Fill,
        problems: Problems,
        rows: list[Row],
    ) -> None:
        self.path = path
        self.environ = environ
        self.seed = seed
        self.nodes = nodes
        """The top of the file."""
        self.fill = fill
        self.problems = problems
        self.rows = rows

    def finish(self, row: Row, nodes: Mapping[str, yaml.Node], key: str) -> Row:
        """Return the row with its words; `key` is the step's action as the file has it. RequestError."""
        servers: set[int] = set()
        makers = {"serve": self._serve, "smoke": self._smoke, "bench": self._bench}
        row = makers.get(row.action, self._transfer)(row, nodes, key, servers)
        return replace(row, servers=tuple(sorted(servers)))

    def stand_in(self, row: Row) -> Row:
        """Return what stands for a server whose step is wrong: those that name it are not wrong for that."""
        return replace(row, planned_address=f"127.0.0.1:{FIRST_PORT}")

    def planned(self) -> dict[int, str]:
        """Return the addresses that the servers before this row would have if all ports were free."""
        return {server.number: server.planned_address for server in self.rows if server.action == "serve"}

    # --- one for each kind of step ---

    def _transfer(self, row: Row, nodes: Mapping[str, yaml.Node], key: str, servers: set[int]) -> Row:
        reader = self._read_maps(row, nodes, "transfer", key, servers)
        words = transfer_words(row.action, reader.found(), self.environ, self.planned(), self.seed + row.number)
        return replace(row, words=words)

    def _serve(self, row: Row, nodes: Mapping[str, yaml.Node], key: str, servers: set[int]) -> Row:
        reader = self._read_maps(row, nodes, "serve", key, servers)
        ready = reader.values.get(("serve", "ready_file"))
        if ready is not None:
            raise RequestError(
                f"{ready.place}: serve.ready_file: run has one of its own for each server",
                why="that is how it learns their addresses",
                fix="${NAME.address} in a later step is what would be in it",
                code="unknown_key",
            )
        words = serve_words(reader.found(), self.environ, self.seed + row.number)
        listen = reader.values.get(("serve", "listen"))
        port = reader.values.get(("serve", "port"))
        host = parse_host(listen.text if listen else "127.0.0.1", "serve.listen", any_port=True)
        chosen = host.port if host.port is not None else int(port.text) if port else 0
        shown = f"[{host.host}]" if ":" in host.host else host.host
        before = sum(earlier.action == "serve" for earlier in self.rows)
        return replace(
            row,
            words=words,
            listen=f"{shown}:{chosen}",
            planned_address=f"{shown}:{chosen or FIRST_PORT + before}",
        )

    def _smoke(self, row: Row, nodes: Mapping[str, yaml.Node], key: str, servers: set[int]) -> Row:
        reader = self._read_maps(row, nodes, None, key, servers)
        node = self.fill(nodes[key], row.values, servers)
        words = smoke_words(reader, node, self.environ, self.planned(), self.seed + row.number, _limit(row))
        return replace(row, words=words)

    def _bench(self, row: Row, nodes: Mapping[str, yaml.Node], key: str, servers: set[int]) -> Row:
        reader = self._read_maps(row, nodes, None, key, servers)
        node = self.fill(nodes[key], row.values, servers)
        words = bench_words(reader, node, self.environ, self.planned(), _limit(row))
        return replace(row, words=words)

    # --- maps ---

    def _read_maps(
        self, row: Row, nodes: Mapping[str, yaml.Node], section: str | None, key: str, servers: set[int]
    ) -> Reader:
        """Read the file's maps, then the step's over them, with this row's variables. AlreadyReported: not whole."""
        before = self.problems.reported
        reader = Reader(self.path, self.problems)
        for name, node in self.nodes.items():
            if name in ("device", "buffers", section or key):
                with self.problems.catch():
                    reader.read_map(name, self.fill(node, row.values, servers))
        own = [("device", nodes["device"])] if "device" in nodes else []
        own += [(section, nodes[key])] if section is not None else []
        for name, node in own:
            with self.problems.catch():
                filled = self.fill(node, row.values, servers)
                reader.read_section(name, filled)
                if name == "device" or key != "transfer":
                    self._refuse_foreign(reader, name, filled, row.action)
        if section is not None and row.time_limit_s is not None:
            with self.problems.catch():
                limit = reader.scalar(self.fill(nodes["time_limit"], row.values, servers), "time_limit")
                reader.values[(section, "time_limit")] = Placed(limit.text, limit.place)
        self.problems.stop_since(before)
        return reader

    def _refuse_foreign(self, reader: Reader, section: str, node: yaml.Node, command: str) -> None:
        """Refuse words that the command has no option for; not of `transfer`, whose `op` may change from row to row."""
        known = keys_of(section)
        for key, key_node, _ in reader.entries(node, section, (*known, *EXTRA_KEYS.get(section, ()))):
            if key not in known or command in known[key].commands:
                continue
            mine = [name for name, setting in known.items() if command in setting.commands]
            self.problems.report(
                RequestError(
                    f"{reader.place(key_node)}: {section}: {key}: {command} has no such option",
                    why=f"of {section}: it has {', '.join(mine)}",
                    fix=f"leave {key} away, or put it where it counts",
                    code="unknown_key",
                )
            )


def _limit(row: Row) -> str | None:
    return None if row.time_limit_s is None else f"{row.time_limit_s:g}s"
