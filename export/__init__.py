"""Export of encoders and aggregators to ONNX, each checked against its model before it is used."""

from __future__ import annotations
