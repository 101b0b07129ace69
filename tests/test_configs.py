"""Every file under configs/ is run, or planned where it needs hardware; CI files hold to their schemas, and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from p2prw.cli import cli
from p2prw.scenario.schema import scenario_schema

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
SCENARIOS = [path for path in FILES if re.search(r"^steps:", path.read_text(), re.MULTILINE)]
SINGLE = [path for path in FILES if path not in SCENARIOS]
CI = {"github-actions.yml": "vendor.github-workflows", "gitlab-ci.yml": "vendor.gitlab-ci"}


def name(path):
    return path.name


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory with a token and the files that examples send."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "token").chmod(0o600)
    for file in ("image.bin", "firmware.bin"):
        (tmp_path / file).write_bytes(bytes(4096))
    (tmp_path / "configs").symlink_to(CONFIGS)
    return tmp_path


@pytest.mark.parametrize("path", [*FILES, *(CONFIGS / "ci").iterdir(), *(CONFIGS / "systemd").iterdir()], ids=name)
def test_each_opens_with_purpose_needs_and_what_to_expect(path):
    head = path.read_text().partition("\n\n")[0]
    for word in ("Purpose:", "Needs:", "Expect:"):
        assert f"# {word}" in head, f"{path.name} does not open with {word}"


@pytest.mark.parametrize("path", SCENARIOS, ids=name)
def test_scenarios_hold_to_the_schema_and_can_be_planned(path, here, capsys):
    Draft202012Validator(scenario_schema()).validate(yaml.safe_load(path.read_text()))
    assert cli.main(["run", str(path), "--dry-run", "--json"], standalone_mode=False) == 0
    assert json.loads(capsys.readouterr().out)["results"]


@pytest.mark.parametrize("path", SINGLE, ids=name)
def test_servers_and_clients_can_be_planned(path, here, capsys):
    keys = yaml.safe_load(path.read_text())
    commands = [command for command, key in (("write", "from"), ("read", "to")) if key in keys["transfer"]]
    for command in ("serve", *commands):
        assert cli.main([command, "-c", str(path), "--show-config"], standalone_mode=False) == 0, path.name
    assert capsys.readouterr().err == ""


def run(here, line, **env):
    """Run one line of a page as bash would, with p2prw as it is here."""
    (here / "bin").mkdir(exist_ok=True)
    program = here / "bin" / "p2prw"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m p2prw "$@"\n')
    program.chmod(0o755)
    clean = {name: text for name, text in os.environ.items() if not name.startswith("P2PRW_")}
    clean |= {"PATH": f"{here / 'bin'}:{clean['PATH']}", "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(["bash", "-euc", line], cwd=here, env=clean, text=True, capture_output=True, timeout=250)


@pytest.mark.slow
def test_two_processes_on_loopback(here):
    """What configs/loopback.yaml and file_to_server.yaml say under Run."""
    for file in ("loopback.yaml", "file_to_server.yaml"):
        line = f"p2prw serve -c configs/{file} --once --listen 127.0.0.1:0 --ready-file ready --quiet >/dev/null &\n"
        line += "while ! [[ -s ready ]]; do sleep 0.1; done; port=$(cut -d: -f2 ready); rm ready\n"
        region = yaml.safe_load((CONFIGS / file).read_text())["transfer"]["peer"].partition("/")[2]
        line += f"p2prw write 127.0.0.1:$port/{region} -c configs/{file} --json; wait"
        done = run(here, line)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["verify"]["status"] == "verified"
    assert (here / "received.bin").read_bytes() == (here / "image.bin").read_bytes()


@pytest.mark.parametrize("file", CI)
def test_ci_files_hold_to_their_schemas(file):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", CI[file], str(CONFIGS / "ci" / file)]
    command += ["--data-transform", "gitlab-ci"] if "gitlab" in file else []
    done = subprocess.run(command, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def script_lines(file):
    document = yaml.safe_load((CONFIGS / "ci" / file).read_text())
    if "gitlab" in file:
        return document["rdma"]["script"]
    return [step["run"] for step in document["jobs"]["rdma"]["steps"] if "run" in step]


@pytest.mark.slow
def test_the_lines_of_ci_run(here):
    """pip install is the test of the wheel; the rest runs here, the scenario for real."""
    lines = dict.fromkeys(line for file in CI for line in script_lines(file))
    ran = [line for line in lines if line != "pip install ."]
    assert len(ran) == 2 and "configs/matrix_loopback.yaml" in ran[0]
    for line in ran:
        done = run(here, line, GITHUB_STEP_SUMMARY=str(here / "step.md"))
        assert done.returncode == 0, done.stderr
    document = json.loads((here / "result.json").read_text())
    assert document["exit_code"] == 0 and (here / "results.xml").exists()
    assert (here / "step.md").read_text() == (here / "summary.md").read_text() != ""
    statuses = {row["name"]: row["status"] for row in document["results"]}
    assert statuses.pop("peer to peer[host=127.0.0.1]") in ("skip", "pass", "fail")
    assert set(statuses.values()) == {"pass"}
    shutil.rmtree(here / "bin")


def unit_of(name):
    """The settings of a unit, as (name, value); a name may stand there many times."""
    lines = (CONFIGS / "systemd" / name).read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in lines if line and line[0] not in "#["]


def test_systemd_finds_no_fault_with_the_units(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here (apt install systemd)")
    for path in (CONFIGS / "systemd").iterdir():
        # The program is where the page says only on a host where it was installed.
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/p2prw/bin/p2prw", "/bin/true"))
    units = [str(path) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run([analyze, "verify", *units], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done


def test_the_units_do_not_take_away_what_p2prw_needs():
    service = dict(unit_of("p2prw.service"))
    # /dev/infiniband, /dev/vfio; /sys for BARs and p2pmem; /proc/meminfo. ProtectClock= implies DeviceAllow=.
    for word in (
        "PrivateDevices",
        "DevicePolicy",
        "DeviceAllow",
        "ProtectClock",
        "ProtectKernelTunables",
        "ProcSubset",
    ):
        assert word not in service, f"{word} breaks serve"
    assert service["Type"] == "notify" and service["LimitMEMLOCK"] == "infinity"
    families = set(service["RestrictAddressFamilies"].split())
    assert families == {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"}
    assert ("ListenStream", "127.0.0.1:18515") in unit_of("p2prw.socket")
