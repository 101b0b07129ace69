"""The pages say what is so: commands parse, options exist, examples run, nothing is left to fill in."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from p2prw import __version__
from p2prw.cli import KNOWN, cli

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "lab/README.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text()
FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def commands() -> list[str]:
    """Every `$ p2prw ...` line of a code block on any page."""
    lines = [line.strip() for page in PAGES for block in blocks(page.read_text(), "") for line in block.splitlines()]
    # `compare` compares what the line before it made: its block is run as a whole.
    return [line[2:] for line in lines if line.startswith("$ p2prw ") and not line.startswith("$ p2prw compare ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_line_is_understood(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options, values and files are read by the command itself; --show-config keeps it from doing anything."""
    monkeypatch.chdir(tmp_path)
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    args = shlex.split(line, comments=True)[1:]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    if ">" in args:
        args = args[: args.index(">")]
    if args[0] == "run":
        if "--baseline" in args:
            (tmp_path / args[args.index("--baseline") + 1]).write_text('{"schema": "p2prw/1", "results": []}')
        args.append("--dry-run")
    elif args[0] not in ("devices", "help", "completion", "version"):
        args.append("--show-config")
    assert cli.main(args, standalone_mode=False) == 0, capsys.readouterr().err


RUN = re.compile(r"(^<!-- needs: [^\n]+ -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A block without `needs` that has commands, or is a scenario, is run.
PAGE_BLOCKS = [
    (language, block)
    for needs, language, block in RUN.findall(README)
    if not needs and (language == "yaml" or (language == "" and re.search(r"^\$ ", block, re.MULTILINE)))
]
OTHER_HOST = "127.0.0.9"
"""Plays 10.0.0.1, the host that asks for a token."""


def _as_here(line: str, port: int, folder: Path) -> str:
    """Return a line of the page for this machine: the other host is here, nothing is big, no rate is asked for.

    A rate against itself a moment ago, or a rate at all: what a busy machine does to it is not the page's fault.
    """
    line = line.replace("10.0.0.1", OTHER_HOST).replace(":18515", f":{port}").replace("/tmp/", f"{folder}/")
    line = re.sub(r"--tolerance \d+%", "--tolerance 99%", line).replace("size=1GiB", "size=64MiB")
    line = line.replace("200 MiB/s", "1 KiB/s").replace(" 64M ", " 1M ")
    return f"{line} --iters 3" if " bench " in line else line


@pytest.mark.slow
@pytest.mark.parametrize("language, block", PAGE_BLOCKS, ids=[block.split("\n")[0] for _, block in PAGE_BLOCKS])
def test_blocks_are_run(language: str, block: str, tmp_path: Path) -> None:
    """As a reader would: in order, `serve` in the background; other blocks' servers and files are there already."""
    (tmp_path / "p2prw").write_text(f'#!/bin/sh\nexec {sys.executable} -m p2prw "$@"\n')
    (tmp_path / "p2prw").chmod(0o755)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("in.bin", "image.bin", "token"):
        (tmp_path / name).write_bytes(os.urandom(1 << 20) if name != "token" else b"secret\n")
        (tmp_path / name).chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lines = [_as_here(line[2:], port, tmp_path) for line in block.splitlines() if line.startswith("$ ")]
    if language == "yaml":
        (tmp_path / "scenario.yaml").write_text(block)
        lines = ["p2prw run scenario.yaml"]
    regions = "--region scratch=host,size=64MiB --region inbox=file:inbox.bin --region store=file:store.bin --overwrite"
    standing = [f"p2prw serve {regions}", f"p2prw serve --smoke --listen {OTHER_HOST} --token-file token {regions}"]
    if any(" serve " in line for line in lines):
        standing = []
    script = "trap 'kill $(jobs -p)' EXIT\n"
    script += "".join(f"{line} &\n" for line in standing)
    script += "".join(f"{line} &\n" if " serve " in line else f"{line}\n" for line in lines)
    env = {name: text for name, text in os.environ.items() if not name.startswith("P2PRW_")}
    env |= {"PATH": f"{tmp_path}:{env['PATH']}", "PYTHONPATH": str(ROOT), "P2PRW_PORT": str(port)}
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=env, text=True, capture_output=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    """Commands are run, or read where they need what is not here; json, python and yaml run; the rest is output."""
    for language, _ in FENCE.findall(README):
        assert language in ("", "json", "python", "yaml"), f"nobody checks a block of {language}"
    assert len(RUN.findall(README)) == len(FENCE.findall(README))
    assert len(PAGE_BLOCKS) >= 15


def test_there_are_commands_to_check() -> None:
    shown = {line.split()[1] for line in commands()}
    assert shown >= {"serve", "write", "read", "regions", "devices"}


def test_every_command_is_on_the_first_page() -> None:
    for name in KNOWN:
        assert re.search(rf"p2prw {name}\b|`{name}`", README), f"README.md does not show `p2prw {name}`"


def options_of_all_commands() -> set[str]:
    import click

    context = click.Context(cli)
    found = {"--help"}
    for name in KNOWN:
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            found.update(parameter.opts + parameter.secondary_opts)
    return found


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_option_named_in_prose_exists(page: str) -> None:
    scripts = {"--force-netns", "--force-lab", "--long", "--system-site-packages"}
    named = set(re.findall(r"`(--[a-z][a-z-]*)", (ROOT / page).read_text()))
    assert named <= options_of_all_commands() | scripts


def test_exit_codes_are_all_explained() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", README, re.MULTILINE)
    codes = {int(code) for row in rows for code in row.split(",")}
    assert codes == {0, 1, 2, 3, 4, 5, 6, 7, 130, 143}


def test_json_examples_are_json() -> None:
    from p2prw.schema import load_schema

    (example,) = [json.loads(block) for block in blocks(README, "json")]
    assert set(example) <= set(load_schema()["properties"])


@pytest.mark.parametrize("example", blocks(README, "python"))
def test_python_examples_run(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(example.replace("64MiB", "1MiB"), "README.md", "exec"), {})
    assert capsys.readouterr().out == "ok 0 verified\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_changelog_is_kept() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert set(headings[1:]) <= {__version__} | set(re.findall(r"\d+\.\d+\.\d+", text))
    sections = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Not yet"}


def test_nothing_is_left_to_fill_in() -> None:
    for page in PAGES:
        assert not re.search(r"\bTBD\b|TODO|FIXME", page.read_text()), f"{page.name} has a gap to fill"
