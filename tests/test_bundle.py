"""The report archive: everything that a bug report needs, and no secret."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from p2prw.bundle import bundle, harmless, machine_text, report_files
from p2prw.engine.doctor import collect
from p2prw.engine.topology.snapshot import open_tree
from p2prw.reporters.document import build

SECRET = "correct-horse-battery-staple"
NAMES = {"result.json", "params.json", "environment.json", "machine.json", "plan.txt", "scenario.yaml", "kernel.log"}


@pytest.fixture
def files(tmp_path):
    token = tmp_path / "token"
    token.write_text(SECRET)
    environ = {"P2PRW_TOKEN_FILE": str(token), "P2PRW_PASSWORD": SECRET, "GITHUB_TOKEN": SECRET, "CI": "true"}
    return report_files(
        build("run", params={"seed": 1}),
        command_line="p2prw run s.yaml",
        settings=[{"name": "token_file", "value": str(token), "origin": "environment P2PRW_TOKEN_FILE"}],
        environ=environ,
        machine=machine_text(environ),
        kernel_log="no line\n",
        more={"plan.txt": "plan\n", "scenario.yaml": "steps: []\n"},
    )


def test_everything_is_in_it_and_no_secret(files, tmp_path):
    with tarfile.open(fileobj=io.BytesIO(bundle(files, 1.0))) as archive:
        archive.extractall(tmp_path, filter="data")
        found = {name: (tmp_path / name).read_text() for name in archive.getnames()}
    assert set(found) == {f"p2prw-report/{name}" for name in NAMES}
    assert not [name for name, text in found.items() if SECRET in text]
    variables = json.loads(found["p2prw-report/environment.json"])["variables"]
    assert variables == {"P2PRW_TOKEN_FILE": str(tmp_path / "token"), "CI": "true"}
    params = json.loads(found["p2prw-report/params.json"])
    assert params["command_line"] == "p2prw run s.yaml" and params["params"] == {"seed": 1}
    assert params["settings"][0]["name"] == "token_file"


def test_only_variables_that_are_read_are_harmless():
    assert harmless({"HOME": "/x", "P2PRW_DEVICE": "rxe0", "P2PRW_X": SECRET}) == {"P2PRW_DEVICE": "rxe0"}


def test_the_machine_is_a_topology_snapshot(tmp_path):
    (tmp_path / "machine.json").write_text(machine_text({}))
    assert open_tree(tmp_path).read_text("kernel/no-such-file") is None
    assert "p2prw --report" in json.loads((tmp_path / "machine.json").read_text())["note"]


def test_a_host_that_cannot_be_copied_says_so(monkeypatch):
    def broken(host, origin):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(collect, "collection_text", broken)
    assert "Input/output error" in json.loads(machine_text({}))["error"]
