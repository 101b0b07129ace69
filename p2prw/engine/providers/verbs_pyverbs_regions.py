"""Memory regions and device memory of pyverbs, and how its errors become ours. Imports nothing of pyverbs itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from p2prw.engine.providers.verbs_binding import ZERO_BASED, BindingError
from p2prw.engine.providers.verbs_memory import HeldRegion


def call(modules: Any, verb: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a verb; BindingError with the errno, 0 where pyverbs lost it."""
    try:
        return verb(*args, **kwargs)
    except modules.error as error:
        raise BindingError(str(error), getattr(error, "error_code", 0) or 0) from error
    except MemoryError as error:
        raise BindingError("pyverbs could not allocate", 12) from error


def held(modules: Any, region: Any, address: int, length_bytes: int) -> HeldRegion:
    """Return pyverbs' `MR`, `DmaBufMR` or `DMMR` as ours."""
    return HeldRegion(region, address, length_bytes, partial(call, modules))


class PyverbsDm:
    """See `verbs_binding.BoundDm`."""

    def __init__(self, modules: Any, pd: Any, memory: Any) -> None:
        self._modules = modules
        self._pd = pd
        self._memory: Any = memory

    def register(self, offset: int, length_bytes: int, access: int) -> HeldRegion:
        """ibv_reg_dm_mr; pyverbs does not add ZERO_BASED by itself."""
        region = call(
            self._modules, self._modules.mr.DMMR, self._pd, length_bytes, access | ZERO_BASED, self._memory, offset
        )
        return held(self._modules, region, 0, length_bytes)

    def close(self) -> None:
        """ibv_free_dm."""
        memory, self._memory = self._memory, None
        if memory is not None:
            call(self._modules, memory.close)
