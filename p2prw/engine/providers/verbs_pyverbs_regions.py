"""Memory regions and device memory of pyverbs, and how its errors become ours. Imports nothing of pyverbs itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2prw.engine.providers.verbs_binding import ZERO_BASED, BindingError


def call(modules: Any, verb: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a verb; BindingError with the errno, 0 where pyverbs lost it."""
    try:
        return verb(*args, **kwargs)
    except modules.error as error:
        raise BindingError(str(error), getattr(error, "error_code", 0) or 0) from error
    except MemoryError as error:
        raise BindingError("pyverbs could not allocate", 12) from error


class PyverbsRegion:
    """See `verbs_binding.BoundRegion`. It does not own its memory: whoever mapped it closes this first."""

    def __init__(self, modules: Any, region: Any, address: int, length_bytes: int) -> None:
        self._modules = modules
        self._region: Any = region
        self.lkey: int = region.lkey
        self.rkey: int = region.rkey
        self.address = address
        self.length_bytes = length_bytes

    def close(self) -> None:
        """ibv_dereg_mr."""
        region, self._region = self._region, None
        if region is not None:
            call(self._modules, region.close)


class PyverbsDm:
    """See `verbs_binding.BoundDm`."""

    def __init__(self, modules: Any, pd: Any, memory: Any) -> None:
        self._modules = modules
        self._pd = pd
        self._memory: Any = memory

    def register(self, offset: int, length_bytes: int, access: int) -> PyverbsRegion:
        """ibv_reg_dm_mr; pyverbs does not add ZERO_BASED by itself."""
        region = call(
            self._modules, self._modules.mr.DMMR, self._pd, length_bytes, access | ZERO_BASED, self._memory, offset
        )
        return PyverbsRegion(self._modules, region, 0, length_bytes)

    def close(self) -> None:
        """ibv_free_dm."""
        memory, self._memory = self._memory, None
        if memory is not None:
            call(self._modules, memory.close)
