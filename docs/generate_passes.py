"""Write docs/passes.md from the docstrings of the passes.

How to run::

    python docs/generate_passes.py [FILE]
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from syncbn_convert import passes
from syncbn_convert.rewriting import RewritePass

_HEADER = """\
# Passes

Generated from the docstrings by `python docs/generate_passes.py`. Each pass is a frozen dataclass
in a file of its name in `passes/`, imported as `syncbn_convert.passes`.
"""
_ATTRIBUTE = re.compile(r"^    (\w+): ", re.MULTILINE)


def render() -> str:
    """Return the text of the page."""
    return "\n".join([_HEADER, *(_section(getattr(passes, name)) for name in passes.__all__)])


def _section(pass_class: type[RewritePass]) -> str:
    name = pass_class.__module__.rpartition(".")[2]
    text, _, attributes = (inspect.getdoc(pass_class) or "").partition("\nAttributes:\n")
    options = _ATTRIBUTE.sub(r"- `\1`: ", attributes).replace("\n    ", "\n")
    lines = [f"## `{name}`: {pass_class.__name__}\n", f"{text.strip()}\n"]
    if options:
        lines.append(f"Options:\n\n{options.rstrip()}\n")
    return "\n".join(lines)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("passes.md")
    target.write_text(render(), encoding="utf-8")
