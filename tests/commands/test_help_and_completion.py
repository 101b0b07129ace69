"""Topics, the man page and completion: all made from the tables that the commands use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from p2prw.cli import KNOWN
from p2prw.commands.topics import EXIT_CODES, TOPICS
from p2prw.config_settings import SETTINGS
from p2prw.engine.memory.spec import MEMORY_KINDS
from p2prw.errors import SEVERITY
from p2prw.scenario.keys import FILE_KEYS, STEP_KEYS


def test_topics(run):
    assert [line.split()[0] for line in run("help").stdout.splitlines()] == list(TOPICS)
    pages = {topic: run("help", topic).stdout for topic in TOPICS}
    assert all(kind in pages["memory"] for kind in MEMORY_KINDS)
    assert all(setting.variable in pages["environment"] for setting in SETTINGS)
    assert all(f"  {key} " in pages["scenario"] for key in (*FILE_KEYS, *STEP_KEYS))
    assert set(EXIT_CODES) == set(SEVERITY) and all(f"{code}  " in pages["exit-codes"] for code in EXIT_CODES)
    assert "PeerRefusedError" in pages["errors"] and "bounce" in pages["routes"]


def test_unknown_topics_name_the_nearest(run):
    document, result = run.json("help", "memroy", "--json")
    assert result.exit_code == 2 and document["error"]["try"] == "p2prw help memory"


def test_the_man_page_has_everything_and_man_reads_it(run):
    text = run("help", "--man").stdout
    assert text.startswith(".TH P2PRW 1") and all(f".SS p2prw {name}" in text for name in KNOWN)
    assert "\\-\\-require\\-direct" in text
    if shutil.which("groff"):
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww"], input=text, text=True, capture_output=True, check=True
        )
        assert "p2prw" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(run, shell, tmp_path):
    text = run("completion", shell).stdout
    assert f"_P2PRW_COMPLETE={shell}_complete" in text
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True, capture_output=True)


def complete(words: str) -> list[str]:
    """What bash offers behind these words."""
    program = Path(sys.executable).with_name("p2prw")
    env = {name: text for name, text in os.environ.items() if not name.startswith("P2PRW_")}
    count = len(words.split(" ")) - 1
    more = {"_P2PRW_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = {str(program)!r}; from p2prw.cli import main; main()"],
        env={**env, **more},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_words_are_completed():
    assert complete("p2prw wr") == ["write"]
    assert "--require-direct" in complete("p2prw write --requ")
    assert complete("p2prw write --route od") == ["odp"]
    assert "soft0" in complete("p2prw write --device so")
    assert complete("p2prw completion ba") == ["bash"]


def test_bash_completes_for_real(run, tmp_path):
    """The script in a real bash, called as readline calls it."""
    (tmp_path / "script").write_text(run("completion", "bash").stdout)
    (tmp_path / "p2prw").write_text(f'#!/bin/sh\nexec {sys.executable} -m p2prw "$@"\n')
    (tmp_path / "p2prw").chmod(0o755)
    text = """
source "$1/script"
COMP_WORDS=(p2prw ser); COMP_CWORD=1
$(complete -p p2prw | sed 's/.*-F \\([^ ]*\\) .*/\\1/') p2prw ser p2prw
printf '%s\\n' "${COMPREPLY[@]}"
"""
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["bash", "-c", text, "bash", str(tmp_path)], text=True, capture_output=True, env=env, check=True
    )
    assert done.stdout.split() == ["serve"]
