"""The pages say what is so: commands parse, options exist, examples run, nothing is left to fill in."""

from __future__ import annotations

import json
import re
import shlex
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
    return [line[2:] for line in lines if line.startswith("$ p2prw ")]


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
    if args[0] == "compare":
        pytest.skip("compares what the line before it makes; tests/commands/test_compare.py runs it")
    if args[0] == "run":
        if "--baseline" in args:
            (tmp_path / args[args.index("--baseline") + 1]).write_text('{"schema": "p2prw/1", "results": []}')
        args.append("--dry-run")
    elif args[0] not in ("devices", "help", "completion", "version"):
        args.append("--show-config")
    assert cli.main(args, standalone_mode=False) == 0, capsys.readouterr().err


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
