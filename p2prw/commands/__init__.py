"""One file per command: parse, call the engine, hand the outcome to a reporter."""
