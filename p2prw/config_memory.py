"""Memory as a setting names it: a buffer of the file, or a spec; a region's access key is taken out of it first."""

from __future__ import annotations

from collections.abc import Mapping

from p2prw.config_values import nearest
from p2prw.engine.memory.spec import format_memory_spec, parse_memory_spec, split_spec
from p2prw.engine.model import MemorySpec
from p2prw.errors import RequestError
from p2prw.targets import check_access


def resolve_memory(text: str, buffers: Mapping[str, MemorySpec]) -> MemorySpec:
    """Return the buffer named `text`, else the spec that `text` is. RequestError for neither, with the nearest."""
    if text in buffers:
        return buffers[text]
    try:
        return parse_memory_spec(text)
    except RequestError as error:
        near = nearest(text, buffers) if error.code == "unknown_kind" else None
        if near is not None:
            error.fix = f"did you mean the buffer {near!r}?"
        raise


def split_access(text: str, name: str) -> tuple[str, str | None]:
    """Return (memory without its access key, access or None) of `MEMORY[,access=r|w|rw]`."""
    kind, arg, options = split_spec(text)
    if "access" not in options:
        return text, None
    access = check_access(options.pop("access"), name)
    return format_memory_spec(MemorySpec(kind, arg, options)), access
