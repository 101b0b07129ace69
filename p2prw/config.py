"""One resolver for every setting: default < file < environment < command line; each value says where it came from.

Its rooms:
    p2prw.config_settings   the table: option, YAML key, variable, default
    p2prw.config_values     text -> value
    p2prw.config_yaml       file -> placed text (loaded only when there is a file)
    p2prw.config_requests   settings -> TransferRequest, ServeRequest
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from p2prw.config_settings import BY_NAME, Setting, file_section, settings_of
from p2prw.config_values import nearest, written_as
from p2prw.errors import RequestError

if TYPE_CHECKING:
    from p2prw.config_yaml import FileConfig


@dataclass(frozen=True, slots=True)
class Value:
    """One effective value and where it came from."""

    value: Any
    origin: str
    """`default`, `environment P2PRW_X`, `command line`, or `file F:LINE:COLUMN`."""
    text: str | None = None
    """As written; None for a default."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective settings of one command."""

    command: str
    values: Mapping[str, Value]
    file: FileConfig | None = None
    unknown_variables: tuple[str, ...] = ()
    """P2PRW_ variables that name no setting: most likely misspelt."""
    extra: dict[str, Value] = field(default_factory=dict)
    """What is no option but has an origin too: PEER, regions of the file."""

    def __getitem__(self, name: str) -> Any:
        return self.values[name].value

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value, or `default` where the command has no such setting."""
        value = self.values.get(name)
        return default if value is None else value.value

    def origin(self, name: str) -> str:
        """Return where the value came from."""
        return self.values[name].origin

    def rows(self) -> list[dict[str, Any]]:
        """Return one JSON-able row for each value, for `--show-config`."""
        rows = []
        for name, value in (*self.extra.items(), *self.values.items()):
            setting = BY_NAME.get(name)
            if name in _NOT_SHOWN:
                continue
            row = {"name": name, "value": value.value, "origin": value.origin}
            if setting is not None:
                row |= {"option": setting.option, "variable": setting.variable}
                if value.value is None and setting.shown:
                    row["meaning"] = setting.shown
            if value.text is not None:
                row["text"] = value.text
            rows.append(row)
        return rows


_NOT_SHOWN = frozenset({"show_config", "debug"})


def resolve(
    command: str, line: Mapping[str, Any], environ: Mapping[str, str], file: FileConfig | None = None
) -> Settings:
    """Return the settings of `command`; `line` holds raw option values, None or () where not given.

    `file` is a file that was read already; else -c names one.

    RequestError names the layer: the option, the variable, or file:line:column. HostError: the file cannot be read.
    """
    settings = settings_of(command)
    variables, unknown = _variables(environ)
    values: dict[str, Value] = {}
    config = BY_NAME["config"]
    if file is None and command in config.commands:
        values["config"] = _outer(command, config, line, variables) or Value(None, "default")
        file = _load(values["config"].value)
    for setting in settings:
        if setting.name in values:
            continue
        values[setting.name] = (
            _outer(command, setting, line, variables)
            or _from_file(command, setting, file)
            or Value(setting.default, "default")
        )
        if setting.is_multiple(command) and not isinstance(values[setting.name].value, tuple):
            # One value, from a layer that holds one: a file, a default.
            one = values[setting.name]
            values[setting.name] = replace(one, value=() if one.value is None else (one.value,))
    return Settings(command, values, file, unknown)


def _outer(command: str, setting: Setting, line: Mapping[str, Any], variables: Mapping[str, str]) -> Value | None:
    """Return the value of the line, else of the environment, else None."""
    given = line.get(setting.name)
    if setting.is_multiple(command):
        if given:
            return Value(tuple(given), "command line", "\n".join(given))
        text = variables.get(setting.variable)
        # One region a line: specs may hold spaces, commas and colons.
        return Value(tuple(filter(None, text.split("\n"))), f"environment {setting.variable}", text) if text else None
    if given is not None:
        if isinstance(given, bool):
            return Value(given, "command line")
        given = given if isinstance(given, str) else " ".join(given)
        return Value(setting.parse(given, setting.option), "command line", given)
    text = variables.get(setting.variable)
    # An empty variable is an unset one, so that CI can blank it.
    if text:
        try:
            value = setting.parse(text, setting.variable)
        except RequestError as error:
            raise written_as(error, setting.variable, f"{setting.variable}=") from None
        return Value(value, f"environment {setting.variable}", text)
    return None


def _from_file(command: str, setting: Setting, file: FileConfig | None) -> Value | None:
    section = file_section(command, setting)
    if file is None or section is None:
        return None
    placed = file.values.get((section, setting.name))
    if placed is None:
        return None
    return Value(setting.parse(placed.text, f"{section}.{setting.word}"), f"file {placed.place}", placed.text)


def _load(path: str | None) -> FileConfig | None:
    if path is None:
        return None
    from p2prw.config_yaml import load_config

    file = load_config(path)
    if file.steps:
        raise RequestError(
            f"{file.steps}: this is a scenario, which `p2prw run` reads",
            why="serve, write and read take one transfer or one server from a file",
            fix=f"p2prw run {path}",
            code="needs_run",
        )
    return file


def _variables(environ: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    ours = {name: text for name, text in environ.items() if name.startswith("P2PRW_")}
    known = {setting.variable for setting in BY_NAME.values()}
    unknown = tuple(sorted(ours.keys() - known))
    return ours, unknown


def unknown_variable_notes(names: Iterable[str]) -> list[str]:
    """Return one line for each variable that is nearly a setting's; the rest is none of our business."""
    # What they all begin with would make any two of them alike.
    known = {setting.variable.removeprefix("P2PRW_"): setting.variable for setting in BY_NAME.values()}
    near = {name: nearest(name.removeprefix("P2PRW_"), known, 0.75) for name in names}
    return [f"{name} names no setting; did you mean {known[found]}?" for name, found in near.items() if found]
