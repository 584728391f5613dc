"""The training core: features and labels in, a run directory out.

:func:`~cmamil_sdk.training.run.train` is the whole way; the modules beside it are its steps.
"""

from __future__ import annotations
