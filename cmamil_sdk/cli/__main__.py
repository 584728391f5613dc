"""``python -m cmamil_sdk.cli``: the same program as ``cmamil``."""

from __future__ import annotations

from cmamil_sdk.cli.app import main

if __name__ == "__main__":
    main()
