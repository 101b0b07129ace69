r"""The words for memory: `KIND[:ARG][,key=value...]` and its YAML map, to a `MemorySpec` and back. Nothing is opened.

A comma inside a path is written `\,` and a backslash `\\`; a backslash before anything else stands for itself.
`access=` belongs to `--region` and not to memory: the caller takes it out between `split_spec` and `make_spec`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from p2prw.engine.model import MemorySpec
from p2prw.engine.topology.pci import normalise_bdf
from p2prw.errors import RequestError
from p2prw.units import parse_size

HUGEPAGE_BYTES = {"2M": 2 * 1024**2, "1G": 1024**3}


class SpecError(RequestError):
    """A memory spec is wrong; `key` is the offending key, so that a YAML reader can find its line."""

    def __init__(self, what: str, *, why: str | None = None, fix: str | None = None, code: str, key: str | None = None):
        super().__init__(what, why=why, fix=fix, code=code)
        self.key = key


def _size(value: str, key: str) -> str:
    parse_size(value, key)
    return value


def _hugepages(value: str, key: str) -> str:
    for name, length_bytes in HUGEPAGE_BYTES.items():
        if parse_size(value, key) == length_bytes:
            return name
    raise SpecError(
        f"{key}: {value!r} is no huge page size",
        why="the kernel has pages of 2 MiB and 1 GiB",
        fix="hugepages=2M or hugepages=1G",
        code="bad_value",
        key=key,
    )


def _number(value: str, key: str) -> str:
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise SpecError(
            f"{key}: {value!r} is not a number from 0 up",
            why="numbers are written in decimal digits",
            fix=f"{key}=0",
            code="bad_value",
            key=key,
        )
    return str(int(value))


def _word(value: str, key: str) -> str:
    if not value:
        raise SpecError(
            f"{key}= has no value",
            why="a key is followed by what it is to be",
            fix=f"{key}=words",
            code="bad_value",
            key=key,
        )
    return value


def _bdf(arg: str, kind: str) -> str:
    address = normalise_bdf(arg)
    if address is None:
        raise SpecError(
            f"{kind}: {arg!r} is not a PCI address",
            why="a PCI address is DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal",
            fix=f"{_KINDS[kind].example} (lspci -D lists addresses)",
            code="bad_pci_address",
            key="pci",
        )
    return address


def _bdf_and_bar(arg: str, kind: str) -> str:
    bdf, slash, bar = arg.rpartition("/")
    if not slash:
        raise SpecError(
            f"{kind}: {arg!r} names no BAR",
            why="a device has up to six BARs",
            fix=f"{kind}:{arg}/0 (or another BAR, 0 to 5)",
            code="missing_argument",
            key="bar",
        )
    if bar not in {"0", "1", "2", "3", "4", "5"}:
        raise SpecError(
            f"{kind}: there is no BAR {bar!r}", why="BARs are 0 to 5", fix=f"{kind}:{bdf}/0", code="bad_bar", key="bar"
        )
    return f"{_bdf(bdf, kind)}/{bar}"


def _path(arg: str, kind: str) -> str:
    if "\0" in arg:
        raise SpecError(
            f"{kind}: a path cannot hold a NUL byte",
            why="the kernel ends a path there",
            fix="file:PATH without it",
            code="bad_path",
            key="path",
        )
    return arg


def _name(arg: str, kind: str) -> str:
    if "/" in arg:
        raise SpecError(
            f"{kind}: {arg!r} is not a name",
            why="it is the name of a file in /dev/dma_heap",
            fix=_KINDS[kind].example,
            code="bad_value",
            key="heap",
        )
    return arg


def _gpu(arg: str, kind: str) -> str:
    return _number(arg, "gpu")


@dataclass(frozen=True, slots=True)
class _Kind:
    example: str
    keys: Mapping[str, Callable[[str, str], str]]
    arg: Callable[[str, str], str] | None = None
    """Checks and normalises ARG; None where the kind takes none."""
    arg_keys: tuple[str, ...] = ()
    """The same in a YAML map; joined with a slash where there are two."""


_RANGE = {"offset": _size, "size": _size}
_SIZE_ONLY = {"size": _size}
_SIZE_AND_PATTERN = {"size": _size, "pattern": _word}
_HOST_KEYS = {"size": _size, "hugepages": _hugepages, "numa": _number, "pattern": _word}
_KINDS: dict[str, _Kind] = {
    "host": _Kind("host,size=64MiB", _HOST_KEYS),
    "file": _Kind("file:PATH", _RANGE, _path, ("path",)),
    "p2pmem": _Kind("p2pmem:0000:01:00.0", _SIZE_AND_PATTERN, _bdf, ("pci",)),
    "bar": _Kind("bar:0000:01:00.0/2", _RANGE, _bdf_and_bar, ("pci", "bar")),
    "vfio": _Kind("vfio:0000:01:00.0/2", _RANGE, _bdf_and_bar, ("pci", "bar")),
    "udmabuf": _Kind("udmabuf,size=16MiB", _SIZE_AND_PATTERN),
    "dmaheap": _Kind("dmaheap:system,size=16MiB", _SIZE_AND_PATTERN, _name, ("heap",)),
    "dm": _Kind("dm,size=4KiB", _SIZE_ONLY),
    "cuda": _Kind("cuda:0,size=64MiB", _SIZE_AND_PATTERN, _gpu, ("gpu",)),
}

MEMORY_KINDS = tuple(_KINDS)


def kind_examples() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return (an example, its keys) of every kind, for help pages."""
    return tuple((rules.example, tuple(rules.keys)) for rules in _KINDS.values())


def parse_memory_spec(text: str) -> MemorySpec:
    """Return the spec that `text` means; RequestError names the nearest valid kind or key."""
    kind, arg, options = split_spec(text)
    return make_spec(kind, arg, options, text)


def split_spec(text: str) -> tuple[str, str | None, dict[str, str]]:
    """Cut `KIND[:ARG][,key=value...]` into its parts, unescaped; only form and duplicate keys are checked."""
    head, *rest = _split_commas(text.strip())
    kind, colon, arg = head.partition(":")
    if not kind:
        raise SpecError(
            f"memory {text!r} has no kind",
            why="memory is KIND[:ARG][,key=value...]",
            fix="host,size=64MiB or file:PATH",
            code="missing_kind",
        )
    options: dict[str, str] = {}
    for word in rest:
        key, equals, value = word.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SpecError(
                f"memory {text!r}: {word!r} is not key=value",
                why="words after the first comma are options",
                fix="write a comma that belongs to a path as \\,"
                if colon and kind == "file"
                else "key=value, such as size=64MiB",
                code="bad_option",
                key=key or None,
            )
        if key in options:
            raise SpecError(
                f"memory {text!r}: {key}= stands there twice",
                why="which one is meant cannot be known",
                fix=f"keep one {key}=",
                code="duplicate_key",
                key=key,
            )
        options[key] = value.strip()
    return kind.strip(), arg if colon else None, options


def make_spec(kind: str, arg: str | None, options: Mapping[str, str], text: str = "") -> MemorySpec:
    """Return a checked spec: known kind, its argument normalised, known keys with readable values."""
    rules = _KINDS.get(kind)
    if rules is None:
        raise _unknown_kind(kind, text)
    if rules.arg is None and arg:
        raise SpecError(
            f"memory kind {kind} takes nothing after a colon, got {arg!r}",
            why=f"it is written {rules.example}",
            fix=rules.example,
            code="unexpected_argument",
        )
    if rules.arg is not None and not arg:
        raise SpecError(
            f"memory kind {kind} needs {' and '.join(rules.arg_keys)}",
            why=f"it is written {rules.example}",
            fix=rules.example,
            code="missing_argument",
            key=rules.arg_keys[0],
        )
    checked = {key: _check_option(kind, rules, key, value) for key, value in options.items()}
    argument = rules.arg(arg, kind) if rules.arg is not None and arg else None
    spec = MemorySpec(kind, argument, checked, text)
    return spec if text else MemorySpec(kind, argument, checked, format_memory_spec(spec))


def memory_spec_from_mapping(mapping: Mapping[str, object]) -> MemorySpec:
    """Return the spec of a YAML map: `{kind: p2pmem, pci: "0000:01:00.0"}`; `SpecError.key` is the bad key."""
    kind = mapping.get("kind")
    if not isinstance(kind, str):
        raise SpecError(
            "a buffer needs a kind",
            why=f"the kinds are {', '.join(MEMORY_KINDS)}",
            fix="kind: host",
            code="missing_kind",
            key="kind" if "kind" in mapping else None,
        )
    rules = _KINDS.get(kind)
    if rules is None:
        raise _unknown_kind(kind, "")
    words = {key: _yaml_word(key, value, rules) for key, value in mapping.items() if key != "kind"}
    # `pci: "0000:01:00.0/2"` says both at once; a `bar:` beside it is then a contradiction and fails as no address.
    parts = [words.pop(key) for key in rules.arg_keys if key in words]
    return make_spec(kind, "/".join(parts) or None, words)


def format_memory_spec(spec: MemorySpec) -> str:
    """Return the text that parses back to an equal spec."""
    head = spec.kind if spec.arg is None else f"{spec.kind}:{_escape(spec.arg)}"
    return ",".join([head, *(f"{key}={_escape(value)}" for key, value in spec.options.items())])


def size_option(spec: MemorySpec, key: str = "size") -> int | None:
    """Return a size option in bytes; None where it was not given."""
    value = spec.options.get(key)
    return None if value is None else parse_size(value, key)


def _check_option(kind: str, rules: _Kind, key: str, value: str) -> str:
    check = rules.keys.get(key)
    if check is None:
        raise SpecError(
            f"memory kind {kind} has no key {key!r}",
            why=f"its keys are {', '.join(rules.keys)}",
            fix=_nearest(key, rules.keys, "="),
            code="unknown_key",
            key=key,
        )
    try:
        return check(value, key)
    except SpecError:
        raise
    except RequestError as error:
        raise SpecError(error.what, why=error.why, fix=error.fix, code=error.code, key=key) from None


def _unknown_kind(kind: str, text: str) -> SpecError:
    looks_like_path = kind.startswith(("/", ".", "~")) or "/" in kind
    return SpecError(
        f"there is no memory kind {kind!r}",
        why=f"the kinds are {', '.join(MEMORY_KINDS)}",
        fix=f"file:{text or kind}" if looks_like_path else _nearest(kind, MEMORY_KINDS, ""),
        code="unknown_kind",
        key="kind",
    )


def _nearest(word: str, valid: Iterable[str], suffix: str) -> str:
    candidates = list(valid)
    close = difflib.get_close_matches(word.lower(), candidates, n=1, cutoff=0.5)
    return f"did you mean {close[0]}{suffix}?" if close else f"one of {', '.join(candidates)}"


def _yaml_word(key: str, value: object, rules: _Kind) -> str:
    if isinstance(value, str):
        return value
    # YAML 1.1 reads 01:00.0 as a number of seconds; what was written cannot be had back from that.
    if isinstance(value, int) and not isinstance(value, bool) and key != "pci":
        return str(value)
    raise SpecError(
        f"{key}: cannot use {value!r}",
        why="YAML did not read it as text",
        fix=f'{key}: "..." (put it in quotes)',
        code="bad_value",
        key=key,
    )


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _split_commas(text: str) -> list[str]:
    words = [""]
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\" and text[position + 1 : position + 2] in ("\\", ","):
            words[-1] += text[position + 1]
            position += 2
            continue
        if character == ",":
            words.append("")
        else:
            words[-1] += character
        position += 1
    return words
