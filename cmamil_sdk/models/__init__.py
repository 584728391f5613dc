"""MIL models: torch modules behind one interface (:class:`~cmamil_sdk.models.base.MILModel`)."""

from __future__ import annotations
