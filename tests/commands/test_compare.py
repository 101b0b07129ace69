"""`p2prw compare`, and `run --baseline` with the same rules."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def results(run, engine, make_ok, tmp_path):
    """Write a result at this rate to a file; return its path."""
    import dataclasses

    def make(name, rate, **changes):
        def result(request):
            found = make_ok(request)
            row = dataclasses.replace(found.results[0], bw_bytes_per_s=rate)
            return dataclasses.replace(found, results=(row,), **changes)

        engine.result = result
        printed = run("write", "127.0.0.1/a", "--from", "host,size=4K", "--json")
        path = tmp_path / name
        path.write_text(printed.stdout)
        return str(path)

    return make


def test_worse_ends_5(run, results):
    old, new = results("a", 1e9), results("b", 0.9e9)
    document, result = run.json("compare", old, new, "--json")
    assert result.exit_code == 5 and document["error"]["code"] == "threshold_missed"
    (row,) = document["results"]
    assert row["worse"] is True and row["change"] == pytest.approx(-0.1)
    assert run("compare", old, new, "--tolerance", "20%").exit_code == 0
    assert run("compare", new, old).stdout.splitlines()[-1] == "1 compared, 0 worse"


def test_unlike_runs_end_2(run, results, engine):
    old = results("a", 1e9)
    new = results("b", 1e9, params={"tx_depth": 4})
    document, result = run.json("compare", old, new, "--json")
    assert result.exit_code == 2 and document["error"]["code"] == "unlike_runs"
    assert "depth was None and is 4" in document["error"]["what"]


BROKEN = '{"schema": "p2prw/1", "command": "write", "exit_code": 0, "results": [{"operation": "write"}]}'
"""Of a known kind, but not as we print it."""


@pytest.mark.parametrize(
    ("text", "code", "exit_code"),
    [(None, "result_file", 3), ("{}", "bad_result", 2), ("x", "bad_result", 2), (BROKEN, "bad_result", 2)],
)
def test_files_that_are_no_results(run, results, tmp_path, text, code, exit_code):
    path = tmp_path / "c"
    if text is not None:
        path.write_text(text)
    document, result = run.json("compare", results("a", 1e9), str(path), "--json")
    assert (result.exit_code, document["error"]["code"]) == (exit_code, code)


@pytest.mark.parametrize("share", ["100%", "-1%", "x", "1.5"])
def test_tolerances_are_shares(run, results, share):
    old = results("a", 1e9)
    assert run("compare", old, old, f"--tolerance={share}").exit_code == 2


def test_a_baseline_must_be_readable_before_anything_runs(run, tmp_path):
    (tmp_path / "s.yaml").write_text("steps: [{read: {peer: 127.0.0.1:1/a, to: host}}]")
    (tmp_path / "b.json").write_text(json.dumps({"schema": "other"}))
    document, result = run.json("run", str(tmp_path / "s.yaml"), "--baseline", str(tmp_path / "b.json"), "--json")
    assert result.exit_code == 2 and document["error"]["code"] == "bad_result"
