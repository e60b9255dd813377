"""The contract of passes, and running them."""

from syncbn_convert.options.patterns import matches
from syncbn_convert.rewriting.contract import Journal, RewritePass, RewriteResult

__all__ = ["Journal", "RewritePass", "RewriteResult", "matches"]
