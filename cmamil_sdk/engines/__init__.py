"""Run a graph: one protocol, one file per runtime."""

from __future__ import annotations

from cmamil_sdk.engines.base import Engine, EngineInfo
from cmamil_sdk.engines.choose import available_engines, available_precisions, load_engine

__all__ = ["Engine", "EngineInfo", "available_engines", "available_precisions", "load_engine"]
