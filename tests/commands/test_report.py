"""`--report` on every command that has it: written however the command ends, whole or not at all, without secrets."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from pathlib import Path

import pytest

from p2prw.errors import InterruptedTransfer

SECRET = "correct-horse-battery-staple"
WRITE = ("write", "127.0.0.1:1/a", "--from", "host,size=4K")


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "out" / "r.tar.gz"


@pytest.fixture(autouse=True)
def directory(archive):
    archive.parent.mkdir()


@pytest.fixture
def read_archive(archive, tmp_path):
    """Return name -> text; whatever else lies beside the archive is a defect."""

    def read():
        assert list(archive.parent.iterdir()) == [archive]
        with tarfile.open(archive) as found:
            found.extractall(tmp_path, filter="data")
            return {Path(name).name: (tmp_path / name).read_text() for name in found.getnames()}

    return read


def test_a_transfer_that_went_well(run, engine, archive, read_archive):
    document, result = run.json(*WRITE, "--report", str(archive), "--tx-depth", "7", "--json")
    files = read_archive()
    assert json.loads(files["result.json"]) == document and document["status"] == "ok"
    params = json.loads(files["params.json"])
    assert params["command_line"].startswith("p2prw write 127.0.0.1:1/a --from host,size=4K --report ")
    assert {"name": "tx_depth", "value": 7, "origin": "command line", "text": "7", "option": "--tx-depth",
            "variable": "P2PRW_TX_DEPTH"} in params["settings"]  # fmt: skip
    assert "written by p2prw --report" in files["machine.json"] and set(files) == {
        "result.json", "params.json", "environment.json", "machine.json", "plan.txt", "kernel.log"
    }  # fmt: skip
    assert f"wrote {archive}: look at it" in result.stderr
    assert engine.calls[0]["keep_plan"]


def test_without_a_report_no_plan_is_kept(run, engine):
    run(*WRITE)
    assert not engine.calls[0]["keep_plan"]


def test_secrets_stay_out_of_it(run, engine, tmp_path, archive, read_archive):
    token = tmp_path / "token"
    token.write_text(SECRET)
    token.chmod(0o600)
    env = {"P2PRW_PASSWORD": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET}
    run(*WRITE, "--token-file", str(token), "--report", str(archive), env=env)
    assert engine.request.token == SECRET.encode()
    files = read_archive()
    assert not [name for name, text in files.items() if SECRET in text]
    assert str(token) in files["params.json"]


@pytest.mark.parametrize("how", ["failed", "raised", "interrupted", "terminated", "usage", "defect"])
def test_however_it_ends_there_is_a_report(run, engine, failing, make_ok, archive, read_archive, how, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(archive.parent.parent))

    def interrupted(request):
        return make_ok(request, status="interrupted", exit_code=130, partial=True)

    words, code, error = [*WRITE], 1, "remote_access"
    if how == "failed":
        engine.result = failing
    elif how == "interrupted":
        engine.result, code, error = interrupted, 130, ""
    elif how == "terminated":
        engine.raises, code, error = InterruptedTransfer(signal_number=15), 143, "terminated"
    elif how == "raised":
        words += ["--token-file", str(archive.parent.parent / "none")]
        code, error = 3, "token_file"
    elif how == "usage":
        words, code, error = [*words[:2]], 2, "missing_memory"
    else:
        engine.raises, code, error = ValueError("boom"), 1, "internal"
    document, _ = run.json(*words, "--report", str(archive), "--json")
    files = read_archive()
    assert json.loads(files["result.json"]) == document and document["exit_code"] == code
    assert (document["error"]["code"] if document["error"] else "") == error
    assert files["plan.txt"].startswith("none was made")


def test_an_existing_file_needs_overwrite(run, engine, archive, read_archive):
    archive.write_text("mine")
    document, _ = run.json(*WRITE, "--report", str(archive), "--json")
    assert (document["exit_code"], document["error"]["code"]) == (3, "exists")
    assert archive.read_text() == "mine" and not engine.calls, "found before anything was moved"
    run.json(*WRITE, "--report", str(archive), "--overwrite", "--json")
    assert "result.json" in read_archive()


def test_what_came_into_being_meanwhile_stays(run, engine, archive):
    engine.during = lambda stop: archive.write_text("mine")
    document, _ = run.json(*WRITE, "--report", str(archive), "--json")
    assert (document["exit_code"], document["error"]["code"]) == (3, "report_file")
    assert document["results"], "what was moved is told all the same"
    assert archive.read_text() == "mine" and list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize("place", ["none/r.tar.gz", "."])
def test_a_place_where_none_can_be_is_refused_first(run, engine, archive, place):
    document, _ = run.json(*WRITE, "--report", f"{archive.parent}/{place}", "--json")
    assert document["exit_code"] == 3 and not engine.calls


def test_a_failure_to_write_it_never_hides_a_worse_one(run, engine, failing, archive):
    def fails(request):
        archive.parent.rmdir()
        return failing(request)

    engine.result = fails
    document, _ = run.json(*WRITE, "--report", str(archive), "--json")
    assert (document["exit_code"], document["error"]["code"]) == (1, "remote_access")
    assert f"--report: cannot write {archive}" in document["warnings"][0]


def test_a_device_is_written_into(run, engine):
    assert run(*WRITE, "--report", os.devnull).exit_code == 0
    assert Path(os.devnull).is_char_device()


def test_show_config_writes_none(run, engine, archive):
    assert run(*WRITE, "--report", str(archive), "--show-config").exit_code == 0
    assert not archive.exists()


def test_smoke(run, archive, read_archive):
    words = ("smoke", "--quick", "--device", "soft0", "--memory", "host", "--seed", "7", "--report", str(archive))
    document, _ = run.json(*words, "--json")
    files = read_archive()
    assert json.loads(files["result.json"]) == document and document["summary"]["passed"] == 6
    assert len(files["plan.txt"].splitlines()) == 6


def test_bench_that_reaches_nobody(run, archive, read_archive):
    document, _ = run.json("bench", "127.0.0.1:1/a", "--connect-retry", "0", "--report", str(archive), "--json")
    files = read_archive()
    assert json.loads(files["result.json"]) == document and document["error"]["code"] == "connect_refused"
    assert files["plan.txt"] == "bench write -> 127.0.0.1:1/a\n"


def test_a_scenario_that_is_wrong(run, tmp_path, archive, read_archive):
    (tmp_path / "s.yaml").write_text("steps: [{}]")
    document, _ = run.json("run", str(tmp_path / "s.yaml"), "--report", str(archive), "--json")
    assert document["exit_code"] == 2
    files = read_archive()
    assert json.loads(files["result.json"]) == document
    assert files["scenario.yaml"] == "steps: [{}]"


def test_a_dry_run_of_a_scenario(run, tmp_path, archive, read_archive):
    (tmp_path / "s.yaml").write_text("steps: [{name: r, read: {peer: 127.0.0.1/a, to: host}}]")
    document, _ = run.json("run", str(tmp_path / "s.yaml"), "--dry-run", "--report", str(archive), "--json")
    files = read_archive()
    assert json.loads(files["result.json"]) == document and document["status"] == "planned"
    assert files["plan.txt"] == "r: p2prw read 127.0.0.1/a --to host --json\n" and "read" in files["scenario.yaml"]
