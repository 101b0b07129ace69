"""How bash and zsh ask for completion, where click's way of it falls short. Loaded for completion only."""

from __future__ import annotations

import os

from click.shell_completion import BashComplete, CompletionItem, ShellComplete, ZshComplete, add_completion_class


class _Bash(BashComplete):
    """bash takes `file:/etc/ho` for three words and replaces the last alone: join them, answer with the last's rest."""

    def source(self) -> str:
        # click's starts a bash to look at its version: printing a text starts nothing here.
        return ShellComplete.source(self)

    def get_completion_args(self) -> tuple[list[str], str]:
        words = os.environ["COMP_WORDS"].split("\n" if "\n" in os.environ["COMP_WORDS"] else " ")
        joined: list[str] = []
        for word in words[: int(os.environ["COMP_CWORD"]) + 1]:
            if joined[1:] and not joined[-1].startswith("--") and (word == ":" or joined[-1].endswith(":")):
                joined[-1] += word
            else:
                joined.append(word)
        self._kept = joined[-1].rpartition(":")[0]
        return joined[1:-1], joined[-1]

    def format_completion(self, item: CompletionItem) -> str:
        value = item.value.removeprefix(f"{self._kept}:") if self._kept else item.value
        return f"{item.type},{value}"


class _Zsh(ZshComplete):
    """An autoloaded function's file is its body: from the second call on zsh runs it as `shfunc`, unknown to click."""

    def source(self) -> str:
        return super().source().replace("[-1] == loadautofunc", "[-1] == (loadautofunc|shfunc)")


def install() -> None:
    """Put ours in the place of click's completion for bash and zsh."""
    add_completion_class(_Bash)
    add_completion_class(_Zsh)
