"""One YAML file to checked text: every key known, every value readable, every error with file:line:column.

The file is composed, not constructed: values stay the text the user wrote, so that YAML 1.1 cannot turn an unquoted
PCI address into a base-60 number, and each keeps its place. Only `yaml.SafeLoader` is used; no tag makes an object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from p2prw.config_files import FileKind, read_whole
from p2prw.config_memory import split_access
from p2prw.config_problems import Problems
from p2prw.config_setting import Setting
from p2prw.config_settings import SCENARIO_KEYS, SECTIONS, keys_of
from p2prw.config_values import at_place, nearest, written_as
from p2prw.engine.memory.spec import SpecError, memory_spec_from_mapping, parse_memory_spec
from p2prw.engine.model import MemorySpec
from p2prw.errors import RequestError
from p2prw.targets import check_access, check_region_name


class Placed(NamedTuple):
    """Text and where it stands: `file:line:column`."""

    text: str
    place: str


@dataclass(frozen=True, slots=True)
class FileRegion:
    """One entry of `serve: regions:`. `memory` is a spec or the name of a buffer, access taken out."""

    name: str
    memory: Placed
    access: str | None


@dataclass(frozen=True, slots=True)
class FileConfig:
    """A file whose every value was readable on its own."""

    path: str
    values: Mapping[tuple[str, str], Placed] = field(default_factory=dict)
    """(section, setting name) -> text."""
    peer: Placed | None = None
    buffers: Mapping[str, MemorySpec] = field(default_factory=dict)
    regions: tuple[FileRegion, ...] = ()
    steps: str | None = None
    """Where `steps`, or another key that only `run` reads, stands, if one does."""


_FIX = "see configs/ in the source tree for files that work"


CONFIG_FILE = FileKind(
    "config file",
    1 << 20,
    "it is a YAML file that must be readable",
    "configs/ in the source tree has examples",
    unreadable="config_file",
    bad="bad_yaml",
)


def load_config(path: str) -> FileConfig:
    """Return the checked file. HostError: cannot be read; RequestError: wrong, with its place."""
    root = compose_file(path)
    if root is None:
        return FileConfig(path)
    reader = Reader(path)
    with reader.problems.catch():
        reader.read(root)
    reader.problems.raise_them()
    return reader.found()


def compose_file(path: str) -> yaml.Node | None:
    """Return the node tree of a YAML file, None for an empty one. HostError: cannot be read; RequestError: no YAML."""
    data = read_whole(path, CONFIG_FILE)
    try:
        return yaml.compose(data, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise RequestError(
            f"{where}: not YAML: {error.problem or error.context}",
            why=error.context or "the text breaks a rule of YAML there or just before",
            fix=_FIX,
            code="bad_yaml",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        what = f"{path}: not YAML: {str(error).splitlines()[0]}"
        raise RequestError(what, why="it cannot be read as text", fix=_FIX, code="bad_yaml") from error


EXTRA_KEYS = {"transfer": ("peer",), "serve": ("regions",)}
"""Keys of a map that are no settings."""


class Reader:
    """Walks node trees; holds nothing but the path, what it found and what is wrong. What is read later wins.

    A key or a value that is wrong is reported to `problems` and left out; a map that is none raises its RequestError.
    """

    def __init__(self, path: str, problems: Problems | None = None) -> None:
        self.path = path
        self.problems = Problems() if problems is None else problems
        self.values: dict[tuple[str, str], Placed] = {}
        self.peer: Placed | None = None
        self.buffers: dict[str, MemorySpec] = {}
        self.regions: list[FileRegion] = []
        self.steps: str | None = None

    def read(self, root: yaml.Node) -> None:
        """Read a whole file."""
        entries = self.entries(root, "the file", (*SECTIONS, *SCENARIO_KEYS))
        # A scenario's other maps may hold variables, which only `run` can fill in.
        self.steps = next((self.place(key_node) for key, key_node, _ in entries if key in SCENARIO_KEYS), None)
        for key, _, node in entries if self.steps is None else ():
            with self.problems.catch():
                self.read_map(key, node)

    def read_map(self, section: str, node: yaml.Node) -> None:
        """Read one of the maps that stand at the top of a file."""
        if section == "buffers":
            self.read_buffers(node)
        else:
            self.read_section(section, node)

    def found(self) -> FileConfig:
        """Return all that was read."""
        return FileConfig(self.path, self.values, self.peer, self.buffers, tuple(self.regions), self.steps)

    def read_section(self, section: str, node: yaml.Node) -> None:
        """Read the words of `device`, `serve` or `transfer`."""
        keys = keys_of(section)
        extra = EXTRA_KEYS.get(section, ())
        for key, _, value in self.entries(node, section, (*keys, *extra)):
            with self.problems.catch():
                if key == "peer" and "peer" in extra:
                    self.peer = self.scalar(value, f"{section}.peer")
                elif key == "regions" and "regions" in extra:
                    self.read_regions(value)
                else:
                    setting = keys[key]
                    placed = self.value_of(setting, value, f"{section}.{key}")
                    # Read now, so that a bad value is an error for every command that is given this file.
                    self.checked(placed.place, setting.parse, placed.text, f"{section}.{key}")
                    self.values[(section, setting.name)] = placed

    def read_buffers(self, node: yaml.Node) -> None:
        """Read named memory."""
        for key, key_node, value in self.entries(node, "buffers", None):
            with self.problems.catch():
                self.buffers[key] = self.read_buffer(key, key_node, value)

    def read_buffer(self, key: str, key_node: yaml.Node, value: yaml.Node) -> MemorySpec:
        """Return one named memory."""
        name = f"buffers.{key}"
        self.checked(self.place(key_node), check_region_name, key, "buffer name")
        if not isinstance(value, yaml.MappingNode):
            placed = self.scalar(value, name, or_map=True)
            spec: MemorySpec = self.checked(placed.place, parse_memory_spec, placed.text)
            return spec
        words = {word: self.scalar(item, f"{name}.{word}") for word, _, item in self.entries(value, name, None)}
        try:
            return memory_spec_from_mapping({word: placed.text for word, placed in words.items()})
        except SpecError as error:
            # The key that is wrong, where the map has it; else the map.
            place = words[error.key].place if error.key in words else self.place(value)
            raise at_place(f"{place}: {name}", error) from error

    def read_regions(self, node: yaml.Node) -> None:
        """Read what a server offers; it replaces what was read before."""
        self.regions.clear()
        for key, key_node, value in self.entries(node, "serve.regions", None):
            with self.problems.catch():
                self.regions.append(self.read_region(key, key_node, value))

    def read_region(self, key: str, key_node: yaml.Node, value: yaml.Node) -> FileRegion:
        """Return one thing that a server offers."""
        name = f"serve.regions.{key}"
        self.checked(self.place(key_node), check_region_name, key, "region name")
        if not isinstance(value, yaml.MappingNode):
            placed = self.scalar(value, name, or_map=True)
            memory, access = self.checked(placed.place, split_access, placed.text, name)
            return FileRegion(key, placed._replace(text=memory), access)
        before = self.problems.reported
        entries = {
            word: self.scalar(item, f"{name}.{word}")
            for word, _, item in self.entries(value, name, ("buffer", "memory", "access"))
        }
        self.problems.stop_since(before)
        memories = [entries[word] for word in ("buffer", "memory") if word in entries]
        if len(memories) != 1:
            raise RequestError(
                f"{self.place(value)}: {name}: expected one of buffer or memory",
                why="a region is one piece of memory",
                fix=f"{key}: {{buffer: NAME, access: rw}}",
                code="bad_yaml",
            )
        access_at = entries.get("access")
        if access_at:
            self.checked(access_at.place, check_access, access_at.text, f"{name}.access")
        return FileRegion(key, memories[0], access_at.text if access_at else None)

    # --- nodes ---

    def entries(
        self, node: yaml.Node, name: str, known: Iterable[str] | None
    ) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """Return (key, its node, value node) of a map; a key that is there twice, or not in `known`, is reported."""
        if not isinstance(node, yaml.MappingNode):
            raise RequestError(
                f"{self.place(node)}: {name}: expected a map of key: value, got {_kind(node)}",
                why=f"its keys: {', '.join(sorted(known))}" if known else "its keys are names of your choice",
                fix=_FIX,
                code="bad_yaml",
            )
        seen: dict[str, str] = {}
        found: list[tuple[str, yaml.Node, yaml.Node]] = []
        for key_node, value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise RequestError(
                    f"{self.place(key_node)}: {name}: a key must be a word",
                    why=f"this one is {_kind(key_node)}",
                    fix=_FIX,
                    code="bad_yaml",
                )
            written: str = key_node.value
            # Hyphens as on the command line are taken too; names of buffers and regions stay as written.
            key = written.replace("-", "_") if known is not None else written
            if key in seen:
                self.problems.report(
                    RequestError(
                        f"{self.place(key_node)}: {name}: {written!r} is given twice",
                        why=f"first at {seen[key]}",
                        fix="remove one of them",
                        code="duplicate_key",
                    )
                )
                continue
            seen[key] = self.place(key_node)
            if known is not None and key not in known:
                near = nearest(key, known)
                self.problems.report(
                    RequestError(
                        f"{self.place(key_node)}: {name}: unknown key {written!r}",
                        why=f"known keys: {', '.join(sorted(known))}",
                        fix=f"did you mean {near!r}?" if near else _FIX,
                        code="unknown_key",
                    )
                )
                continue
            found.append((key, key_node, value))
        return found

    def value_of(self, setting: Setting, node: yaml.Node, name: str) -> Placed:
        """Return the text of a setting's value: `[4K, 64K]` is `4K,64K` where the setting takes that."""
        if not (setting.has_commas and isinstance(node, yaml.SequenceNode) and node.value):
            return self.scalar(node, name)
        return Placed(",".join(self.scalar(item, name).text for item in node.value), self.place(node))

    def scalar(self, node: yaml.Node, name: str, *, or_map: bool = False) -> Placed:
        """Return the text of a scalar as it was written."""
        if not isinstance(node, yaml.ScalarNode):
            wanted = "a memory spec or a map" if or_map else "one value"
            what = f"{self.place(node)}: {name}: expected {wanted}, got {_kind(node)}"
            raise RequestError(what, why="the words are those of the flags", fix=_FIX, code="bad_yaml")
        if node.tag == "tag:yaml.org,2002:null" and node.style is None:
            what = f"{self.place(node)}: {name}: has no value"
            raise RequestError(
                what, why="the key stands alone", fix="a value after the colon, or no key", code="bad_yaml"
            )
        return Placed(node.value, self.place(node))

    def checked(self, place: str, parse: Any, *arguments: str) -> Any:
        """Return `parse(*arguments)`; its RequestError gets the place."""
        try:
            return parse(*arguments)
        except RequestError as error:
            name = arguments[-1]
            raise at_place(place, written_as(error, name, f"{name.rpartition('.')[2]}: ")) from error

    def place(self, node: yaml.Node) -> str:
        """Return `file:line:column`, counted from 1."""
        mark = node.start_mark
        return f"{self.path}:{mark.line + 1}:{mark.column + 1}" if mark else self.path


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a map"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
