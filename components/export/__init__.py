"""Stage export: the checkpoint as ONNX or TensorRT plan.

Imports components.core, and no other stage.
"""
