"""Models of other frameworks, read as ONNX with every normalization layer alive."""

from syncbn_convert.keras.custom import custom_objects
from syncbn_convert.keras.sources import Imported, import_model, is_foreign, read

__all__ = ["Imported", "custom_objects", "import_model", "is_foreign", "read"]
