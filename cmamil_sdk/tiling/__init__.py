"""Which tiles of a slide are read: scales, tissue, and the nested grid that ties them."""

from __future__ import annotations
