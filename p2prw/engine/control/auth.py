"""Proof that both ends know the same token, without sending it: HMAC-SHA-256 over role, nonces and both hellos.

The role keeps a proof from being sent back to its maker, the nonces keep it from being replayed, and the hellos keep
somebody in between from changing what they say (GIDs, ports, capabilities). It is no encryption: rkeys and data cross
the network in clear, as RoCE itself does.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

Role = Literal["client", "server"]


def transcript_hash(client_hello: bytes, server_hello: bytes) -> bytes:
    """Return SHA-256 over both hello bodies as they were on the wire, each with its length before it."""
    digest = hashlib.sha256()
    for body in (client_hello, server_hello):
        digest.update(len(body).to_bytes(4, "big") + body)
    return digest.digest()


def compute_mac(token: bytes, role: Role, client_nonce: str, server_nonce: str, transcript: bytes) -> str:
    """Return the 64 hex digits by which `role` proves that it knows `token`; nonces are 64 hex digits each."""
    # Every part has a fixed length, so no two different tuples make the same message.
    message = b"p2prw/1 " + role.encode() + bytes.fromhex(client_nonce) + bytes.fromhex(server_nonce) + transcript
    return hmac.new(token, message, hashlib.sha256).hexdigest()


def mac_matches(expected: str, found: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(expected, found)
