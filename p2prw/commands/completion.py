"""Print the shell's completion script."""

from __future__ import annotations

from typing import Any

import click

from p2prw.commands.app import App
from p2prw.commands.options import HelpfulCommand, settings_options

EPILOG = """\
Examples:
  p2prw completion bash > ~/.local/share/bash-completion/completions/p2prw
  p2prw completion zsh  > ~/.zfunc/_p2prw     (with fpath+=~/.zfunc in .zshrc)
  p2prw completion fish > ~/.config/fish/completions/p2prw.fish"""


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="Print completion for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="bash|zsh|fish")
@settings_options("completion")
@click.pass_obj
def completion(app: App, /, shell: str, **line: Any) -> int:
    """Print a script that completes commands, options, their words, devices and files of p2prw."""
    app.settings("completion", line)
    from click.shell_completion import get_completion_class

    from p2prw.commands.shells import install
    from p2prw.reporters.document import build

    install()
    found = get_completion_class(shell)
    assert found is not None, "click has these three"
    text = found(click.get_current_context().find_root().command, {}, "p2prw", "_P2PRW_COMPLETE").source()
    rows = [{"shell": shell, "script": text}]
    return app.listing(build("completion", results=rows), text.rstrip("\n").split("\n"))
