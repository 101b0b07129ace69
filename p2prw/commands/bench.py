"""Measure bandwidth, message rate and latency to a region of a server."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2prw.commands.app import App
from p2prw.commands.options import HelpfulCommand, settings_options
from p2prw.commands.show import show_config

if TYPE_CHECKING:
    from p2prw.config import Settings
    from p2prw.engine.bench.measure import Event
    from p2prw.engine.bench.model import BenchRequest, BenchResult

EPILOG = """\
Examples:
  p2prw bench 127.0.0.1/scratch
  p2prw bench 10.0.0.1/scratch --op both -a --plot sizes.svg
  p2prw bench 10.0.0.1/scratch --test lat --op read -s 2,4K --max-lat p99=50us
  p2prw bench 10.0.0.1/scratch -s 64K -D 5 -q 4 --min-bw "1 GiB/s" --json
  p2prw bench 10.0.0.1/scratch -b -s 64K,1M --verify
  p2prw bench 10.0.0.1/scratch -d rxe0 -s 64K --pairs 15 --against "ib_write_bw -N"

--op write overwrites the region: serve one that holds nothing of value. Nobody else
gets it meanwhile. Write latency is by completion, a whole round trip; ib_write_lat
halves a ping-pong, as --lat-by ping-pong does. With -b the server posts the same
towards us at the same time; its READs go to memory of its own, not to the region.

perftest: ib_write_bw -d mlx5_0 -x 3 -a -n 5000 -Q 32 -N -F HOST
   here:  p2prw bench HOST/REGION -d mlx5_0 -x 3 -a -n 5000 -Q 32 -N -F
          and --format perftest for its columns

Environment: P2PRW_<OPTION>, as P2PRW_TX_DEPTH=64; the command line wins.
Exit codes: 0 ok, 1 a run failed, 2 usage, 3 environment, 4 verification,
5 threshold missed, 6 time limit, 7 refused by the peer, 130/143 signal."""


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="Measure bandwidth, message rate and latency.")
@click.argument("target", metavar="PEER/REGION[+OFFSET]", required=False)
@settings_options("bench")
@click.pass_obj
def bench(app: App, /, target: str | None, **line: Any) -> int:
    """Measure bandwidth, message rate and latency of RDMA WRITE and READ to a region of a server.

    PEER is HOST[:PORT] or [V6]:PORT; `p2prw serve --region NAME=host,size=64MiB` runs there.
    """
    settings = app.settings("bench", line)
    from p2prw.config_bench import bench_request

    if settings["show_config"]:
        return show_config(app, settings, lambda: bench_request(settings, target))
    request = bench_request(settings, target)
    app.pin(settings)
    from p2prw.commands.report import reported_result
    from p2prw.engine.bench.model import BenchRow
    from p2prw.engine.steps import finish
    from p2prw.reporters.bench import BenchReporter, choose_printer
    from p2prw.reporters.bench_text import describe_bench
    from p2prw.reporters.choose import choose_view

    if app.report is not None:
        app.report.more["plan.txt"] = describe_bench(request) + "\n"
    if settings["plot"]:
        _check_plot(Path(settings["plot"]))
    events = _start(app, request, settings)
    printer = choose_printer(
        app.mode,
        app.stdout,
        perftest=settings["format"] == "perftest",
        gbits=settings["report_gbits"],
        peak=not settings["no_peak"],
    )
    reporter = BenchReporter(choose_view(app.mode, app.stderr, app.environ), printer)

    def show(event: Event) -> None:
        if isinstance(event, BenchRow):
            reporter.row(event)
        else:
            reporter.progress(event)

    with app.drawing(reporter), app.watching():
        reporter.started(request)
        app.stop.tell = reporter.view.waiting
        result = reported_result(app, finish(events, show))
        app.reported = True
        reporter.finished(result)
    if settings["plot"] and result.results:
        _draw(app, Path(settings["plot"]), result)
    return result.exit_code


def _start(app: App, request: BenchRequest, settings: Settings) -> Generator[Event, None, BenchResult]:
    """Return what runs; nothing does yet. RequestError where wishes contradict each other."""
    if settings["against"] is None:
        from p2prw.engine.bench.session import run_bench

        return run_bench(request, stop=app.stop)
    if settings["format"] == "perftest":
        from p2prw.errors import RequestError

        raise RequestError(
            "--against and --format perftest exclude each other",
            why="perftest's columns have no place for a comparison",
            fix="leave --format away, or --json",
            code="usage",
        )
    from p2prw.against.session import run_against
    from p2prw.against.tools import parse_command

    return run_against(request, parse_command(settings["against"]), settings["pairs"], app.environ, stop=app.stop)


def _check_plot(path: Path) -> None:
    """Refuse a file that cannot be made now, not after minutes of measuring."""
    from p2prw.errors import HostError

    if path.suffix.lower() != ".svg" and not path.is_dir():
        from p2prw.errors import RequestError

        raise RequestError(
            f"--plot {path}: the picture is an SVG file",
            why="its name is to say so",
            fix=f"--plot {path.with_suffix('.svg') if path.name else 'sizes.svg'}",
            code="bad_plot",
        )
    if not path.parent.is_dir() or path.is_dir():
        raise HostError(
            f"--plot {path}: there is no such directory" if not path.is_dir() else f"--plot {path} is a directory",
            why="the picture is written there when all sizes are measured",
            fix=f"--plot {path.name or 'sizes'}.svg" if path.is_dir() else f"mkdir -p {path.parent}",
            code="cannot_write_plot",
        )


def _draw(app: App, path: Path, result: BenchResult) -> None:
    """Write the picture; the figures are out already, so a full disk is a warning."""
    from p2prw.engine.whole_file import write_whole
    from p2prw.errors import HostError
    from p2prw.reporters.bench_svg import svg_plot
    from p2prw.units import format_size

    device = (result.environment.get("device") or {}).get("name", "")
    walk = f", round {format_size(walked)}" if (walked := result.params.get("walk_bytes")) else ""
    title = f"p2prw bench {result.params['peer']}/{result.params['region']} over {device}{walk}"
    try:
        write_whole(str(path), svg_plot(result.results, title).encode(), "--plot")
    except HostError as error:
        app.stderr.line(f"warning: {error.what}")
