"""p2prw: one-sided RDMA READ and WRITE between memory of any kind, verified, with the path named.

    options / YAML -> TransferRequest -> MemorySource -> Device.register -> DmaVec -> RwContext
       (commands)      (engine.model)     (engine.memory)  (engine.providers)         (engine.rw)
                   -> TransferLoop -> Progress, TransferResult -> Reporter
                     (engine.transfer)                        (reporters)
    peer <-- engine.control: hello, open/grant, fill/commit, digest, release

Arrows point one way. The engine is a library: see `p2prw.api` for the few functions a program needs.
"""

from __future__ import annotations

__version__ = "0.1.0"
