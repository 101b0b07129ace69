"""The compiled twin of `runs`: `_leaf.c`, where an installation could build it (scripts/build_leaf.py).

It is a leaf: it knows no queue pair, no PSN state and no key, only a run of packets, the buffers it is given and, where
`providers/soft_wire.py` hands it one, a socket's descriptor. All decisions stay in Python, and so does everything else
where it was not built.
"""

from __future__ import annotations

from types import ModuleType

from p2prw.engine.roce.runs import PURE, RunCodec

INTERFACE = 7
"""Of `_leaf.c`: a binary from before a change (an editable installation that was not repeated) is left alone."""


def codec_of(module: ModuleType | None) -> RunCodec | None:
    """Return what a compiled module offers; None: nothing that fits this source."""
    if module is None or getattr(module, "INTERFACE", None) != INTERFACE:
        return None
    return RunCodec(
        f"compiled ({module.engines()[0]})",
        module.build_run,
        module.receive_run,
        # Linux only, as the device is.
        getattr(module, "send_runs", None),
        getattr(module, "receive_runs", None),
    )


def _load() -> ModuleType | None:
    try:
        from p2prw.engine.roce import _leaf
    except ImportError:
        # Not built; or built for another machine, or a newer libc.
        return None
    return _leaf


COMPILED = codec_of(_load())


def choose_codec(*, leaf: bool = True) -> RunCodec:
    """Return the compiled functions where there are any and `leaf` allows them, else the plain ones."""
    return COMPILED if leaf and COMPILED is not None else PURE
