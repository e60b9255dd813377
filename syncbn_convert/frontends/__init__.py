"""Models of other frameworks, read as ONNX with every normalization layer alive."""

from syncbn_convert.frontends.sources import import_model, is_foreign

__all__ = ["import_model", "is_foreign"]
