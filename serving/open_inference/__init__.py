"""The Open Inference Protocol v2, which stock clients of Triton and KServe speak, beside our own API.

Three models for each bundle: its encoder, its aggregator, and whole slides. Nothing is imported here.
"""

from __future__ import annotations
