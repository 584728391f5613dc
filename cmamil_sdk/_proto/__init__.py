"""Messages generated from ``protos/`` by ``make protos``; edit the ``.proto`` files, never these.

``sources.sha256`` holds the hashes of the sources they were made from.
"""

from __future__ import annotations
