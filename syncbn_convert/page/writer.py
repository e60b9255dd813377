"""What a command did, as a page: the model is looked at before it is changed, and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from syncbn_convert.files import model_file, staging

if TYPE_CHECKING:
    from syncbn_convert.page.document import PageReport


class PageWriter:
    """Writes a page, if one is wanted.

    Args:
        target: The page; None if none is wanted.

    Raises:
        UsageError: if matplotlib is not installed.
        ModelFileError: if the page could not be written.
    """

    def __init__(self, target: Path | None) -> None:
        self._target = target
        if target is None:
            return
        from syncbn_convert.page.plots import require_matplotlib

        require_matplotlib()
        staging.check_outputs([target], force=True)

    def take(self, model: ir.Model, path: Path) -> None:
        """Look at what a command reads, before it changes it."""
        if self._target is None:
            return
        from syncbn_convert.page.model_facts import facts_of

        self._before = facts_of(model, path)

    def write(self, report: PageReport, output: Path | None, model: ir.Model | None = None) -> None:
        """Write the page.

        Args:
            report: What was done.
            output: The model that a command wrote, or compared; None if there is none.
            model: What `output` holds; None reads it.
        """
        if self._target is None:
            return
        from syncbn_convert.page.document import write_page
        from syncbn_convert.page.model_facts import facts_of

        after = None
        if output is not None:
            after = facts_of(model or model_file.map_model(output), output)
        write_page(self._target, report, before=self._before, after=after)
