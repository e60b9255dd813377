"""What users choose: dataclasses without ONNX."""
