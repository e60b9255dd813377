"""The flag `--report`: what a command did, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syncbn_convert.page.document import Report


class PageWriter:
    """Reads the model before a command changes it, and writes the page after.

    Args:
        target: The page; None if none is wanted.
        model: What the command reads.

    Raises:
        UsageError: if matplotlib is not installed.
        ModelFileError: if the page could not be written, or the model cannot be read.
    """

    def __init__(self, target: Path | None, model: Path) -> None:
        self._target = target
        if target is None:
            return
        from syncbn_convert import page
        from syncbn_convert.files import staging
        from syncbn_convert.page.plots import require_matplotlib

        require_matplotlib()
        staging.check_outputs([target], force=True)
        self._before = page.read_facts(model)

    def write(self, report: Report, output: Path | None) -> None:
        """Write the page, if one is wanted."""
        if self._target is None:
            return
        from syncbn_convert import page

        after = page.read_facts(output) if output is not None else None
        page.write_page(self._target, report, before=self._before, after=after)
