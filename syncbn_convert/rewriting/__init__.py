"""The contract of passes, and running them."""

from syncbn_convert.rewriting.contract import Journal, RewritePass, RewriteResult, matches

__all__ = ["Journal", "RewritePass", "RewriteResult", "matches"]
