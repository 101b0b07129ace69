from __future__ import annotations

from p2prw.engine.server.ending import Ending


def test_a_good_end() -> None:
    one = Ending("10.0.0.2:40000", agent="p2prw 1", authenticated=True, token=True, tls=True, whole_bytes=64)
    one.operations["write"] = None
    text, fields = one.describe(None, 0, 1.25, 64, {"mem": None})
    assert text == "10.0.0.2:40000 ended after 1.2 s: ok; write mem, 64 bytes granted, 64 bytes whole; token and TLS"
    assert fields == {
        "client": "10.0.0.2:40000",
        "agent": "p2prw 1",
        "authenticated": True,
        "token": True,
        "tls": True,
        "operations": ["write"],
        "regions": ["mem"],
        "granted_bytes": 64,
        "whole_bytes": 64,
        "moved_bytes": None,
        "elapsed_s": 1.25,
        "ended": "ok",
        "exit_code": 0,
    }


def test_who_had_nothing() -> None:
    text, fields = Ending("10.0.0.2:1").describe("auth_failed", 7, 0.0)
    assert text == "10.0.0.2:1 ended after 0.0 s: auth_failed; nothing granted; no token, no TLS"
    assert (fields["ended"], fields["exit_code"], fields["agent"], fields["regions"]) == ("auth_failed", 7, None, [])


def test_without_an_error_the_exit_code_says_it() -> None:
    assert Ending("a:1").describe(None, 1, 0.0)[1]["ended"] == "broken_off"


def test_what_it_moved_is_known_or_said_to_be_unknown() -> None:
    one = Ending("a:1")
    one.count_moved(None)
    assert one.describe(None, 0, 1.0)[1]["moved_bytes"] is None
    for moved in (0, 5, None, 7):
        one.count_moved(moved)
    assert one.describe(None, 0, 1.0)[1]["moved_bytes"] == 12
