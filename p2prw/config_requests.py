"""Effective settings to the requests of the engine: `TransferRequest`, `ServeRequest`, `Timeouts`, peers.

Everything that can be wrong with the words themselves is found here, before anything is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from p2prw.config import Settings, Value
from p2prw.config_memory import resolve_memory, split_access
from p2prw.config_values import at_place
from p2prw.engine.control.token_file import load_token_file
from p2prw.engine.inject import parse_faults
from p2prw.engine.model import (
    MemorySpec,
    Operation,
    PeerAddress,
    QueuePairOptions,
    Route,
    ServedRegion,
    ServeRequest,
    Timeouts,
    TlsClient,
    TlsServer,
    TransferRequest,
)
from p2prw.errors import RequestError
from p2prw.targets import Host, Target, parse_host, parse_target, split_region


@dataclass(frozen=True, slots=True)
class Found:
    """A peer and where it was named."""

    peer: PeerAddress
    origin: str


def transfer_request(settings: Settings, target_text: str | None) -> TransferRequest:
    """Return the request of `write` or `read`. RequestError: a word is missing or wrong; HostError: the token file."""
    operation = Operation(settings.command)
    side = "from" if operation is Operation.WRITE else "to"
    return replace(
        client_request(settings, target_text, operation, side),
        size_bytes=settings["size"],
        chunk_bytes=settings["chunk"],
        staging_bytes=settings["staging"],
        staging_chunk_bytes=_staging_chunk(settings),
        verify=not settings["no_verify"],
        shared=settings["shared"],
        overwrite=settings["overwrite"],
        resume=settings["resume"],
        retries=settings["retries"],
        via=_via(settings),
        max_sgl_rd=settings["max_sgl_rd"],
        force_mr=settings["force_mr"],
    )


def client_request(
    settings: Settings, target_text: str | None, operation: Operation, memory_setting: str
) -> TransferRequest:
    """Return what every client of a region needs; `memory_setting` names the setting that holds its memory."""
    target, origin = _target(settings, target_text)
    if settings["inject"]:
        parse_faults(settings["inject"])
    settings.extra["peer"] = Value(
        target_text or (settings.file and settings.file.peer and settings.file.peer.text), origin
    )
    return TransferRequest(
        operation=operation,
        peer=_peer(target.peer, settings, origin),
        region=target.region,
        memory=_memory(settings, memory_setting),
        region_offset=target.offset_bytes,
        device=settings["device"],
        ib_port=settings["ib_port"],
        verbs_binding=settings["verbs_binding"],
        queue_pair=_queue_pair(settings),
        signal_every=settings["signal_every"],
        rate_limit_bytes_per_s=settings["rate_limit"],
        timeouts=timeouts(settings),
        token=_token(settings),
        tls=_tls_client(settings),
        route=Route(settings["route"]) if settings["route"] else None,
        require_direct=settings["require_direct"],
        force_route=settings["force_route"],
        force_bound_device=settings["force_bound_device"],
        force_block_device=settings["force_block_device"],
        inject=settings["inject"],
        pcap=settings["pcap"],
        gso=not settings["no_gso"],
        leaf=not settings["no_leaf"],
    )


def serve_request(settings: Settings) -> ServeRequest:
    """Return the request of `serve`. RequestError: no region, a bad one, an open door without a lock."""
    host = parse_host(settings["listen"], _where(settings, "listen"), any_port=True)
    listen = _address(host, settings, settings.origin("listen"), "--listen")
    if settings["inject"]:
        parse_faults(settings["inject"])
    token = _token(settings)
    if settings["smoke"] and settings["once"]:
        raise RequestError(
            "--smoke and --once exclude each other",
            why="a smoke test comes many times, once for each cell, and once to ask what there is",
            fix="leave --once away; SIGTERM or --time-limit end the server",
            code="usage",
        )
    tls = _tls_server(settings)
    locked = token is not None or (tls is not None and tls.client_ca_file is not None)
    if not locked and not settings["insecure"] and not is_loopback(listen.host):
        raise RequestError(
            f"--listen {listen} can be reached from other hosts, and there is no token",
            why="whoever reaches the port may read and write the regions",
            fix="--token-file FILE (the same file at the clients), or --insecure on a network you trust",
            code="needs_token",
        )
    return ServeRequest(
        regions=_regions(settings),
        listen=listen,
        device=settings["device"],
        ib_port=settings["ib_port"],
        verbs_binding=settings["verbs_binding"],
        queue_pair=_queue_pair(settings),
        once=settings["once"],
        ready_file=settings["ready_file"],
        metrics=_metrics(settings),
        metrics_file=settings["metrics_file"],
        token=token,
        tls=tls,
        insecure=settings["insecure"],
        allow=settings["allow"] or (),
        max_clients=settings["max_clients"],
        client_bytes=settings["client_bytes"],
        client_regions=settings["client_regions"],
        client_rate_limit_bytes_per_s=settings["client_rate_limit"],
        passive=settings["passive"],
        timeouts=timeouts(settings),
        staging_bytes=settings["staging"],
        staging_chunk_bytes=_staging_chunk(settings),
        via=_via(settings),
        overwrite=settings["overwrite"],
        force_bound_device=settings["force_bound_device"],
        force_block_device=settings["force_block_device"],
        inject=settings["inject"],
        pcap=settings["pcap"],
        gso=not settings["no_gso"],
        leaf=not settings["no_leaf"],
    )


def peer_request(
    settings: Settings, peer_text: str | None
) -> tuple[PeerAddress, str | None, bytes | None, TlsClient | None, Timeouts]:
    """Return what `regions` needs: the server, the one region or None, the token, how to open TLS, the deadlines."""
    region = None
    if peer_text is not None:
        origin = "command line"
        host_text, _, rest = peer_text.partition("/")
        if rest:
            # As it stands behind write and read, so that it can be taken over from there; an offset says nothing here.
            target = parse_target(peer_text, "PEER")
            host, region = target.peer, target.region
        else:
            host = parse_host(host_text, "PEER")
    else:
        target, origin = _target(settings, None, what="PEER")
        host = target.peer
    settings.extra["peer"] = Value(peer_text, origin)
    return _peer(host, settings, origin), region, _token(settings), _tls_client(settings), timeouts(settings)


def timeouts(settings: Settings) -> Timeouts:
    """Return the deadlines; what a command has no option for keeps its default."""
    default = Timeouts()
    return Timeouts(
        connect_retry_s=settings.get("connect_retry", default.connect_retry_s),
        handshake_s=settings.get("handshake_timeout", default.handshake_s),
        idle_s=settings.get("idle_timeout", default.idle_s),
        drain_s=settings.get("drain_timeout", default.drain_s),
        time_limit_s=settings.get("time_limit"),
        client_s=settings.get("client_time_limit", default.client_s),
        stop_s=settings.get("stop_timeout", default.stop_s),
    )


def is_loopback(host: str) -> bool:
    """Return True for localhost, 127.0.0.0/8 and ::1; other names are not looked up and count as reachable."""
    if host.lower() == "localhost":
        return True
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


# --- parts ---


def _target(settings: Settings, text: str | None, what: str = "PEER/REGION") -> tuple[Target, str]:
    if text is not None:
        return parse_target(text, what), "command line"
    placed = settings.file.peer if settings.file else None
    if placed is None:
        example = {"write": " --from host,size=1MiB", "read": " --to host"}.get(settings.command, "")
        command = f"p2prw {settings.command} 127.0.0.1"
        raise RequestError(
            f"{what} is missing",
            why="neither the command line nor a file says where the server is",
            fix=command if what == "PEER" else f"{command}/scratch{example}   (or -c FILE with transfer: peer:)",
            code="missing_peer",
        )
    try:
        return parse_target(placed.text, "transfer.peer"), f"file {placed.place}"
    except RequestError as error:
        raise at_place(placed.place, error) from error


def _peer(host: Host, settings: Settings, origin: str) -> PeerAddress:
    peer = _address(host, settings, origin, "PEER")
    if peer.port == 0:
        raise RequestError(
            "port 0 is for --listen: a client needs the real one",
            why="a server with port 0 picks a free one and writes it to its --ready-file",
            fix="--port 18515",
            code="bad_peer",
        )
    return peer


def _address(host: Host, settings: Settings, origin: str, name: str) -> PeerAddress:
    if host.port is None:
        return PeerAddress(host.host, settings["port"])
    # Both on the line and different: nobody can know which was meant. Elsewhere the more exact word wins.
    if origin == settings.origin("port") == "command line" and settings["port"] != host.port:
        raise RequestError(
            f"{name} says port {host.port} and --port says {settings['port']}",
            why="both are on the command line",
            fix="give one of them",
            code="two_ports",
        )
    return PeerAddress(host.host, host.port)


def _memory(settings: Settings, side: str) -> MemorySpec:
    text = settings[side]
    if text is None:
        raise RequestError(
            f"--{side} MEMORY is missing",
            why="it is the local memory to send" if side == "from" else "it is the local memory to fill",
            fix=f"--{side} host,size=64MiB   or   --{side} file:PATH",
            code="missing_memory",
        )
    try:
        return resolve_memory(text, _buffers(settings))
    except RequestError as error:
        raise at_place(_where(settings, side), error) from error


def _via(settings: Settings) -> MemorySpec | None:
    if settings["via"] is None:
        return None
    try:
        return resolve_memory(settings["via"], _buffers(settings))
    except RequestError as error:
        raise at_place(_where(settings, "via"), error) from error


def _metrics(settings: Settings) -> PeerAddress | None:
    if settings["metrics"] is None:
        return None
    where = _where(settings, "metrics")
    host = parse_host(settings["metrics"], where, any_port=True)
    if host.port is None:
        raise RequestError(
            f"{where}: {settings['metrics']} has no port",
            why="p2prw has no port of its own for metrics",
            fix=f"--metrics {settings['metrics']}:9885",
            code="missing_port",
        )
    return PeerAddress(host.host, host.port)


def _where(settings: Settings, name: str) -> str:
    """Return how to name a setting in an error: the option, the variable, or the place in the file."""
    origin = settings.origin(name)
    if origin.startswith(("file ", "environment ")):
        return origin.partition(" ")[2]
    return "--" + name.replace("_", "-")


def _regions(settings: Settings) -> tuple[ServedRegion, ...]:
    buffers = _buffers(settings)
    regions: list[ServedRegion] = []
    if settings["region"]:
        # Regions of the line replace those of the file: later layers win, they do not mix.
        for text in settings["region"]:
            name, memory = split_region(text, _where(settings, "region"))
            regions.append(_region(name, memory, None, buffers, f"{_where(settings, 'region')} {name}"))
    elif settings.file:
        for entry in settings.file.regions:
            regions.append(_region(entry.name, entry.memory.text, entry.access, buffers, entry.memory.place))
            settings.extra[f"region {entry.name}"] = Value(
                regions[-1].memory.text, f"file {entry.memory.place}", entry.memory.text
            )
    if not regions and not settings["smoke"]:
        raise RequestError(
            "nothing to offer: --region NAME=MEMORY is missing",
            why="a server offers the regions that it is given, and no others",
            fix="p2prw serve --region scratch=host,size=64MiB",
            code="missing_region",
        )
    names = [region.name for region in regions]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(
                f"region {name} is given twice",
                why="a client names the region it wants",
                fix="give each region its own name",
                code="bad_region",
            )
    return tuple(regions)


def _region(name: str, text: str, access: str | None, buffers: Mapping[str, MemorySpec], place: str) -> ServedRegion:
    try:
        memory, written = split_access(text, "access")
        return ServedRegion(name=name, memory=resolve_memory(memory, buffers), access=access or written or "rw")
    except RequestError as error:
        raise at_place(place, error) from error


def _buffers(settings: Settings) -> Mapping[str, MemorySpec]:
    return settings.file.buffers if settings.file else {}


def _token(settings: Settings) -> bytes | None:
    path = settings.get("token_file")
    return load_token_file(path) if path else None


def _tls_client(settings: Settings) -> TlsClient | None:
    given = {key: settings[name] for key, name in _TLS_CLIENT.items() if settings[name] is not None}
    return TlsClient(**given) if given else None


_TLS_CLIENT = {"ca_file": "tls_ca", "fingerprint": "tls_fingerprint", "cert_file": "tls_cert", "key_file": "tls_key"}


def _tls_server(settings: Settings) -> TlsServer | None:
    cert_file, key_file, client_ca_file = settings["tls_cert"], settings["tls_key"], settings["tls_client_ca"]
    if cert_file is not None:
        return TlsServer(cert_file=cert_file, key_file=key_file, client_ca_file=client_ca_file)
    for name in ("tls_key", "tls_client_ca"):
        if settings[name] is not None:
            raise RequestError(
                f"{_where(settings, name)} without --tls-cert",
                why="a server that speaks TLS needs a certificate of its own",
                fix="--tls-cert FILE --tls-key FILE",
                code="usage",
            )
    return None


def _staging_chunk(settings: Settings) -> int:
    chunk: int = settings["staging_chunk"]
    if chunk > settings["staging"]:
        raise RequestError(
            f"--staging-chunk {chunk} is larger than --staging {settings['staging']}",
            why="one slot cannot be larger than all of them",
            fix="raise --staging or lower --staging-chunk",
            code="bad_size",
        )
    return chunk


def _queue_pair(settings: Settings) -> QueuePairOptions:
    return QueuePairOptions(
        depth=settings["tx_depth"],
        max_send_sge=settings["max_send_sge"],
        mtu_bytes=settings["mtu"],
        timeout=settings["timeout"],
        retry_cnt=settings["retry_cnt"],
        rnr_retry=settings["rnr_retry"],
        min_rnr_timer=settings["min_rnr_timer"],
        max_rd_atomic=settings["max_rd_atomic"],
        traffic_class=settings["tclass"],
        service_level=settings["sl"],
        pkey_index=settings["pkey_index"],
        gid_index=settings["gid_index"],
    )
