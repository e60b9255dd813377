"""Models of other frameworks, read as ONNX with every normalization layer alive."""
