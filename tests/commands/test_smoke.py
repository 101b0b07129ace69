"""`p2prw smoke` on this host's loopback, in this process: formats, exit codes, options, the peer's side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from lxml import etree

from p2prw.schema import load_schema

STREAM = Draft202012Validator(load_schema("stream.schema.json"))
XSD = etree.XMLSchema(etree.parse(str(Path(__file__).parents[1] / "data/junit-10.xsd")))
FEW = ("smoke", "--quick", "--device", "soft0", "--memory", "host", "--seed", "7")


def test_one_document(run):
    document, result = run.json(*FEW, "--json")
    assert result.exit_code == 0
    assert document["command"] == "smoke"
    assert document["summary"]["passed"] == 6
    assert document["params"] == {
        "peer": None, "seed": 7, "preset": "quick", "devices": ["soft0"], "memories": ["host"], "inject": None,
        "time_limit_s": None,
    }  # fmt: skip


def test_text(run):
    result = run(*FEW)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1].split() == ["soft0", "host", "host", *["pass"] * 6, "cpu/cpu"]
    assert result.stdout.splitlines()[-1].startswith("6 passed, 0 failed, 0 not run, 0 skipped in ")
    assert "6 cells on soft0" in result.stderr
    assert run(*FEW, "--quiet").stderr == ""


def test_a_stream_of_cells(run):
    result = run(*FEW, "--json-stream")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    for event in events:
        STREAM.validate(event)
    assert [event["event"] for event in events] == ["plan", *["cell"] * 6, "result"]
    assert (events[0]["cells"], events[0]["seed"]) == (6, 7)
    assert [event["cell"] for event in events[1:7]] == events[7]["result"]["results"]


def test_faults_end_4_in_every_format(run, tmp_path):
    path = tmp_path / "smoke.xml"
    document, result = run.json(*FEW, "--json", "--inject", "corrupt=70", "--junit", str(path))
    assert result.exit_code == 4
    assert document["summary"]["failed"] == 4
    assert document["error"]["code"] == "verify_mismatch"
    assert "Error: 4 of 6 cells failed" in result.stderr
    root = etree.parse(str(path)).getroot()
    XSD.assertValid(root)
    assert [root[0].get(name) for name in ("tests", "failures", "errors")] == ["6", "4", "0"]


def test_a_junit_file_that_cannot_be_written_is_part_of_the_outcome(run, tmp_path):
    where = str(tmp_path / "missing" / "smoke.xml")
    document, result = run.json(*FEW, "--json", "--junit", where)
    assert result.exit_code == 3 and "summary" not in document, "what is bound to fail is refused at once"
    where = "/dev/full"
    document, result = run.json(*FEW, "--json", "--junit", where)
    assert result.exit_code == 3
    assert document["error"]["code"] == "report_file"
    assert document["summary"]["passed"] == 6
    assert document["warnings"]
    document, result = run.json(*FEW, "--json", "--inject", "corrupt=70", "--junit", where)
    assert (result.exit_code, document["error"]["code"]) == (4, "verify_mismatch")


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (("--quick", "--full"), "usage", 2),
        (("--inject", "noise=1%"), "bad_inject", 2),
        (("--seed", "-1"), "bad_value", 2),
        (("--memory", "file:/etc/passwd"), "usage", 2),
        (("--memory", "cuda"), "no_memory", 3),
        (("--device", "mlx5_77"), "no_device", 3),
        (("127.0.0.1:9", "--connect-retry", "0"), "connect_refused", 3),
        (("not a peer",), "bad_peer", 2),
        (("127.0.0.1:1/scratch",), "usage", 2),
    ],
)
def test_what_is_refused_before_the_first_cell(run, words, code, exit_code):
    document, result = run.json("smoke", *words, "--json")
    assert (result.exit_code, document["error"]["code"]) == (exit_code, code)
    assert document["error"]["try"]


def test_devices_and_seeds_from_the_environment(run):
    env = {"P2PRW_DEVICE": "soft0\nsoft:127.0.0.1", "P2PRW_SEED": "9", "P2PRW_QUICK": "1", "P2PRW_MEMORY": "host"}
    document, _ = run.json("smoke", "--json", env=env)
    assert document["params"]["devices"] == ["soft0", "soft:127.0.0.1"]
    assert document["params"]["seed"] == 9
    assert document["summary"]["passed"] == 12


def test_a_device_from_a_file(run, tmp_path):
    (tmp_path / "smoke.yaml").write_text("device: {name: soft0}\n")
    document, _ = run.json("smoke", "-c", str(tmp_path / "smoke.yaml"), "--show-config", "--json")
    (row,) = [row for row in document["results"] if row["name"] == "device"]
    assert row["value"] == ["soft0"]
    assert row["origin"].startswith("file ")


def test_seeds_differ_where_none_is_given(run):
    words = ("smoke", "--quick", "--device", "soft0", "--memory", "host", "--json")
    assert run.json(*words)[0]["params"]["seed"] != run.json(*words)[0]["params"]["seed"]


def test_serve_smoke_and_once_exclude_each_other(run):
    document, result = run.json("serve", "--smoke", "--once", "--json")
    assert result.exit_code == 2
    assert "once for each cell" in document["error"]["why"]


def test_serve_smoke_needs_a_token_beyond_loopback(run):
    document, result = run.json("serve", "--smoke", "--listen", "0.0.0.0:0", "--json")
    assert (result.exit_code, document["error"]["code"]) == (2, "needs_token")
