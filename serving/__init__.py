"""The gRPC server: predictions of slides beneath given roots, by exported bundles.

An asyncio front takes requests; worker processes read and encode tiles and may die without harm.
Start it with :func:`cmamil_sdk.serving.server.serve`. Nothing is imported here, because the workers
are started from this package and need no gRPC.
"""

from __future__ import annotations
