"""The command line: ``cmamil COMMAND``, one module per command."""

from __future__ import annotations

from cmamil_sdk.cli.app import main

__all__ = ["main"]
