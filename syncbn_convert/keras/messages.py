"""Messages of other libraries, in one line."""

from __future__ import annotations

_CAUSE = "Exception encountered: "
_FRAME = "Exception encountered when calling"
_DETAILS = " Full object config"
_LONGEST = 240


def cause_of(error: BaseException) -> str:
    """Return the line of an error's message that says why, or its kind where it has none.

    Keras puts the cause behind configurations of many lines, and another one behind it.
    """
    stripped = (line.strip() for line in str(error).splitlines())
    lines = [line for line in stripped if line and not line.startswith(_FRAME)]
    causes = [line for line in lines if line.startswith(_CAUSE)]
    line = (causes or lines or [type(error).__name__])[0].removeprefix(_CAUSE)
    line = line.partition(_DETAILS)[0]
    return (line if len(line) <= _LONGEST else f"{line[:_LONGEST]}...").rstrip(".;")
