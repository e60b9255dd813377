"""Files of ONNX models: reading, checking, writing."""
