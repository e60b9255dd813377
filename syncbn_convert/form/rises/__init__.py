"""What an operator's node takes to mean the same in the next opset, one file a family."""

from syncbn_convert.form.rises import (
    arguments,
    broadcasting,
    dropping,
    flattening,
    renaming,
    resizing,
)
from syncbn_convert.form.rises.steps import NEWEST, rise

__all__ = [
    "NEWEST",
    "arguments",
    "broadcasting",
    "dropping",
    "flattening",
    "renaming",
    "resizing",
    "rise",
]
