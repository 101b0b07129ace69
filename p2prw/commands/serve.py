"""Offer regions of memory until told to stop."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from p2prw.commands.app import App
from p2prw.commands.options import EXIT_CODES, HelpfulCommand, bench_options, settings_options
from p2prw.commands.show import show_config
from p2prw.engine.affinity import current_cpus
from p2prw.engine.events import ServeEvent
from p2prw.reporters.base import Format

if TYPE_CHECKING:
    from p2prw.engine.model import ServeRequest

EPILOG = f"""\
Examples:
  p2prw serve --region scratch=host,size=64MiB
  p2prw serve --region in=file:image.bin,access=w --overwrite --once
  p2prw serve --region cmb=p2pmem:0000:01:00.0 --listen 10.0.0.1 --token-file token
  p2prw serve -c configs/loopback.yaml
  p2prw serve --smoke --listen 10.0.0.1 --token-file token   (for `p2prw smoke`)

perftest: ib_write_bw -d mlx5_0 -x 3
   here:  p2prw serve --region buffer=host,size=64M -d mlx5_0 -x 3

Environment: P2PRW_<OPTION>, as P2PRW_LISTEN=10.0.0.1; the command line wins.
SIGINT and SIGTERM end it with 0, once the transfers that run are done (at most
--stop-timeout; a second signal ends them); with --once it ends with its
client's code.
{EXIT_CODES}"""

KEPT_EVENTS = 1000
"""`--json` lists the last so many events: a server that runs for a year must not grow."""

SHOWN_WHEN_QUIET = frozenset({"failed"})


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="Offer memory to other hosts until told to stop.")
@settings_options("serve")
@bench_options
@click.pass_obj
def serve(app: App, /, **line: Any) -> int:
    """Offer regions of memory to clients with RDMA READ and WRITE until told to stop."""
    settings = app.settings("serve", line)
    from p2prw.config_requests import serve_request

    if settings["show_config"]:
        return show_config(app, settings, lambda: serve_request(settings))
    request = serve_request(settings)
    app.pin(settings)
    if settings["smoke"]:
        request = _with_smoke_regions(app, request)
    from p2prw.engine.server.server import Server
    from p2prw.engine.server.systemd import ServiceManager
    from p2prw.errors import InterruptedTransfer
    from p2prw.reporters.document import build
    from p2prw.reporters.json import StreamPrinter

    seen: Counter[str] = Counter()
    kept: deque[dict[str, Any]] = deque(maxlen=KEPT_EVENTS)
    warnings: deque[str] = deque(maxlen=KEPT_EVENTS)
    stream: Callable[..., None] | None = None
    if app.mode.format is Format.STREAM:
        stream = StreamPrinter(app.stdout).event

    def on_event(event: ServeEvent) -> None:
        seen[event.kind] += 1
        kept.append({"kind": event.kind, "text": event.text, "fields": event.fields})
        if event.kind == "warning":
            warnings.append(event.text)
        if stream is not None:
            stream("serve", kind=event.kind, text=event.text, fields=event.fields)
        if not app.mode.quiet or event.kind in SHOWN_WHEN_QUIET:
            app.stderr.fact(event.text)

    # The second one still closes in good order, at once; the third is for a server that hangs.
    app.signals_heeded = 2
    app.stop.tell = app.note
    manager = ServiceManager(app.environ, pid=os.getpid())
    try:
        with app.watching(), Server(request, manager=manager, stop=app.stop) as server:
            address = str(server.address)
            code = server.run(app.stop, on_event)
    except InterruptedTransfer:
        # While big memory was taken. Whoever ends a server means it: that is no failure.
        return app.listing(build("serve"), ["stopped before anybody could come"])
    params = {
        "listen": address,
        "device": request.device,
        "once": request.once,
        "regions": [{"name": r.name, "memory": r.memory.text, "access": r.access} for r in request.regions],
        "events_by_kind": dict(seen),
        "cpu_affinity": current_cpus(),
    }
    parts: dict[str, Any] = {"params": params, "results": list(kept), "warnings": list(warnings)}
    if code:
        parts |= {"error": _last_failure(kept, code), "status": "interrupted" if code in (130, 143) else "failed"}
    document = build("serve", code, **parts)
    counts = ", ".join(f"{seen[kind]} {kind}" for kind in ("joined", "granted", "released", "refused", "failed"))
    return app.listing(document, [f"served {address}: {counts}"])


def _with_smoke_regions(app: App, request: ServeRequest) -> ServeRequest:
    from p2prw.engine.smoke.session import regions_to_serve

    regions, skips = regions_to_serve()
    for skip in skips:
        app.note(f"not offered: {skip.memory}: {skip.reason}")
    return replace(request, regions=(*request.regions, *regions))


def _last_failure(kept: deque[dict[str, Any]], code: int) -> dict[str, Any]:
    failures = [event for event in kept if event["kind"] in ("failed", "refused")]
    fields = failures[-1]["fields"] if failures else {}
    word = fields.get("code")
    return {
        "code": word
        if isinstance(word, str) and word.replace("_", "").isalnum() and word.islower()
        else "client_failed",
        "wc_status": None,
        "errno": None,
        "what": failures[-1]["text"] if failures else f"the client ended with exit code {code}",
        "why": None,
        "try": None,
        "side": "local",
    }
