"""`--help` of every command as a golden file: rewrite with UPDATE_GOLDEN_HELP=1 and read the diff."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from p2prw.cli import COMMANDS, KNOWN, cli
from p2prw.commands.options import HELP_AT
from p2prw.config_settings import BY_NAME, settings_of

GOLDEN = Path(__file__).parent / "golden_help"


def help_of(*arguments):
    result = CliRunner().invoke(cli, [*arguments, "--help"])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("command", ["p2prw", *KNOWN])
def test_help_is_golden(command):
    text = help_of() if command == "p2prw" else help_of(command)
    golden = GOLDEN / f"{command}.txt"
    if os.environ.get("UPDATE_GOLDEN_HELP"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_what_a_word_means_at_one_command_is_said_of_a_word_it_has():
    assert all(BY_NAME[name] in settings_of(command) for name, command in HELP_AT)


def test_first_screen_fits():
    assert len(help_of().splitlines()) <= 34
    assert all(heading + ":" in help_of() for heading in COMMANDS)


@pytest.mark.parametrize("command", KNOWN)
def test_help_shows_every_option_default_and_example(command):
    text = help_of(command)
    joined = " ".join(text.split())
    for setting in settings_of(command):
        assert f"{setting.option}" in text
        shown = HELP_AT.get((setting.name, command), ("", None))[1] or setting.shown
        if shown is not None:
            assert f"[default: {shown}]" in joined
    assert command == "version" or f"p2prw {command}" in text.partition("Examples:")[2]
    assert max(map(len, text.splitlines())) <= 84


@pytest.mark.parametrize("command", KNOWN)
def test_short_help_is_the_table_of_the_group(command):
    loaded = cli.get_command(click.Context(cli), command)
    assert loaded is not None
    assert loaded.short_help == KNOWN[command]


@pytest.mark.parametrize("command", ["serve", "write", "read"])
def test_exit_codes_and_perftest_are_in_help(command):
    assert "Exit codes: 0 ok, 1 transfer failed" in help_of(command)
    assert "perftest: ib_" in help_of(command)
