"""Every setting of p2prw in one table: option, YAML key, environment variable, default, help. No other list exists.

`--tx-depth 64`, `device: {tx_depth: 64}` and `P2PRW_TX_DEPTH=64` are the same setting. Defaults are read from
`engine.model`, so a program and the command line get the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from p2prw.config_bench_settings import bench_settings
from p2prw.config_setting import Setting as Setting
from p2prw.config_values import (
    auto_or,
    choice,
    cpu_list,
    duration,
    fingerprint,
    flag,
    integer,
    networks,
    number_choice,
    pair,
    rate_limit,
    share,
    size,
    text,
)
from p2prw.engine.model import VERBS_BINDINGS, QueuePairOptions, Route, ServeRequest, Timeouts, TransferRequest
from p2prw.units import format_size

GROUPS = ("What", "Measure", "Device", "Route", "Safety", "Waits", "Tuning", "Faults and captures", "Output")
"""Headings of `COMMAND --help`, in order."""

DATA = frozenset({"write", "read"})
SERVE = frozenset({"serve"})
SMOKE = frozenset({"smoke"})
ENDS = DATA | SERVE
"""Commands that take whole transfers, through files and staging too."""
POSTS = DATA | {"bench"}
MOVES = POSTS | SERVE
TALKS = MOVES | SMOKE | {"regions"}
CLIENTS = POSTS | SMOKE | {"regions"}
ALL = TALKS | {"devices", "topology", "doctor", "run", "compare", "version", "help", "completion"}
RUN = frozenset({"run"})
REPORTS = POSTS | SMOKE | RUN

SECTIONS = ("device", "buffers", "serve", "transfer", "bench")
"""Maps at the top of a YAML file."""

SCENARIO_KEYS = ("name", "seed", "time_limit", "on_failure", "vars", "steps")
"""What else a scenario has there: only `run` reads such a file."""


def _defaults(cls: type[Any]) -> dict[str, Any]:
    return {item.name: item.default for item in fields(cls) if item.default is not MISSING}


_REQUEST = _defaults(TransferRequest)
_SERVE = _defaults(ServeRequest)
_QP = QueuePairOptions()
_WAIT = Timeouts()


def _what() -> Iterator[Setting]:
    group, transfer, serve = "What", ("transfer",), ("serve",)
    yield Setting(
        "from", text, "Local memory to send: KIND[:ARG][,key=value...], or a buffer of the file.", group,
        frozenset({"write"}), sections=transfer, metavar="MEMORY",
    )  # fmt: skip
    yield Setting(
        "to", text, "Local memory to fill: KIND[:ARG][,key=value...], or a buffer of the file.", group,
        frozenset({"read"}), sections=transfer, metavar="MEMORY",
    )  # fmt: skip
    yield Setting(
        "size", size(), "Bytes to move (K = 1024).", group, DATA,
        shown="the smaller of local size and region size minus offset", sections=transfer, spellings=("-s",),
        metavar="SIZE",
    )  # fmt: skip
    yield Setting(
        "region", text, "Memory to offer; may be given many times: NAME=MEMORY[,access=r|w|rw].", group, SERVE,
        metavar="NAME=MEMORY", multiple=True,
    )  # fmt: skip
    yield Setting(
        "smoke", flag, "Offer what `p2prw smoke PEER` tests: scratch regions of host memory and of each kind of device "
        "memory that is allocated for us.", group, SERVE, default=False, sections=serve, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "quick", flag, "Less: host memory at the other end, device memory on one device of a driver, 1 MiB.", group,
        SMOKE, default=False, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "full", flag, "All pairs and addresses, 64 MiB or what 10 min allow.", group, SMOKE, default=False, is_flag=True
    )
    yield Setting(
        "listen", text, "Where to listen; port 0 picks a free one.", group, SERVE, default=_SERVE["listen"].host,
        shown=str(_SERVE["listen"]), sections=serve, metavar="HOST:PORT",
    )  # fmt: skip
    yield Setting(
        "port", integer(0, 65535), "Port of the control channel where PEER or --listen names none.", group, TALKS,
        default=_SERVE["listen"].port, shown=str(_SERVE["listen"].port), sections=("transfer", "serve"),
        spellings=("-p",), metavar="PORT",
    )  # fmt: skip
    yield Setting(
        "once", flag, "End after the first authenticated client, with its exit code.", group, SERVE, default=False,
        sections=serve, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "max_clients", integer(1, 4096), "Clients at a time.", group, SERVE, default=_SERVE["max_clients"],
        shown=str(_SERVE["max_clients"]), sections=serve, metavar="N",
    )  # fmt: skip
    yield Setting(
        "memory", text, "Memory that must be usable: KIND[:ARG].", group,
        SMOKE | {"doctor"}, metavar="MEMORY", multiple_for=SMOKE,
    )  # fmt: skip
    yield Setting(
        "pair", pair, "Will P2PDMA work between these two? A NIC, and memory of a PCI device.", group,
        frozenset({"doctor"}), metavar="NIC MEM", words=2,
    )  # fmt: skip
    yield Setting(
        "strict", flag, "A warning counts as a failure.", group, frozenset({"doctor"}), default=False, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "collect", text, "Write a small, anonymised copy of what was looked at to this directory.", group,
        frozenset({"doctor"}), metavar="DIR",
    )  # fmt: skip
    yield Setting(
        "metrics", text, "Figures for Prometheus at http://HOST:PORT/metrics, without a token; needs p2prw[metrics].",
        group, SERVE, sections=serve, metavar="HOST:PORT",
    )  # fmt: skip
    yield Setting(
        "metrics_file", text, "The same for the node exporter's textfile collector, each 10 s.", group, SERVE,
        sections=serve, metavar="FILE",
    )  # fmt: skip
    yield Setting(
        "ready_file", text, "Write one line HOST:PORT here once clients may come.", group, SERVE, sections=serve,
        metavar="FILE",
    )  # fmt: skip
    yield Setting(
        "dry_run", flag, "Print the plan (segments, work requests, both counts) and move nothing.", group,
        DATA | RUN, default=False, is_flag=True,
    )  # fmt: skip


def _scenario() -> Iterator[Setting]:
    group = "What"
    yield Setting(
        "var", text, "Value of a variable of the file; may be given many times: NAME=VALUE.", group, RUN,
        metavar="NAME=VALUE", multiple=True,
    )  # fmt: skip
    yield Setting(
        "seed", auto_or(integer(0, (1 << 63) - 1), "file"), "Number from which all data is made.", group, RUN | SMOKE,
        shown="run: the file's, else 1; smoke: a new one, shown", metavar="N",
    )  # fmt: skip
    yield Setting(
        "on_failure", choice("continue", "stop"), "At the first row that fails: continue or stop.", group, RUN,
        shown="the file's, else continue", metavar="WORD",
    )  # fmt: skip
    yield Setting(
        "baseline", text, "An earlier result (--json): a figure that is worse is a missed threshold.", group, RUN,
        metavar="FILE",
    )  # fmt: skip
    yield Setting(
        "tolerance", share, "How much worse a figure may be: 5% or 0.05.", group, RUN | {"compare"}, default=0.05,
        shown="5%", metavar="SHARE",
    )  # fmt: skip
    yield Setting(
        "man", flag, "Print the man page, in roff.", group, frozenset({"help"}), default=False, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "schema", flag, "Print the JSON Schema of scenario files, for editors.", group, RUN, default=False,
        is_flag=True,
    )  # fmt: skip
    yield Setting(
        "sysfs", text, "Read this machine's tree instead of /sys: what doctor --collect wrote, or a copy.", group,
        frozenset({"topology", "doctor"}), metavar="PATH",
    )  # fmt: skip


def _device() -> Iterator[Setting]:
    group, section = "Device", ("device",)
    yield Setting(
        "device", text, "soft0, soft:IFACE, soft:ADDRESS, a verbs device, or auto.", group,
        MOVES | SMOKE | {"doctor"}, default="auto", shown="auto", sections=section, key="name",
        spellings=("--ib-dev", "-d"), metavar="DEVICE", multiple_for=SMOKE,
    )  # fmt: skip
    yield Setting(
        "ib_port", integer(1, 255), "Port of a verbs device.", group, MOVES | {"doctor"}, default=_REQUEST["ib_port"],
        shown=str(_REQUEST["ib_port"]), sections=section, key="port", spellings=("-i",), metavar="N",
    )  # fmt: skip
    yield Setting(
        "verbs_binding", choice("auto", *VERBS_BINDINGS),
        f"Drive verbs devices through: auto, {', '.join(VERBS_BINDINGS)}.", group,
        MOVES | SMOKE | {"devices", "doctor"},
        default=_REQUEST["verbs_binding"], shown=_REQUEST["verbs_binding"], sections=section, metavar="NAME",
    )  # fmt: skip
    yield Setting(
        "gid_index", auto_or(integer(0, 65535)), "Row of the GID table; auto picks the pair jointly with the peer.",
        group, MOVES, shown="auto", sections=section, spellings=("-x",), metavar="N",
    )  # fmt: skip
    yield Setting(
        "mtu", auto_or(number_choice(256, 512, 1024, 2048, 4096)), "Path MTU: 256, 512, 1024, 2048 or 4096 bytes.",
        group, MOVES, shown="auto", sections=section, spellings=("-m",), metavar="BYTES",
    )  # fmt: skip
    yield Setting(
        "tx_depth", integer(1, 32768), "Work requests outstanding at most.", group, MOVES, default=_QP.depth,
        shown=str(_QP.depth), sections=section, spellings=("-t",), metavar="N",
    )  # fmt: skip


def _route() -> Iterator[Setting]:
    group, transfer, both = "Route", ("transfer",), ("transfer", "serve")
    yield Setting(
        "route", auto_or(choice(*(str(route.value) for route in Route))),
        f"Pin the local route: {', '.join(route.value for route in Route)}.", group, POSTS, shown="auto: a ladder",
        sections=transfer, metavar="ROUTE",
    )  # fmt: skip
    yield Setting(
        "require_direct", flag, "Fail unless a NIC moves device memory peer to peer, at both ends.", group, POSTS,
        default=False, sections=transfer, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "force_route", flag, "Try a route that p2prw knows cannot work, to see the kernel's errno.", group, POSTS,
        default=False, sections=transfer, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "via", text, "Stage files through this device's memory instead of host memory: their drive DMAs into it.",
        group, MOVES, sections=both, metavar="p2pmem:BDF",
    )  # fmt: skip
    yield Setting(
        "force_bound_device", flag, "Write into a BAR although a driver is bound to its device.", group, MOVES | SMOKE,
        default=False, sections=both, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "force_block_device", text, "Write to this block device although it is mounted or partitioned.", group, MOVES,
        sections=both, metavar="DEVICE",
    )  # fmt: skip
    yield Setting(
        "overwrite", flag, "Replace an existing file.", group, ENDS | REPORTS, default=False, sections=both,
        is_flag=True,
    )  # fmt: skip


def _safety() -> Iterator[Setting]:
    group, transfer, serve, both = "Safety", ("transfer",), ("serve",), ("transfer", "serve")
    yield Setting(
        "token_file", text, "File with the shared token; only its owner may read it (mode 0600).", group, TALKS,
        sections=("transfer", "serve"), metavar="FILE",
    )  # fmt: skip
    yield Setting(
        "allow", networks, "Take clients from these networks only: CIDR[,CIDR...].", group, SERVE, shown="all",
        sections=serve, metavar="NETWORKS", has_commas=True,
    )  # fmt: skip
    yield Setting(
        "client_bytes", auto_or(size(), "none"), "Most bytes granted to one client, all its leases together.", group,
        SERVE, shown="none", sections=serve, metavar="SIZE",
    )  # fmt: skip
    yield Setting(
        "client_regions", auto_or(integer(1, 4096), "none"), "Most regions that one client may use.", group, SERVE,
        shown="none", sections=serve, metavar="N",
    )  # fmt: skip
    yield Setting(
        "client_rate_limit", auto_or(rate_limit, "none"), "Most that one client may move: 500MiB/s, 10Gb/s. Clients "
        "are told and keep to it; on the software device one that does not is ended.", group, SERVE, shown="none",
        sections=serve, metavar="RATE",
    )  # fmt: skip
    yield Setting(
        "passive", flag, "Post nothing towards clients: refuse a ping-pong and a measurement both ways.", group, SERVE,
        default=False, sections=serve, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "tls_cert", text, "Certificate of this end in PEM: serve speaks TLS 1.3 only; a client shows it when asked.",
        group, TALKS, sections=both, metavar="FILE",
    )  # fmt: skip
    yield Setting(
        "tls_key", text, "Its key, without a password, where that is not in the same file.", group, TALKS,
        sections=both, metavar="FILE",
    )  # fmt: skip
    yield Setting(
        "tls_client_ca", text, "Take only clients with a certificate that this CA signed.", group, SERVE,
        sections=serve, metavar="FILE",
    )  # fmt: skip
    yield Setting(
        "tls_ca", text, "Speak TLS; the server's certificate must be for PEER's host and signed by a CA in this file "
        "(the word system: by any CA that this host trusts).", group, CLIENTS, sections=transfer, metavar="FILE",
    )  # fmt: skip
    yield Setting(
        "tls_fingerprint", fingerprint, "Speak TLS; the server's certificate must be the one with this SHA-256.",
        group, CLIENTS, sections=transfer, metavar="SHA256",
    )  # fmt: skip
    yield Setting(
        "insecure", flag, "Listen beyond loopback without a token.", group, SERVE, default=False, sections=serve,
        is_flag=True,
    )  # fmt: skip
    yield Setting(
        "no_verify", flag, "Do not compare digests; the result says \"unverified\".", group, DATA, default=False,
        sections=transfer, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "resume", flag, "Go on with what a broken transfer left at a file; leave what arrives to the next.", group,
        DATA, default=False, sections=transfer, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "shared", flag, "Share the region with other writers; the result says \"unverified: shared\".", group, DATA,
        default=False, sections=transfer, is_flag=True,
    )  # fmt: skip


def _waits() -> Iterator[Setting]:
    group, both = "Waits", ("transfer", "serve")
    yield Setting(
        "connect_retry", duration, "Go on trying to reach the peer for this long.", group, CLIENTS,
        default=_WAIT.connect_retry_s, shown=f"{_WAIT.connect_retry_s:g}s", sections=("transfer",), metavar="TIME",
    )  # fmt: skip
    yield Setting(
        "retries", integer(0, 1000), "Connect again after a lost peer, N times, and go on (files as with --resume).",
        group, DATA, default=_REQUEST["retries"], shown=str(_REQUEST["retries"]), sections=("transfer",), metavar="N",
    )  # fmt: skip
    yield Setting(
        "handshake_timeout", duration, "Longest wait for each answer before data moves.", group, TALKS,
        default=_WAIT.handshake_s, shown=f"{_WAIT.handshake_s:g}s", sections=both, metavar="TIME",
    )  # fmt: skip
    yield Setting(
        "idle_timeout", duration, "End a transfer in which nothing moved for this long.", group, TALKS,
        default=_WAIT.idle_s, shown=f"{_WAIT.idle_s:g}s", sections=both, metavar="TIME",
    )  # fmt: skip
    yield Setting(
        "drain_timeout", duration, "After Ctrl-C: wait this long for what is in flight.", group, MOVES,
        default=_WAIT.drain_s, shown=f"{_WAIT.drain_s:g}s", sections=both, metavar="TIME",
    )  # fmt: skip
    yield Setting(
        "client_time_limit", auto_or(duration, "none"), "Longest stay of one client, however busy it is.", group,
        SERVE, default=_WAIT.client_s, shown="24h", sections=("serve",), metavar="TIME",
    )  # fmt: skip
    yield Setting(
        "stop_timeout", duration, "After SIGTERM or Ctrl-C: how long transfers may still take; a second signal ends "
        "them.", group, SERVE, default=_WAIT.stop_s, shown=f"{_WAIT.stop_s:g}s", sections=("serve",), metavar="TIME",
    )  # fmt: skip
    yield Setting(
        "time_limit", auto_or(duration, "none"), "Bound the whole command (exit 6).", group, TALKS | RUN, shown="none",
        sections=both, metavar="TIME",
    )  # fmt: skip


def _tuning() -> Iterator[Setting]:
    group, transfer, device, both = "Tuning", ("transfer",), ("device",), ("transfer", "serve")
    yield Setting(
        "chunk", size(1, 1 << 31), "Bytes of one work request at most.", group, DATA,
        default=_REQUEST["chunk_bytes"], shown=_short(_REQUEST["chunk_bytes"]), sections=transfer, metavar="SIZE",
    )  # fmt: skip
    yield Setting(
        "signal_every", auto_or(integer(1, 32768)), "Signal one work request in N.", group, POSTS, shown="auto",
        sections=transfer, spellings=("-Q",), metavar="N",
    )  # fmt: skip
    yield Setting(
        "rate_limit", auto_or(rate_limit, "none"), "Post no faster than this: 500MiB/s, 10Gb/s; all queue pairs "
        "together.", group, POSTS, shown="none", sections=transfer, metavar="RATE",
    )  # fmt: skip
    yield Setting(
        "cpu", auto_or(cpu_list, "any"), "Run on these CPUs only: 0,2-3.", group, MOVES, shown="any", sections=device,
        metavar="LIST", has_commas=True,
    )  # fmt: skip
    yield Setting(
        "staging", size(4096, 1 << 40), "Registered host memory that files and bounced memory pass through.", group,
        ENDS, default=_REQUEST["staging_bytes"], shown=_short(_REQUEST["staging_bytes"]), sections=both,
        metavar="SIZE",
    )  # fmt: skip
    yield Setting(
        "staging_chunk", size(4096, 1 << 30), "One slot of it.", group, ENDS,
        default=_REQUEST["staging_chunk_bytes"], shown=_short(_REQUEST["staging_chunk_bytes"]), sections=both,
        metavar="SIZE",
    )  # fmt: skip
    exponents: tuple[tuple[str, Any, str, int, int], ...] = (
        ("timeout", _QP.timeout, "Queue pair timeout: 4.096 us x 2^N.", 0, 31),
        ("retry_cnt", _QP.retry_cnt, "Retries after a timeout or a lost packet.", 0, 7),
        ("rnr_retry", _QP.rnr_retry, "Retries after receiver-not-ready; 7 is for ever.", 0, 7),
        ("min_rnr_timer", _QP.min_rnr_timer, "Code of the shortest receiver-not-ready wait.", 0, 31),
        ("max_rd_atomic", _QP.max_rd_atomic, "READs outstanding at most.", 1, 255),
        ("max_send_sge", _QP.max_send_sge, "SGEs of one work request at most.", 1, 255),
        ("tclass", _QP.traffic_class, "Traffic class of the GRH or IP header.", 0, 255),
        ("sl", _QP.service_level, "Service level.", 0, 15),
        ("pkey_index", _QP.pkey_index, "Row of the P_Key table.", 0, 65535),
    )
    for name, default, help_text, low, high in exponents:
        yield Setting(
            name, integer(low, high), help_text, group, MOVES, default=default, shown=str(default), sections=device,
            metavar="N",
        )  # fmt: skip
    yield Setting(
        "max_sgl_rd", integer(0, 65535), "The kernel's hint for READs through an MR; 0 is never.", group, DATA,
        default=_REQUEST["max_sgl_rd"], shown=str(_REQUEST["max_sgl_rd"]), sections=transfer, metavar="N",
    )  # fmt: skip
    yield Setting(
        "force_mr", flag, "Plan with the MR type, as the kernel's force_mr does.", group, DATA, default=False,
        sections=transfer, is_flag=True,
    )  # fmt: skip


def _faults() -> Iterator[Setting]:
    group, section = "Faults and captures", ("device",)
    yield Setting(
        "inject", text, "Faults on purpose on the software device: drop=1%,dup=1%,reorder=1%,corrupt=1%,rkey=1%,"
        "seed=N; corrupt=4096 (an offset, at write and read) flips a bit that only verification can notice.", group,
        MOVES | SMOKE, sections=section, metavar="FAULTS",
    )  # fmt: skip
    yield Setting(
        "pcap", text, "Write the software device's packets to this file.", group, MOVES, sections=section,
        metavar="FILE",
    )  # fmt: skip
    yield Setting(
        "no_gso", flag, "Send one packet per system call.", group, MOVES, default=False, sections=section,
        is_flag=True,
    )  # fmt: skip
    yield Setting(
        "no_leaf", flag, "Make and check packets in Python even where the compiled code for it was built.", group,
        MOVES, default=False, sections=section, is_flag=True,
    )  # fmt: skip


def _output() -> Iterator[Setting]:
    group = "Output"
    yield Setting(
        "config", text, "YAML file; environment and options win over it.", group, TALKS, spellings=("-c",),
        metavar="FILE",
    )  # fmt: skip
    yield Setting(
        "show_config", flag, "Print each effective value and where it came from; do nothing else.", group,
        TALKS | {"doctor", "topology"}, default=False, is_flag=True,
    )  # fmt: skip
    yield Setting(
        "junit", text, "Write JUnit XML here, for CI systems.", group, RUN | SMOKE, metavar="FILE",
    )  # fmt: skip
    yield Setting(
        "markdown", text, "Write a summary in Markdown here, for a pull request.", group, RUN, metavar="FILE",
    )  # fmt: skip
    yield Setting(
        "report", text, "Write an archive for a bug report here (.tar.gz): everything but secrets.", group, REPORTS,
        metavar="FILE",
    )  # fmt: skip
    yield Setting("json", flag, "One JSON document on stdout.", group, ALL, default=False, is_flag=True)
    yield Setting(
        "json_stream",
        flag,
        "NDJSON on stdout: an event a line, the result last.",
        group,
        TALKS | RUN,
        default=False,
        is_flag=True,
    )
    for name, what in (("dot", "Graphviz text"), ("svg", "an SVG picture")):
        yield Setting(
            name, text, f"Write the tree as {what} to this file.", group, frozenset({"topology"}), metavar="FILE"
        )
    yield Setting("verbose", flag, "Say more.", group, frozenset({"devices", "doctor"}), default=False, is_flag=True)
    yield Setting("quiet", flag, "Nothing on stderr but errors.", group, ALL, default=False, is_flag=True)
    yield Setting("debug", flag, "Show tracebacks.", group, ALL, default=False, is_flag=True)


def _short(length_bytes: int) -> str:
    return format_size(length_bytes).replace(" ", "")


SETTINGS: tuple[Setting, ...] = (
    *_what(), *_scenario(), *bench_settings(), *_device(), *_route(), *_safety(), *_waits(), *_tuning(), *_faults(),
    *_output(),
)  # fmt: skip
BY_NAME = {setting.name: setting for setting in SETTINGS}


def settings_of(command: str) -> tuple[Setting, ...]:
    """Return the settings that `command` has, in the table's order."""
    return tuple(setting for setting in SETTINGS if command in setting.commands)


def file_section(command: str, setting: Setting) -> str | None:
    """Return the YAML map in which `command` looks for `setting`."""
    homes = {"serve": ("serve",), "bench": ("bench", "transfer")}.get(command, ("transfer",))
    return next((section for section in setting.sections if section in ("device", *homes)), None)


def keys_of(section: str) -> dict[str, Setting]:
    """Return YAML key -> setting of one map of the file."""
    return {setting.word: setting for setting in SETTINGS if section in setting.sections}
