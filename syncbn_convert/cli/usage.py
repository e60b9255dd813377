"""Arguments before they are parsed, and what is said of those that cannot be."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path

from cyclopts import CycloptsError, MissingArgumentError, UnusedCliTokensError

from syncbn_convert.cli.showing import STANDARD_OUTPUT

DEFAULT_COMMAND = "convert"

_WORDS = {"help": "--help", "version": "--version"}


def complete_arguments(argv: Sequence[str], commands: Collection[str]) -> list[str]:
    """Return `argv` with the default command and with the value of a bare `--json` filled in.

    A first argument that is neither a command nor a flag of the program belongs to `convert`,
    unless it is no file and looks like a command. A bare `--json` never takes the next argument,
    which could be the model. The words `help` and `version` are the flags.

    Args:
        argv: Arguments without the program's name.
        commands: Names of the commands, and flags of the program.
    """
    arguments = list(argv)
    if arguments and arguments[0] in _WORDS:
        arguments = [*arguments[1:2], _WORDS[arguments[0]]]
    elif arguments and arguments[0] not in commands and not _is_mistyped(arguments[0], commands):
        arguments.insert(0, DEFAULT_COMMAND)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = [f"--json={STANDARD_OUTPUT}" if flag == "--json" else flag for flag in arguments[:end]]
    return flags + arguments[end:]


def message(error: CycloptsError) -> str:
    """Return a usage error as one line that ends in where to read on."""
    path = " ".join(("syncbn-convert", *(error.command_chain or ())))
    cause = _cause(error)
    return f"{cause}{'' if cause.endswith('?') else ';'} see {path} --help"


def _is_mistyped(word: str, commands: Collection[str]) -> bool:
    is_other = word.startswith("-") or "/" in word or Path(word).suffix or Path(word).exists()
    return not is_other and bool(difflib.get_close_matches(word, commands, 1))


def _cause(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected argument '{(error.unused_tokens or [''])[0]}'"
    if not isinstance(error, MissingArgumentError) or error.argument is None:
        text = str(error).partition(" Available commands")[0].rstrip(".")
        return text[:1].lower() + text[1:]
    if error.keyword is not None:
        return f"{error.keyword} requires an argument"
    required = [argument.name for argument in error.argument.children if argument.required]
    name = (required or [error.argument.name])[0]
    near = difflib.get_close_matches(name, error.unused_tokens or [], 1)
    return f"{name} is missing" + (f"; did you mean it by {near[0]}?" if near else "")
