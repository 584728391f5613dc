"""The model bundle: a directory with everything a prediction needs, hashed and self-testing."""

from __future__ import annotations

from cmamil_sdk.bundle.answer import Aggregated
from cmamil_sdk.bundle.load import Bundle
from cmamil_sdk.bundle.manifest import Manifest

__all__ = ["Aggregated", "Bundle", "Manifest"]
