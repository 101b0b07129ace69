"""The command line: the group, lazy commands, and the one place where an exception becomes an exit code.

Nothing heavy is imported here: `p2prw --help` knows its commands from the table below, and `p2prw write --help` loads
only `commands.write` and the settings table. numpy, rich, yaml and the engine come when a command runs.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from p2prw import __version__

if TYPE_CHECKING:
    from p2prw.commands.app import App

COMMANDS: dict[str, dict[str, str]] = {
    "Move data": {
        "serve": "Offer memory to other hosts until told to stop.",
        "write": "Write local memory into a region of a server.",
        "read": "Read a region of a server into local memory.",
    },
    "Test": {
        "bench": "Measure bandwidth, message rate and latency.",
        "smoke": "Test every device and memory kind in a minute.",
        "run": "Run a scenario file: transfers, servers and what is expected of them.",
        "compare": "Compare two results; refuse unlike ones.",
    },
    "Look around": {
        "regions": "List the regions that a server offers.",
        "devices": "List devices and device memory of this host.",
        "topology": "Say whether P2PDMA works between two devices, and why.",
        "doctor": "Check this host and say what to type.",
        "version": "Print versions.",
        "help": "Explain a topic, or print the man page.",
        "completion": "Print completion for bash, zsh or fish.",
    },
}
"""Heading -> command -> its line in `p2prw --help`; the module is `p2prw.commands.<command>`."""

EPILOG = """\
Examples:
  p2prw serve --region scratch=host,size=64MiB          (one terminal)
  p2prw write 127.0.0.1/scratch --from file:image.bin   (another)

Next: p2prw COMMAND --help shows its options, exit codes and examples."""

KNOWN = {name: text for commands in COMMANDS.values() for name, text in commands.items()}


class P2prwGroup(click.Group):
    """Commands by task, loaded when they are run; errors as `docs/contract.md` section 3 wants them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help page."""
        return list(KNOWN)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in KNOWN:
            return None
        command: click.Command = getattr(import_module(f"p2prw.commands.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command; an unknown one is a usage error with the nearest name."""
        if args and args[0] not in KNOWN:
            _refuse_command(args[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each task; no command module is imported for it."""
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl(list(commands.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog as it stands."""
        formatter.write_paragraph()
        formatter.write((self.epilog or "") + "\n")

    def main(self, args: Sequence[str] | None = None, *_: Any, standalone_mode: bool = True, **__: Any) -> Any:
        """Run, turn every exception into an exit code, and exit (return the code where not standalone)."""
        code = _run(self, list(sys.argv[1:] if args is None else args))
        if standalone_mode:
            sys.exit(code)
        return code


@click.group(
    cls=P2prwGroup,
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        # --tx_depth is --tx-depth: perftest mixes them, and so do its users.
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
@click.option("--version", "show_version", is_flag=True, help="Print the version.")
@click.pass_context
def cli(ctx: click.Context, show_version: bool) -> int:
    """Move bytes between memory of any kind on two hosts with one-sided RDMA, verified, with the path named."""
    if show_version:
        click.echo(f"p2prw {__version__}")
        ctx.exit(0)
    if ctx.invoked_subcommand is None:
        from p2prw.errors import RequestError

        raise RequestError("no command given", why=f"commands: {', '.join(KNOWN)}", fix="p2prw --help", code="usage")
    return 0


def main() -> None:
    """Entry point of the `p2prw` script."""
    cli.main()


# --- one place where an exception becomes an exit code ---------------------------------------------------------


def _run(group: P2prwGroup, arguments: list[str]) -> int:
    _open_missing_streams()
    from p2prw.commands.app import App
    from p2prw.reporters.base import output_mode
    from p2prw.reporters.output import Output

    app = App(
        stdout=Output(sys.stdout, "stdout"),
        stderr=Output(sys.stderr),
        environ=os.environ,
        arguments=tuple(arguments),
        mode=output_mode(arguments, os.environ),
        command=next((word for word in arguments if word in KNOWN), "p2prw"),
    )
    restore = _install_signal_handlers(app)
    try:
        if "_P2PRW_COMPLETE" in os.environ:
            from p2prw.commands.shells import install

            install()
        outcome = click.Group.main(group, arguments, prog_name="p2prw", standalone_mode=False, obj=app)
        return outcome if isinstance(outcome, int) else 0
    except Exception as error:
        return _report_error(app, error)
    finally:
        restore()


def _open_missing_streams() -> None:
    """Let what was closed (`>&-`) go nowhere; a file opened later must not get its descriptor, and our words."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                # The lowest free descriptor is this one: those below it are open by now.
                os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


_OTHERS_WORDS = ("--from", "--to", "--memory", "--local-memory", "--region", "--buffer")
_OUR_WORDS = ("--from", "--to", "--local-memory", "--region")
"""`read --from` is no misspelling: it is another command's word for memory; the first that a command has is its own."""


def _report_error(app: App, error: Exception) -> int:
    """Show an exception that left a command and return the exit code it means."""
    from p2prw.errors import InterruptedTransfer, P2prwError
    from p2prw.reporters.document import error_document
    from p2prw.reporters.listing import show_document
    from p2prw.reporters.output import unwritable
    from p2prw.reporters.text import print_error

    known: P2prwError
    if isinstance(error, P2prwError):
        known = error
    elif isinstance(error, click.ClickException):
        known = _usage_error(app, error)
    elif isinstance(error, click.Abort):
        known = InterruptedTransfer()
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
        # click writes help pages by itself.
        app.stdout.give_up()
        known = unwritable("stdout", error)
    else:
        known = _unexpected(app, error)
    if app.mode.debug:
        import traceback

        for line in "".join(traceback.format_exception(error)).splitlines():
            app.stderr.line(line)
    document = error_document(app.command, known)
    unreported = _report_on(app, document)
    if not app.reported:
        app.reported = True
        show_document(app.mode, app.stdout, document)
    for one in (known, *known.more, unreported):
        if one is not None:
            print_error(one, app.stderr)
    if known.unshown:
        app.stderr.line(f"and {known.unshown} more")
    code: int = document["exit_code"]
    return code


def _report_on(app: App, document: dict[str, Any]) -> Any:
    """Write the --report of a command that ended in an exception; return what went wrong."""
    if app.report is None:
        return None
    # A signal from here on must not come between the outcome and its report; a second one ends the command at once.
    app.stop_is_watched = True
    from p2prw.commands.report import report_on
    from p2prw.reporters.document import add_failure

    error = report_on(app, document)
    if error is not None:
        add_failure(document, error)
    return error


def _usage_error(app: App, error: click.ClickException) -> Any:
    """Return click's complaint in our words, with the nearest option where one is unknown."""
    from p2prw.config_values import nearest
    from p2prw.errors import RequestError

    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx else " ".join(dict.fromkeys(("p2prw", app.command)))
    fix = f"{path} --help"
    if isinstance(error, click.NoSuchOption):
        options = [
            name
            for parameter in (ctx.command.get_params(ctx) if ctx else ())
            if not getattr(parameter, "hidden", False)
            for name in parameter.opts
        ]
        near = nearest(error.option_name, options, 0.75)
        if error.option_name in _OTHERS_WORDS:
            near = next((word for word in _OUR_WORDS if word in options), near)
        others = _commands_with(error.option_name)
        if near:
            fix = f"did you mean {near}?   ({path} --help lists all)"
        return RequestError(
            f"{path} has no option {error.option_name}",
            why=f"it is an option of {', '.join(others)}" if others else "no command has it",
            fix=fix,
            code="unknown_option",
        )
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return RequestError(
            f"{path}: {error.param.make_metavar(ctx) if ctx else error.param.name} is missing",
            why="the command line cannot be read",
            fix=fix,
            code="usage",
        )
    message = error.format_message().rstrip(".")
    return RequestError(
        f"{path}: {message[:1].lower()}{message[1:]}", why="the command line cannot be read", fix=fix, code="usage"
    )


def _commands_with(option: str) -> list[str]:
    """Return the commands that have this option."""
    from p2prw.config_settings import BY_NAME

    setting = BY_NAME.get(option.removeprefix("--").removeprefix("no-").replace("-", "_"))
    return [name for name in KNOWN if setting is not None and name in setting.commands]


def _refuse_command(word: str) -> None:
    from p2prw.config_values import nearest
    from p2prw.errors import RequestError

    near = nearest(word, KNOWN)
    raise RequestError(
        f"there is no command {word!r}",
        why=f"commands: {', '.join(KNOWN)}",
        fix=f"did you mean `p2prw {near}`?" if near else "p2prw --help",
        code="unknown_command",
    )


def _unexpected(app: App, error: Exception) -> Any:
    """Save a report of a defect and return one line that names it."""
    import platform
    import shlex
    import tempfile
    import traceback

    from p2prw.errors import P2prwError

    where: str | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="p2prw-report-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as report:
            report.write(f"p2prw {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
            report.write(f"p2prw {shlex.join(app.arguments)}\n\n{''.join(traceback.format_exception(error))}")
            where = report.name
    except OSError:
        pass
    return P2prwError(
        f"p2prw stopped on an unexpected {type(error).__name__}: {error}",
        why=f"this is a defect; a report is in {where}" if where else "this is a defect",
        fix="the same command with --debug shows where; please file the report" if where else "--debug shows where",
        code="internal",
    )


# --- signals ---------------------------------------------------------------------------------------------------


def _install_signal_handlers(app: App) -> Callable[[], None]:
    """Route SIGINT and SIGTERM to `app`; return what puts the old handlers back."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def handle(number: int, frame: object) -> None:
        if app.stop.times >= (app.signals_heeded if app.stop_is_watched else 1):
            _leave_at_once(app, number)
        app.stop.set(number)
        if not app.stop_is_watched:
            from p2prw.errors import InterruptedTransfer

            raise InterruptedTransfer(signal_number=number)

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    return restore


def _leave_at_once(app: App, number: int) -> None:
    """Second signal: no drain, no goodbye. stdout still gets its document where one was promised."""
    from p2prw.errors import InterruptedTransfer
    from p2prw.reporters.base import Format
    from p2prw.reporters.document import dump, error_document
    from p2prw.reporters.json import STREAM_SCHEMA

    # Written to the descriptors: the interrupted code may be inside the buffered streams, which are not reentrant.
    last_words = b""
    if not app.reported and app.mode.format is not Format.TEXT:
        document = error_document(app.command, InterruptedTransfer(signal_number=number))
        if app.mode.format is Format.STREAM:
            document = {"schema": STREAM_SCHEMA, "event": "result", "result": document}
        last_words = dump(document).encode()
    # ESC[?25h shows the cursor that the live view hid.
    parting = (b"\x1b[?25h\n" if app.live else b"") + (f"{app.parting}\n".encode() if app.parting else b"")
    for stream, data in ((app.stdout.stream, last_words), (app.stderr.stream, parting)):
        try:
            if data:
                os.write(stream.fileno(), data)
        except (OSError, ValueError):
            pass
    os._exit(128 + number)
