"""A report as one self-contained HTML page, with pictures; behind `--report`."""

from __future__ import annotations

from syncbn_convert.page.document import write_page
from syncbn_convert.page.model_facts import ModelFacts, read_facts

__all__ = ["ModelFacts", "read_facts", "write_page"]
