"""Effective settings to a `SmokeRequest`."""

from __future__ import annotations

from p2prw.config import Settings
from p2prw.config_requests import peer_request, timeouts
from p2prw.engine.inject import parse_faults
from p2prw.engine.smoke.model import Preset, SmokeRequest
from p2prw.errors import RequestError


def smoke_request(settings: Settings, peer_text: str | None, fresh_seed: int) -> SmokeRequest:
    """Return the request of `smoke`; `fresh_seed` is taken where no --seed was given.

    Without PEER every device talks to itself, whatever peer a file names.
    """
    if settings["quick"] and settings["full"]:
        raise RequestError(
            "--quick and --full exclude each other", why="one is less, the other more", fix="give one", code="usage"
        )
    if settings["inject"]:
        parse_faults(settings["inject"])
    peer, token, tls = None, None, None
    if peer_text is not None:
        peer, region, token, tls, _ = peer_request(settings, peer_text)
        if region is not None:
            raise RequestError(
                f"smoke takes no region: {peer_text}",
                why="it uses those of the peer's `serve --smoke`, and writes to them",
                fix=f"p2prw smoke {peer_text.partition('/')[0]}",
                code="usage",
            )
    return SmokeRequest(
        seed=fresh_seed if settings["seed"] is None else settings["seed"],
        peer=peer,
        devices=tuple(name for name in settings["device"] if name != "auto"),
        memories=settings["memory"],
        preset=Preset.QUICK if settings["quick"] else Preset.FULL if settings["full"] else Preset.USUAL,
        inject=settings["inject"],
        token=token,
        token_file=settings["token_file"],
        tls=tls,
        timeouts=timeouts(settings),
        verbs_binding=settings["verbs_binding"],
        force_bound_device=settings["force_bound_device"],
    )
