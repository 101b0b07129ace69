"""The engine: what the command line does, as a library. It never prints, never exits, never imports click or rich.

    TransferRequest -> MemorySource -> MappedBuffers -> Device.register -> DmaVec -> RwContext
                    -> TransferLoop -> Progress... TransferResult

`session.run_transfer` walks that line once for write and read; `server` does it for the other end. Pure parts
(`rw`, `roce`, `control.messages`, `control.handshake`, `pattern`, `diagnose`) read no clock and open no socket.
There are no re-exports here, so that the pure parts import alone.
"""
