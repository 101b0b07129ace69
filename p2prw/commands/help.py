"""Help by topic, and all of it as a man page."""

from __future__ import annotations

from typing import Any

import click

from p2prw.commands.app import App
from p2prw.commands.complete import topics
from p2prw.commands.options import HelpfulCommand, settings_options
from p2prw.errors import RequestError

EPILOG = """\
Examples:
  p2prw help
  p2prw help exit-codes
  p2prw help --man > p2prw.1; man -l p2prw.1"""


@click.command(cls=HelpfulCommand, epilog=EPILOG, short_help="Explain a topic, or print the man page.")
@click.argument("topic", metavar="[TOPIC]", required=False, shell_complete=topics)
@settings_options("help")
@click.pass_obj
def help(app: App, /, topic: str | None, **line: Any) -> int:
    """Explain memory, routes, exit-codes, scenario, environment, errors or a command; without TOPIC, list them."""
    settings = app.settings("help", line)
    from p2prw.commands.topics import TOPICS, topic_lines
    from p2prw.config_values import nearest
    from p2prw.reporters.document import build

    if settings["man"]:
        from p2prw.commands.man import man_page

        text = man_page(click.get_current_context().find_root())
        return app.listing(build("help", results=[{"topic": "man", "text": text}]), text.rstrip("\n").split("\n"))
    if topic is None:
        lines = [f"{name:<12} {title}" for name, title in TOPICS.items()]
        return app.listing(build("help", results=[{"topic": name} for name in TOPICS]), lines)
    root = click.get_current_context().find_root()
    group = root.command
    commands = group.list_commands(root) if isinstance(group, click.Group) else []
    command = group.get_command(root, topic) if isinstance(group, click.Group) else None
    if command is not None:
        with click.Context(command, parent=root, info_name=topic) as context:
            lines = command.get_help(context).split("\n")
        return app.listing(build("help", results=[{"topic": topic, "text": "\n".join(lines)}]), lines)
    if topic not in TOPICS:
        near = nearest(topic, (*TOPICS, *commands))
        raise RequestError(
            f"there is no topic {topic!r}",
            why=f"topics: {', '.join(TOPICS)}; and every command",
            fix=f"p2prw help {near}" if near else "p2prw help",
            code="unknown_topic",
        )
    lines = topic_lines(topic)
    document = build("help", results=[{"topic": topic, "text": "\n".join(lines)}])
    return app.listing(document, app.stdout.folded(lines))
