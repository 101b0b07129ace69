"""What `_leaf.c` offers; `runs.py` says what it means."""

from p2prw.engine.roce.runs import Buffer

INTERFACE: int

def build_run(
    prefix: bytes, seeds: list[int], psn: int, data: memoryview, mtu_bytes: int, count: int, *, ack_last: bool
) -> list[Buffer]: ...
def receive_run(
    view: memoryview,
    position: int,
    count: int,
    mtu_bytes: int,
    prefix: int,
    psn: int,
    seeds: list[int] | None,
    index: int,
    target: memoryview,
    offset: int,
    /,
) -> tuple[int, bool]: ...
def engines() -> list[str]: ...
def use_engine(name: str, /) -> None: ...
