"""The text of `p2prw help TOPIC`, made from the tables that the code itself uses: it cannot say something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

TOPICS = {
    "memory": "KIND[:ARG][,key=value...]: what can be moved",
    "routes": "how a device reaches memory, and in which order that is tried",
    "exit-codes": "what each exit code means, and which one wins",
    "scenario": "the format of `p2prw run` files",
    "environment": "P2PRW_ variables",
    "errors": "classes of errors and their exit codes",
}

EXIT_CODES = {
    0: "ok",
    1: "transfer failed: a completion error, the peer was lost; an expected failure that did not come",
    2: "usage",
    3: "environment: no device, memory or file; cannot map, register, resolve or connect; no space; no right",
    4: "verification failed",
    5: "threshold missed",
    6: "time limit",
    7: "refused by the peer, another version, or not a p2prw peer",
    130: "SIGINT; what was moved is in the result",
    143: "SIGTERM; what was moved is in the result",
}


def topic_lines(topic: str) -> list[str]:
    """Return the page of one topic."""
    return [TOPICS[topic], "", *_PAGES[topic]()]


def _memory() -> Iterator[str]:
    from p2prw.engine.memory.spec import kind_examples

    yield "As --from, --to and --region take it; in YAML a map with `kind` and the same keys."
    yield ""
    for example, keys in kind_examples():
        yield f"  {example:<28} keys: {', '.join(keys)}"
    yield ""
    yield "A comma inside a path is written \\,  Sizes: 64K, 1M, 4G, 64KiB, 0x1000; K = 1024."
    yield "pattern= is words[:SEED], zero, random[:SEED] or file:PATH."
    yield "`p2prw devices` lists the memory that this host has."


def _routes() -> Iterator[str]:
    from p2prw.engine.model import Route

    yield f"Words of --route: {', '.join(route.value for route in Route)}; auto tries those of the memory's kind."
    yield ""
    yield "  dmabuf  the NIC imports the memory's dma-buf"
    yield "  pin     ibv_reg_mr on the mapping"
    yield "  odp     ibv_reg_mr, on demand"
    yield "  dm      the NIC's own memory"
    yield "  cpu     the software device's loads and stores"
    yield "  bounce  copied through registered host memory"
    yield ""
    yield "A registration that succeeds proves nothing: a route counts when bytes came out"
    yield "through it. `p2prw devices` shows the routes of each device to each kind;"
    yield "--require-direct refuses all but a NIC that moves device memory peer to peer;"
    yield "--force-route shows the kernel's own errno."


def _exit_codes() -> Iterator[str]:
    from p2prw.errors import SEVERITY

    for code, text in EXIT_CODES.items():
        yield f"  {code:>3}  {text}"
    yield ""
    yield f"Several at once: the first of {', '.join(str(code) for code in SEVERITY if code)} wins."


def _scenario() -> Iterator[str]:
    from p2prw.scenario.expect import EXAMPLES, METRICS
    from p2prw.scenario.keys import FILE_KEYS, STEP_KEYS
    from p2prw.scenario.needs import FORMS

    yield "Keys of the file:"
    yield from (f"  {key:<12} {text}" for key, text in FILE_KEYS.items())
    yield ""
    yield "Keys of a step:"
    yield from (f"  {key:<12} {text}" for key, text in STEP_KEYS.items())
    yield ""
    yield "expect: METRIC OPERATOR VALUE, as"
    yield from (f"  {example}" for example in EXAMPLES.split(", "))
    yield f"  metrics: {', '.join(METRICS)}"
    yield ""
    yield f"skip_unless: {'; '.join(FORMS.values())}"
    yield ""
    yield "configs/matrix_loopback.yaml is a whole example; `p2prw run --schema` is for editors."


def _environment() -> Iterator[str]:
    from p2prw.config_settings import SETTINGS

    yield "Default, then the file (-c), then these variables, then the command line; later wins."
    yield "`--show-config` prints what holds and where it came from. NO_COLOR is obeyed."
    yield ""
    yield from (f"  {setting.variable:<28} {setting.help}" for setting in SETTINGS)


def _errors() -> Iterator[str]:
    from inspect import getdoc

    from p2prw import errors

    yield "Each error says what happened, why, and what to type; `code` in JSON never changes."
    yield ""
    for name, found in vars(errors).items():
        if isinstance(found, type) and issubclass(found, errors.P2prwError) and found is not errors.P2prwError:
            yield f"  {found.exit_code:>3}  {name:<20} {(getdoc(found) or '').splitlines()[0]}"


_PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "memory": _memory,
    "routes": _routes,
    "exit-codes": _exit_codes,
    "scenario": _scenario,
    "environment": _environment,
    "errors": _errors,
}
