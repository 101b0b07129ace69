"""`p2prw run` as a command: what it prints and refuses. Whole runs are in tests/e2e/test_scenarios.py."""

from __future__ import annotations

import json
import tarfile

import pytest
from jsonschema import Draft202012Validator

from p2prw.errors import InterruptedTransfer
from p2prw.reporters.document import error_document

PARAMS = {"rows_by_status": {}, "elapsed_s": 0.0}
TEXT = """\
name: two
steps:
  - {name: srv, serve: {regions: {a: "host,size=64KiB"}}}
  - {name: w, write: {peer: "${srv.address}/a", from: "host,size=4K"}, expect: bw >= 1 B/s}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(TEXT)
    return str(path)


def test_dry_run_prints_commands_that_can_be_pasted(run, file):
    result = run("run", file, "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "plan  srv",
        "      $ p2prw serve --region a=host,size=64KiB,pattern=words:2,access=rw --json --listen 127.0.0.1:18515",
        "plan  w",
        "      $ p2prw write 127.0.0.1:18515/a --from host,size=4K,pattern=words:3 --json",
        "2 rows planned, nothing was run",
    ]
    document, _ = run.json("run", file, "--dry-run", "--json", "--seed", "10")
    assert document["status"] == "planned" and document["params"]["seed"] == 10
    assert "words:12" in document["results"][1]["command"]


def test_the_schema_is_a_schema(run):
    result = run("run", "--schema")
    assert result.exit_code == 0
    Draft202012Validator.check_schema(json.loads(result.stdout))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "missing_scenario"),
        (("FILE", "--var", "x"), "bad_value"),
        (("FILE", "--var", "x=1"), "unknown_variable"),
        (("FILE", "--on-failure", "halt"), "bad_value"),
        (("FILE", "--seed", "-1"), "bad_value"),
        (("FILE", "--json", "--json-stream"), "usage"),
    ],
)
def test_usage_errors_are_documents_too(run, file, words, code):
    words = [file if word == "FILE" else word for word in words]
    result = run("run", *words, *(() if "--json" in words else ("--json",)))
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == code


def test_a_file_that_is_not_there(run, tmp_path):
    document, result = run.json("run", str(tmp_path / "none.yaml"), "--json")
    assert result.exit_code == 3 and document["error"]["code"] == "config_file"


def test_a_wrong_file_is_refused_with_its_place(run, file, tmp_path):
    (tmp_path / "s.yaml").write_text(TEXT.replace("from", "form"))
    result = run("run", file)
    assert result.exit_code == 2 and f"{file}:4:" in result.stderr and "did you mean 'from'?" in result.stderr
    assert result.stdout == ""


def test_a_report_holds_all_but_secrets(run, tmp_path):
    secret = "correct-horse-battery-staple"
    (tmp_path / "token").write_text(secret)
    (tmp_path / "token").chmod(0o600)
    peer = f"peer: 127.0.0.1:1/a, token_file: {tmp_path}/token, connect_retry: 0"
    (tmp_path / "s.yaml").write_text(f"steps: [{{name: r, read: {{{peer}, to: host}}}}]")
    archive = tmp_path / "r.tar.gz"
    env = {"P2PRW_PASSWORD": secret}
    document, result = run.json("run", str(tmp_path / "s.yaml"), "--report", str(archive), "--json", env=env)
    assert result.exit_code == 3 and document["results"][0]["error_code"] == "connect_refused"
    with tarfile.open(archive) as found:
        found.extractall(tmp_path, filter="data")
        texts = {name: (tmp_path / name).read_text() for name in found.getnames()}
    assert not [name for name, text in texts.items() if secret in text]
    assert json.loads(texts["p2prw-report/result.json"])["results"][0]["name"] == "r"
    assert f"{tmp_path}/token" in texts["p2prw-report/plan.txt"] and "token_file" in texts["p2prw-report/scenario.yaml"]
    assert run("topology", "--sysfs", str(tmp_path / "p2prw-report")).exit_code == 0


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(run, file, tmp_path, option, monkeypatch):
    monkeypatch.setattr("p2prw.scenario.runner.Runner", None)
    for path, words in ((tmp_path / "no" / "x", "there is no directory"), (tmp_path, "is a directory")):
        document, result = run.json("run", file, option, str(path), "--json")
        assert (result.exit_code, document["error"]["code"]) == (3, "report_file")
        assert option in document["error"]["what"] and words in document["error"]["what"]


def test_what_an_error_does_not_say_is_not_printed(run, file, monkeypatch):
    class Interrupted:
        def __init__(self, scenario, *_):
            self.scenario, self.out_of_time = scenario, False

        def run(self):
            return iter(())

        def ordered(self):
            return []

    def made(*_, **__):
        return {**error_document("run", InterruptedTransfer("the scenario was interrupted")), "params": PARAMS}

    monkeypatch.setattr("p2prw.scenario.runner.Runner", Interrupted)
    monkeypatch.setattr("p2prw.scenario.document.run_document", made)
    result = run("run", file)
    assert result.exit_code == 130
    assert result.stderr.splitlines() == ["Error: the scenario was interrupted"]
