"""Topics, the man page and completion: all made from the tables that the commands use."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from p2prw.cli import KNOWN, cli
from p2prw.commands.shells import install
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


def test_help_of_a_command_is_its_own_page(run):
    page = run("help", "write")
    assert page.exit_code == 0 and page.stdout.startswith("Usage: p2prw write [OPTIONS]") and "--from" in page.stdout
    document, result = run.json("help", "wrte", "--json")
    assert result.exit_code == 2 and document["error"]["try"] == "p2prw help write"
    assert run("help", "zzzzzz").stderr.splitlines()[-1] == "  try:  p2prw help"


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


@pytest.fixture
def complete(monkeypatch) -> Callable[[str], list[str]]:
    """What bash offers behind these words."""

    def offered(words: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", words.replace(" ", "\n").replace(":", "\n:\n"))
        monkeypatch.setenv("COMP_CWORD", str(os.environ["COMP_WORDS"].count("\n")))
        install()
        bash = get_completion_class("bash")
        assert bash is not None
        shown = bash(cli, {}, "p2prw", "_P2PRW_COMPLETE").complete()
        return [line.partition(",")[2] for line in shown.splitlines()]

    return offered


def test_words_are_completed(complete):
    assert complete("p2prw wr") == ["write"]
    assert "--require-direct" in complete("p2prw write --requ")
    assert complete("p2prw write --route od") == ["odp"]
    assert "soft0" in complete("p2prw write --device so")
    assert complete("p2prw completion ba") == ["bash"]


def test_words_of_every_kind(tmp_path, monkeypatch, complete):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.bin").touch()
    (tmp_path / "images").mkdir()
    assert {"host", "file:", "cuda:"} <= set(complete("p2prw write --from "))
    assert complete("p2prw read --to ho") == ["host"]
    # bash replaces what stands behind the colon.
    assert complete(f"p2prw write --from file:{tmp_path}/im") == [f"{tmp_path}/image.bin", f"{tmp_path}/images/"]
    assert complete("p2prw write 127.0.0.1:18515/x --from file:im") == ["image.bin", "images/"]
    assert complete("p2prw write --from file:no-such-folder/x") == []
    assert complete("p2prw help ro") == ["routes"]


@pytest.fixture
def echo_program(tmp_path: Path) -> Path:
    """A folder with a `p2prw` that completes like the real one, and otherwise shows what it was given."""
    program = tmp_path / "bin" / "p2prw"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
if [ -n "$_P2PRW_COMPLETE" ]; then exec {sys.executable} -m p2prw "$@"; fi
printf 'given:'; printf ' <%s>' "$@"; echo
"""
    )
    program.chmod(0o755)
    return program.parent


TYPED = (
    ("p2prw vers\t", "given: <version>"),
    ("p2prw write --route od\t", "given: <write> <--route> <odp>"),
    ("p2prw write --from file:imag\t", "given: <write> <--from> <file:image.bin>"),
    ("p2prw run scen\t", "given: <run> <scenario.yaml>"),
)


def type_into(shell: list[str], folder: Path, env: dict[str, str]) -> None:
    """Type each line into the shell on a terminal of its own, and see that it comes to what it should."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe(shell[0], shell, env)
    seen = ""
    try:
        for line, wanted in TYPED:
            os.write(terminal, f"{line}\n".encode())
            deadline_s = time.monotonic() + 30
            while wanted not in seen:
                left_s = deadline_s - time.monotonic()
                assert left_s > 0, f"{line!r}: {seen!r}"
                if select.select([terminal], [], [], left_s)[0]:
                    seen += os.read(terminal, 65536).decode(errors="replace")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_real_shell_completes(run, shell, tmp_path, echo_program):
    """As a user has it: the script where the command's help says, keys pressed on a terminal."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here (apt-get install {shell}; scripts/test does that as root)")
    work = tmp_path / "work"
    work.mkdir()
    for name in ("image.bin", "scenario.yaml"):
        (work / name).touch()
    script = run("completion", shell).stdout
    env = {name: text for name, text in os.environ.items() if not name.startswith("P2PRW_")}
    env |= {"PATH": f"{echo_program}:{env['PATH']}", "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "dumb"}
    env |= {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path)}
    if shell == "bash":
        (tmp_path / "rc").write_text(script)
        type_into(["bash", "--noprofile", "--rcfile", str(tmp_path / "rc"), "-i"], work, env)
    elif shell == "zsh":
        (tmp_path / ".zfunc").mkdir()
        (tmp_path / ".zfunc" / "_p2prw").write_text(script)
        (tmp_path / ".zshrc").write_text("fpath+=~/.zfunc\nautoload -Uz compinit && compinit -u\n")
        type_into(["zsh", "-d", "-i"], work, env)
    else:
        (tmp_path / "script").write_text(script)
        for line, wanted in TYPED:
            code = f"source {tmp_path}/script; complete -C '{line.rstrip()}'"
            done = subprocess.run(
                ["fish", "--no-config", "-c", code], cwd=work, env=env, text=True, capture_output=True, timeout=60
            )
            assert done.stdout.split("\t")[0].split() == [wanted.rpartition("<")[2].rstrip(">")], (line, done)
