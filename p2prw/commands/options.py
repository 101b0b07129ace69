"""The settings table as click options, and the help page of a command: options by group, then examples and exit codes.

Options carry no click default: an option that was not given must be told from one that was, for `p2prw.config`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from p2prw.config_settings import GROUPS, Setting, settings_of
from p2prw.errors import RequestError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

BENCH_OPTIONS = (
    (("--iters", "-n"), False),
    (("--duration", "-D"), False),
    (("--qp", "-q"), False),
    (("--all", "-a"), True),
    (("--report-gbits",), True),
)
"""perftest's measuring options; p2prw has them on `bench`."""

EXIT_CODES = """\
Exit codes: 0 ok, 1 transfer failed, 2 usage, 3 environment, 4 verification,
6 time limit, 7 refused by the peer, 130/143 signal."""

EXIT_CODES_RUN = """\
Exit codes: 0 all as expected; else the worst of the rows wins: 130/143 signal,
4 verification, 1 transfer failed or an outcome that was not the expected one,
7 refused by the peer, 3 environment, 6 time limit, 5 threshold missed. 2 usage."""


# What a word means at one command only, and its default there (None: as everywhere).
HELP_AT: dict[tuple[str, str], tuple[str, str | None]] = {
    ("memory", "smoke"): (
        "Memory that is tested and must be usable: a kind, or KIND:ARG; may be given many times.",
        None,
    ),
    ("seed", "run"): ("Number from which all data is made.", "the file's, else 1"),
    ("seed", "smoke"): ("Number from which all data is made.", "a new one, shown"),
    ("dry_run", "run"): ("Print the rows and their command lines, and run nothing.", None),
    ("device", "smoke"): (
        "Device to test, as `p2prw devices` names it; may be given many times.",
        "all that add something",
    ),
    ("device", "doctor"): ("Device that must work, as `p2prw devices` names it.", "the software device"),
    ("overwrite", "read"): ("Replace an existing file (--to, --report).", None),
    ("overwrite", "write"): ("Replace an existing file (--report); files there are the server's --overwrite.", None),
    ("overwrite", "serve"): ("Replace existing files that clients may write.", None),
    **{("overwrite", name): ("Replace an existing file (--report).", None) for name in ("bench", "smoke", "run")},
    ("verbose", "devices"): ("Show GID tables, limits, and refused routes with the reason.", None),
    ("verbose", "doctor"): ("Show the details of each finding.", None),
}


class SettingOption(click.Option):
    """An option of the table. The `--no-...` twin of a flag, which takes back what a file says, is not shown."""

    def __init__(self, setting: Setting, command: str) -> None:
        declared = [setting.option, *setting.spellings, setting.name]
        if setting.is_flag:
            twin = f"--{setting.option[5:]}" if setting.option.startswith("--no-") else f"--no-{setting.option[2:]}"
            declared[0] = f"{setting.option}/{twin}"
        help_text, shown = HELP_AT.get((setting.name, command), (setting.help, None))
        shown = shown or setting.shown
        if shown is not None:
            help_text += f"  [default: {shown}]"
        super().__init__(
            declared,
            help=help_text,
            default=None,
            multiple=setting.is_multiple(command),
            nargs=setting.words,
            type=None if setting.is_flag else str,
            metavar=None if setting.is_flag else setting.metavar,
        )
        self.setting = setting

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return what may stand here: the words of a choice, devices of this host, or (by the shell) files."""
        from p2prw.commands import complete
        from p2prw.config_values import words_of

        if self.setting.metavar == "MEMORY":
            return complete.memory_specs(incomplete)
        if self.setting.metavar in ("FILE", "DIR", "DIRECTORY"):
            return complete.files(ctx, self, incomplete)
        words = [str(word) for word in words_of(self.setting.parse)]
        if self.setting.name == "device":
            words = ["auto", "soft0", *complete.verbs_devices()]
        return complete.any_of(words, incomplete)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the row of the help page."""
        twins, self.secondary_opts = self.secondary_opts, []
        try:
            return super().get_help_record(ctx)
        finally:
            self.secondary_opts = twins


class HelpfulCommand(click.Command):
    """A command whose help groups its options and keeps the lines of its epilog."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group of settings."""
        grouped: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Argument):
                continue
            record = parameter.get_help_record(ctx)
            if record is not None:
                group = parameter.setting.group if isinstance(parameter, SettingOption) else "Output"
                grouped[group].append(record)
        for group, records in grouped.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records, col_max=34)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog as it stands: examples must keep their lines to be pasted."""
        if self.epilog:
            formatter.write_paragraph()
            for line in self.epilog.strip("\n").split("\n"):
                formatter.write(f"{line}\n" if line else "\n")


def settings_options(command: str) -> Callable[[Decorated], Decorated]:
    """Add every option that `command` has in the table."""

    def decorate(function: Decorated) -> Decorated:
        # click keeps them last first, as stacked decorators do.
        _parameters(function).extend(SettingOption(setting, command) for setting in reversed(settings_of(command)))
        return function

    return decorate


def bench_options(function: Decorated) -> Decorated:
    """Add perftest's measuring options, hidden: each is a usage error that names `p2prw bench`."""
    for names, is_flag in BENCH_OPTIONS:
        _parameters(function).append(
            click.Option(
                list(names), is_flag=is_flag, expose_value=False, hidden=True, callback=_belongs_to_bench, default=None
            )
        )
    return function


def _parameters(function: Callable[..., Any]) -> list[click.Parameter]:
    # The same list click.option() fills (click.decorators._param_memo).
    found: list[click.Parameter] = function.__dict__.setdefault("__click_params__", [])
    return found


def _belongs_to_bench(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    if value is None or value is False:
        return
    raise RequestError(
        f"{' / '.join(option.opts)} measures, and {ctx.command.name} moves bytes once",
        why="repeating, sweeping and rates over time are for `p2prw bench`",
        fix=f"p2prw bench PEER/REGION --op {ctx.command.name} {option.opts[-1]} ...",
        code="belongs_to_bench",
    )
