"""Proof that both ends know the same token, without sending it, and keys for what they say afterwards.

HMAC-SHA-256 over role, nonces and transcript. The role keeps a proof from being sent back to its maker, the nonces keep
it from being replayed, and the transcript (both hellos, and the TLS certificate where there is one) keeps somebody in
between from changing what they say (version, GIDs, ports, capabilities). It is no encryption: without TLS, rkeys cross
the network in clear, and data does in any case, as with all of RoCE.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

Role = Literal["client", "server"]
MAC_BYTES = 32


def transcript_hash(client_hello: bytes, server_hello: bytes, binding: bytes = b"") -> bytes:
    """Return SHA-256 over both hello bodies as they were on the wire and the channel binding, each with its length.

    `binding` is SHA-256 of the server's TLS certificate, empty without TLS: whoever relays the proof over another TLS
    connection of his own has another certificate.
    """
    digest = hashlib.sha256()
    for part in (client_hello, server_hello, binding):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


def compute_mac(token: bytes, role: Role, client_nonce: str, server_nonce: str, transcript: bytes) -> str:
    """Return the 64 hex digits by which `role` proves that it knows `token`; nonces are 64 hex digits each."""
    return _derive(token, role.encode(), client_nonce, server_nonce, transcript).hex()


def session_key(token: bytes, sender: Role, client_nonce: str, server_nonce: str, transcript: bytes) -> bytes:
    """Return the key under which `sender` seals its frames of this one session (`seal.py`).

    A label of its own keeps it apart from the proofs, which are on the wire; both nonces make it this session's only.
    """
    return _derive(token, b"seal " + sender.encode(), client_nonce, server_nonce, transcript)


def mac_matches(expected: str, found: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(expected, found)


def _derive(token: bytes, label: bytes, client_nonce: str, server_nonce: str, transcript: bytes) -> bytes:
    # All that follows the label has a fixed length, so no two different tuples make the same message.
    message = b"p2prw/2 " + label + bytes.fromhex(client_nonce) + bytes.fromhex(server_nonce) + transcript
    return hmac.new(token, message, hashlib.sha256).digest()
