"""The control channel: messages (pure), handshake (pure), channel (TCP and deadlines)."""
