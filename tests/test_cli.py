"""The group: commands, usage errors, what `--help` loads, signals. Commands themselves are in tests/commands/."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from p2prw.cli import KNOWN, cli
from p2prw.schema import load_schema

HEAVY = (
    "numpy", "rich", "yaml", "asyncio", "xxhash", "zlib_ng", "pyverbs", "ibverbs", "ctypes", "socket",
    "p2prw.engine.session", "p2prw.engine.rw", "p2prw.engine.providers", "p2prw.engine.control.messages",
)  # fmt: skip
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("P2PRW_")}


def invoke(*arguments, env=None):
    return CliRunner(env=env).invoke(cli, list(arguments))


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in KNOWN), ["--version"]])
def test_help_loads_nothing_heavy(arguments):
    script = (
        "import sys\nfrom p2prw.cli import cli\n"
        f"code = cli.main({arguments!r}, standalone_mode=False)\n"
        "print('LOADED', *sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=CLEAN)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.rpartition("LOADED ")[2].split())
    assert "p2prw.cli" in loaded
    assert loaded.isdisjoint(HEAVY), sorted(loaded & set(HEAVY))
    if arguments == ["--help"]:
        assert not any(name.startswith("p2prw.commands.") and name != "p2prw.commands.app" for name in loaded)


def test_help_is_quick():
    """`--help` under 0.2 s; the best of a few, because the machine may be busy with something else."""
    best = min(_seconds([sys.executable, "-m", "p2prw", "--help"]) for _ in range(5))
    floor = min(_seconds([sys.executable, "-c", "import click"]) for _ in range(3))
    assert best < max(0.2, 2 * floor)


def _seconds(command):
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=60, env=CLEAN)
    return time.perf_counter() - start


def test_text_reporters_do_not_load_rich():
    script = (
        "import sys, p2prw.reporters.choose, p2prw.reporters.text, p2prw.reporters.json, p2prw.reporters.listing\n"
        "assert 'rich' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_unknown_command_names_the_nearest():
    result = invoke("wrte")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "  try:  did you mean `p2prw write`?"
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [["wrte", "--json"], ["--json"], ["--jsn", "--json"], ["version", "--what", "--json"], ["bench", "--json"]],
)
def test_usage_errors_are_documents_with_json(arguments):
    result = invoke(*arguments)
    document = json.loads(result.stdout)
    Draft202012Validator(load_schema()).validate(document)
    assert document["exit_code"] == result.exit_code == 2
    assert document["status"] == "failed"


def test_usage_error_is_a_document_when_the_environment_asks():
    document = json.loads(invoke("wrte", env={"P2PRW_JSON": "true"}).stdout)
    assert document["error"]["code"] == "unknown_command"
    assert invoke("wrte", "--no-json", env={"P2PRW_JSON": "true"}).stdout == ""


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ("bench", "h/r", "--dry-run"),
            ["p2prw bench has no option --dry-run", "it is an option of write, read, run", "p2prw bench --help"],
        ),
        (
            ("write", "h/r", "--zzz"),
            ["p2prw write has no option --zzz", "no command has it", "p2prw write --help"],
        ),
        (
            ("write", "h/r", "--frm", "x"),
            [
                "p2prw write has no option --frm",
                "no command has it",
                "did you mean --from?   (p2prw write --help lists all)",
            ],
        ),
        (
            ("doctor", "--pair", "a"),
            [
                "p2prw doctor: option '--pair' requires 2 arguments",
                "the command line cannot be read",
                "p2prw doctor --help",
            ],
        ),
        (
            ("completion",),
            [
                "p2prw completion: bash|zsh|fish is missing",
                "the command line cannot be read",
                "p2prw completion --help",
            ],
        ),
        (
            ("write", "h/r", "--from", "host", "--inject", "foo"),
            [
                "--inject: no fault is called 'foo'",
                "there are drop, dup, reorder, corrupt, rkey and seed",
                "--inject drop=1%,dup=0.5%,reorder=2%,corrupt=1%,seed=1",
            ],
        ),
    ],
    ids=lambda value: value[0],
)
def test_what_cannot_be_read_is_told_in_three_lines(words, error):
    result = invoke(*words)
    what, why, fix = error
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [f"Error: {what}", f"  why:  {why}", f"  try:  {fix}"]


def test_what_to_type_is_written_as_it_is_in_the_environment():
    result = invoke("version", env={"P2PRW_JSON": "maybe"})
    assert result.stderr.splitlines()[-1] == "  try:  P2PRW_JSON=true"


def test_no_command_is_a_usage_error():
    result = invoke()
    assert result.exit_code == 2
    assert "p2prw --help" in result.stderr


def test_module_runs():
    done = subprocess.run([sys.executable, "-m", "p2prw", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("p2prw ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["version", "version --json", "--help", "write --help", "help errors", "devices"])
def test_a_full_disk_under_stdout_is_no_defect_of_ours(words):
    done = sh(f"{sys.executable} -m p2prw {words} > /dev/full")
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "Error: cannot write to stdout: no space left on device",
        "  why:  what the command had to say is incomplete there",
        "  try:  send stdout to a file on another disk, or make room (df)",
    ]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_end_nothing(closed):
    done = sh(f"{sys.executable} -m p2prw version {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    done = sh(f"{sys.executable} -m p2prw version --no-such {closed}")
    assert done.returncode == 2 and "Traceback" not in done.stderr


def sh(line):
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, env=CLEAN, check=False)


FAKE = """
import sys, time, types
sys.modules["p2prw.engine.session"] = fake = types.ModuleType("p2prw.engine.session")
def run_transfer(request, **options):
    print("running", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.02)
        yield from ()
def list_regions(peer, *options, **more):
    print("running", file=sys.stderr, flush=True)
    time.sleep(60)
fake.run_transfer, fake.list_regions = run_transfer, list_regions
from p2prw.cli import main
main()
"""


def start(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FAKE), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=CLEAN,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line == "running\n":
            return process
    raise AssertionError("it never ran")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_second_signal_leaves_at_once_with_a_document(number, code):
    with start("write", "h/x", "--from", "host,size=1M", "--json") as process:
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)  # this engine never looks at its stop request
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=60)
    document = json.loads(stdout)
    Draft202012Validator(load_schema()).validate(document)
    assert (process.returncode, document["exit_code"], document["status"]) == (code, code, "interrupted")


def test_a_command_that_watches_no_stop_request_ends_at_the_first_signal():
    with start("regions", "h", "--json") as process:
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    document = json.loads(stdout)
    assert (process.returncode, document["status"]) == (130, "interrupted")
    assert "Error: interrupted" in stderr


def test_a_reader_that_left_is_no_error():
    command = f"{sys.executable} -m p2prw version --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, env=CLEAN)
    assert (done.returncode, done.stderr) == (0, "")
