"""How `--help` looks: plain text in two columns, whatever reads it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

_LABELS = 26
"""Columns of the names; what is longer stands on a line of its own."""
_INDENT = "  "


def shown_default(value: Any) -> str | None:
    """Return a default as help shows it; None where there is none to speak of."""
    nothing = value is None or value is False or value in ((), {})
    return None if nothing else str(value)


class TwoColumns:
    """Names on the left, what they do on the right; paragraphs are filled to the width."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Write a group of flags or the commands."""
        del options
        if not panel.entries:
            return
        lines = [f"{panel.title}:"]
        for entry in panel.entries:
            lines += _row(entry, console.width)
        _write(console, *lines, "")

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Write the usage line."""
        del options
        text = f"Usage: {_plain(usage)}"
        _write(console, *textwrap.wrap(text, console.width, subsequent_indent=_INDENT), "")

    def render_description(
        self, console: Console, options: ConsoleOptions, description: Any
    ) -> None:
        """Write what a command does, paragraph by paragraph."""
        del options
        for paragraph in _plain(description).strip().split("\n\n"):
            _write(console, *textwrap.wrap(paragraph, console.width), "")


def _row(entry: HelpEntry, width: int) -> Iterator[str]:
    label = _INDENT + ", ".join(entry.display_labels_with_metavar)
    room = _LABELS + len(_INDENT)
    text = textwrap.wrap(_text(entry), width - room) or [""]
    if len(label) > room - len(_INDENT):
        yield label
        label = ""
    yield f"{label:<{room}}{text[0]}"
    yield from (" " * room + line for line in text[1:])


def _text(entry: HelpEntry) -> str:
    parts = [" ".join(_plain(entry.description).split())]
    if entry.choices:
        parts.append(f"[{', '.join(entry.choices)}]")
    if entry.required:
        parts.append("[required]")
    elif entry.default is not None:
        shown = entry.positive_names[0] if entry.default == "True" else entry.default
        parts.append(f"[default: {shown}]")
    return " ".join(part for part in parts if part)


def _plain(text: Any) -> str:
    """Return the text of what cyclopts hands on: rich's Text, or a wrapper around one."""
    text = getattr(text, "primary_renderable", text)
    return str(getattr(text, "plain", text) or "")


def _write(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)
