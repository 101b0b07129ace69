"""A scenario file to a `Scenario`: every variable filled in, every row's command line checked, before anything runs.

The maps inside are read by `p2prw.config_yaml`, whose grammar they are; here is what stands around them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import yaml

from p2prw.config_problems import Problems
from p2prw.config_settings import SECTIONS, keys_of
from p2prw.config_values import at_place, choice, duration, integer
from p2prw.config_yaml import EXTRA_KEYS, Reader, compose_file
from p2prw.errors import RequestError
from p2prw.scenario.expect import parse_expectation
from p2prw.scenario.keys import ACTIONS, FILE_KEYS, ON_FAILURE, STEP_KEYS
from p2prw.scenario.model import Row, Scenario, address_mark
from p2prw.scenario.needs import parse_need
from p2prw.scenario.rows import RowMaker
from p2prw.scenario.text import NAME, combinations, expand, row_name

MOST_ROWS = 10000
MOST_REPEATS = 100000
_MOST_SEED = (1 << 63) - 1
_FIX = "p2prw help scenario; configs/ in the source tree has examples"

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class _Step:
    """One step as it stands in the file, before its matrix is multiplied out."""

    name: str
    group: int
    together: bool
    place: str
    action: str
    nodes: Mapping[str, yaml.Node]
    matrix: Mapping[str, Sequence[str]]


def read_scenario(
    path: str,
    environ: Mapping[str, str],
    *,
    variables: Mapping[str, str] | None = None,
    seed: int | None = None,
    on_failure: str | None = None,
    time_limit_s: float | None = None,
) -> Scenario:
    """Return the checked scenario; arguments are what the command line says and win over the file.

    HostError: the file (or a token file it names) cannot be read; RequestError: it is wrong, with file:line:column.
    """
    root = compose_file(path)
    if root is None:
        raise RequestError(f"{path} is empty", why="a scenario has steps", fix=_FIX, code="bad_scenario")
    return _Scenario(path, root, environ, variables or {}, seed).read(on_failure, time_limit_s)


class _Scenario:
    def __init__(
        self, path: str, root: yaml.Node, environ: Mapping[str, str], given: Mapping[str, str], seed: int | None
    ) -> None:
        self.path = path
        self.problems = Problems()
        self.reader = Reader(path, self.problems)
        self.nodes: dict[str, yaml.Node] = {}
        self.variables: dict[str, str] = {}
        self.rows: list[Row] = []
        self.seed = 1 if seed is None else seed
        with self.problems.catch(refers=True):
            self.nodes = {key: node for key, _, node in self.reader.entries(root, "the file", tuple(FILE_KEYS))}
        with self.problems.catch():
            self.read_seed(seed)
        with self.problems.catch(refers=True):
            self.read_variables(given)
        self.maker = RowMaker(path, environ, self.seed, self.nodes, self.filled, self.problems, self.rows)

    def read(self, on_failure: str | None, time_limit_s: float | None) -> Scenario:
        name = self.one("name", lambda value, _: value)
        limit = self.one("time_limit", duration)
        failure = self.one("on_failure", choice(*ON_FAILURE))
        for section in SECTIONS:
            # Also where no step reads it: a word that is wrong is wrong.
            if section in self.nodes and section != "buffers":
                with self.problems.catch():
                    words = (*keys_of(section), *EXTRA_KEYS.get(section, ()))
                    self.reader.entries(self.nodes[section], section, words)
        steps: list[_Step] = []
        with self.problems.catch():
            steps = self.read_steps()
        with self.problems.catch():
            for step in steps:
                self.multiply(step)
        self.problems.raise_them()
        return Scenario(
            path=self.path,
            name=name or Path(self.path).stem,
            seed=self.seed,
            rows=tuple(self.rows),
            on_failure=on_failure or failure or "continue",
            time_limit_s=limit if time_limit_s is None else time_limit_s,
            variables=dict(self.variables),
        )

    # --- the top of the file ---

    def one(self, key: str, parse: Callable[[str, str], Parsed]) -> Parsed | None:
        """Return a single value of the top, None where it is not there."""
        node = self.nodes.get(key)
        if node is not None:
            with self.problems.catch():
                return self.parsed(self.filled(node), key, parse)
        return None

    def parsed(self, node: yaml.Node, name: str, parse: Callable[[str, str], Parsed]) -> Parsed:
        placed = self.reader.scalar(node, name)
        value: Parsed = self.reader.checked(placed.place, parse, placed.text, name)
        return value

    def read_seed(self, given: int | None) -> None:
        node = self.nodes.get("seed")
        found = None if node is None else self.parsed(node, "seed", integer(0, _MOST_SEED))
        self.seed = next((seed for seed in (given, found) if seed is not None), 1)
        self.variables["seed"] = str(self.seed)

    def read_variables(self, given: Mapping[str, str]) -> None:
        node = self.nodes.get("vars")
        if node is not None:
            for key, key_node, value in self.reader.entries(node, "vars", None):
                with self.problems.catch():
                    self.check_name(key, key_node, "vars")
                    # A later variable may be made of earlier ones.
                    placed = self.reader.scalar(self.filled(value), f"vars.{key}")
                    self.variables[key] = given.get(key, placed.text)
        for key in given:
            if key not in self.variables or key == "seed":
                raise RequestError(
                    f"--var {key}: {self.path} has no such variable",
                    why=f"its vars: {', '.join(name for name in self.variables if name != 'seed') or 'none'}",
                    fix="--seed N" if key == "seed" else f"add it under vars: in {self.path}, or leave it away",
                    code="unknown_variable",
                )

    def check_name(self, key: str, node: yaml.Node, what: str) -> None:
        if not NAME.fullmatch(key) or (what == "vars" and key == "seed"):
            raise RequestError(
                f"{self.reader.place(node)}: {what}: {key!r} cannot be the name of a variable",
                why="a name is letters, digits and _, and `seed` is the scenario's own",
                fix=f"{what}: {{size: 1MiB}}",
                code="bad_scenario",
            )

    def filled(
        self, node: yaml.Node, values: Mapping[str, str] | None = None, servers: set[int] | None = None
    ) -> yaml.Node:
        """Return the node with ${variables} of the file and of this row; `servers` collects the ones it names."""
        known = {**self.variables, **(values or {})}

        def lookup(name: str) -> str | None:
            if name in known:
                return known[name]
            if servers is None or not name.endswith(".address"):
                return None
            number = self.find_server(name.removesuffix(".address"), values or {}, self.reader.place(node))
            servers.add(number)
            return address_mark(number)

        addresses = [f"{row.step}.address" for row in self.rows if row.action == "serve"]
        names = (*known, *dict.fromkeys(addresses if servers is not None else ()))
        return expand(node, lookup, names, self.reader.place)

    # --- steps ---

    def other_command(self) -> str:
        """Return what reads a file without steps."""
        commands = [f"p2prw serve -c {self.path}"] if "serve" in self.nodes else []
        if "transfer" in self.nodes:
            commands.append(f"p2prw write -c {self.path} (or read)")
        if "bench" in self.nodes:
            commands.append(f"p2prw bench -c {self.path}")
        return ", ".join(commands) or _FIX

    def read_steps(self) -> list[_Step]:
        node = self.nodes.get("steps")
        if node is None:
            raise RequestError(
                f"{self.path}: steps are missing",
                why="they are what runs",
                fix=self.other_command(),
                code="bad_scenario",
            )
        steps: list[_Step] = []
        for group, item in enumerate(self.items(node, "steps")):
            with self.problems.catch(refers=True):
                self.read_step(item, group, steps)
        seen: dict[str, str] = {}
        for step in steps:
            if step.name in seen:
                self.problems.report(
                    RequestError(
                        f"{step.place}: there are two steps named {step.name!r}",
                        why=f"the first is at {seen[step.name]}; reports and ${{NAME.address}} need one each",
                        fix=f"name: {step.name}-2",
                        code="duplicate_key",
                    )
                )
            seen.setdefault(step.name, step.place)
        if not steps and not self.problems.errors:
            raise RequestError(
                f"{self.reader.place(node)}: steps: there is none",
                why="they are what runs",
                fix=_FIX,
                code="bad_scenario",
            )
        return steps

    def items(self, node: yaml.Node, name: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise RequestError(
                f"{self.reader.place(node)}: {name}: expected a list", why="its order counts", fix=_FIX, code="bad_yaml"
            )
        return list(node.value)

    def read_step(self, node: yaml.Node, group: int, steps: list[_Step], parallel: str | None = None) -> None:
        """Append the step, or those of a parallel one, whose name is `parallel` inside."""
        before = self.problems.reported
        place = self.reader.place(node)
        label = f"step {len(steps) + 1}"
        entries = self.reader.entries(node, label, tuple(STEP_KEYS))
        nodes = {key: value for key, _, value in entries}
        actions = [key for key in ACTIONS if key in nodes]
        if len(actions) != 1:
            self.problems.stop_since(before)  # A misspelt action is told already.
            raise RequestError(
                f"{place}: {label}: expected one of {', '.join(ACTIONS)}, got {' and '.join(actions) or 'none'}",
                why="a step does one thing",
                fix='write: {peer: 127.0.0.1/scratch, from: "host,size=1MiB"}',
                code="bad_scenario",
            )
        action = actions[0]
        if action == "parallel":
            extra = [key for key in nodes if key not in ("parallel", "name")]
            if parallel is not None or extra:
                raise RequestError(
                    f"{place}: {label}: parallel stands with a name at most, and not inside another",
                    why="its own steps say what they do and expect",
                    fix="parallel: [{name: a, write: {...}}, {name: b, read: {...}}]",
                    code="bad_scenario",
                )
            together = self.reader.scalar(nodes["name"], f"{label}.name").text if "name" in nodes else ""
            for item in self.items(nodes["parallel"], "parallel"):
                with self.problems.catch(refers=True):
                    self.read_step(item, group, steps, together)
            return
        if ("op" in nodes) != (action == "transfer"):
            raise RequestError(
                f"{place}: {label}: op and transfer stand together",
                why="write and read say it themselves; transfer needs it",
                fix="op: write",
                code="bad_scenario",
            )
        if "name" in nodes:
            name = self.reader.scalar(nodes["name"], f"{label}.name").text
        else:
            name = "-".join(filter(None, (parallel, action, str(len(steps) + 1))))
        steps.append(
            _Step(name, group, parallel is not None, place, action, nodes, self.read_matrix(nodes.get("matrix"), label))
        )

    def read_matrix(self, node: yaml.Node | None, label: str) -> dict[str, Sequence[str]]:
        matrix: dict[str, Sequence[str]] = {}
        for key, key_node, value in self.reader.entries(node, f"{label}.matrix", None) if node is not None else ():
            self.check_name(key, key_node, f"{label}.matrix")
            items = self.items(value, f"{label}.matrix.{key}")
            matrix[key] = [self.reader.scalar(self.filled(item), f"{label}.matrix.{key}").text for item in items]
            if not matrix[key] or len(set(matrix[key])) != len(matrix[key]):
                raise RequestError(
                    f"{self.reader.place(value)}: {label}.matrix.{key}: needs values, each once",
                    why="every value makes a row of its own, with a name of its own",
                    fix=f"{key}: [4K, 1M]",
                    code="bad_scenario",
                )
        return matrix

    def multiply(self, step: _Step) -> None:
        """Append the step's rows. What is wrong with one is told once, and not again for each of the others."""
        wrong = False
        self.check_count(step, prod(len(values) for values in step.matrix.values()))
        for values in combinations(step.matrix):
            repeats = 1
            with self.problems.catch():
                repeats = (
                    self.of_row(step.nodes.get("repeat"), values, f"{step.name}.repeat", integer(1, MOST_REPEATS)) or 1
                )
            self.check_count(step, repeats)
            for repeat in range(1, repeats + 1):
                before = self.problems.reported
                if not wrong:
                    with self.problems.catch():
                        row = self.make_row(step, values, repeat, repeats)
                    wrong = self.problems.reported > before
                if not wrong:
                    self.rows.append(row)
                elif step.action == "serve":
                    self.rows.append(self.maker.stand_in(self.bare_row(step, values, repeat, repeats)))
                else:
                    return

    def check_count(self, step: _Step, more: int) -> None:
        if len(self.rows) + more > MOST_ROWS:
            raise RequestError(
                f"{step.place}: more than {MOST_ROWS} rows",
                why="matrices multiply",
                fix="fewer values, or several files",
                code="bad_scenario",
            )

    def of_row(
        self, node: yaml.Node | None, values: Mapping[str, str], name: str, parse: Callable[[str, str], Parsed]
    ) -> Parsed | None:
        return None if node is None else self.parsed(self.filled(node, values), name, parse)

    def several(
        self, node: yaml.Node | None, values: Mapping[str, str], name: str, parse: Callable[[str, str], Parsed]
    ) -> tuple[Parsed, ...]:
        """Return what one text or a list of them says."""
        if node is None:
            return ()
        items = list(node.value) if isinstance(node, yaml.SequenceNode) else [node]
        return tuple(self.parsed(self.filled(item, values), name, parse) for item in items)

    def bare_row(self, step: _Step, values: Mapping[str, str], repeat: int, repeats: int) -> Row:
        return Row(
            number=len(self.rows) + 1,
            name=row_name(step.name, values, repeat, repeats),
            step=step.name,
            action=step.action,
            group=step.group,
            words=(),
            place=step.place,
            values=values,
            repeat=repeat,
            together=step.together,
        )

    def make_row(self, step: _Step, values: Mapping[str, str], repeat: int, repeats: int) -> Row:
        nodes, row = step.nodes, self.bare_row(step, values, repeat, repeats)
        parts: dict[str, Any] = {}
        if step.action == "transfer":
            parts["action"] = self.of_row(nodes["op"], values, f"{step.name}.op", choice("write", "read"))
        with self.problems.catch():
            parts["expect"] = self.several(nodes.get("expect"), values, f"{step.name}.expect", parse_expectation)
        with self.problems.catch():
            parts["needs"] = self.several(nodes.get("skip_unless"), values, f"{step.name}.skip_unless", parse_need)
        with self.problems.catch():
            parts["time_limit_s"] = self.of_row(nodes.get("time_limit"), values, f"{step.name}.time_limit", duration)
        try:
            return self.maker.finish(replace(row, **parts), nodes, step.action)
        except RequestError as error:
            # Errors of values carry the value's place; one of a whole request gets the step's.
            if error.what.startswith(f"{self.path}:"):
                raise
            raise at_place(f"{step.place}: {row.name}", error) from error

    def find_server(self, step: str, values: Mapping[str, str], place: str) -> int:
        """Return the row of the server `step` whose matrix has the same values as this row's, where both have them."""
        candidates = [row for row in self.rows if row.action == "serve" and row.step == step]
        fitting = [
            row for row in candidates if all(values.get(key, value) == value for key, value in row.values.items())
        ]
        if len(fitting) == 1:
            return fitting[0].number
        names = list(dict.fromkeys(row.step for row in self.rows if row.action == "serve"))
        why = f"servers before this step: {', '.join(names) or 'none'}"
        if candidates:
            why = f"{len(fitting)} of its rows fit: {', '.join(row.name for row in candidates)}"
        raise RequestError(
            f"{place}: ${{{step}.address}} names no server, or more than one",
            why=why,
            fix="a serve step before this one, with the same matrix values"
            if candidates
            else "- {name: server, serve: {...}}",
            code="unknown_variable",
        )
