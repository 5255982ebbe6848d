"""An embedding service on ONNX Runtime that speaks NIM's API."""
