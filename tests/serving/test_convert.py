"""What a model does not say of its tiles is left out of the message."""

from __future__ import annotations

import numpy as np

from cmamil_sdk.predict import ScaleMap
from cmamil_sdk.serving.convert import _scale_attention


def test_maps_of_a_model_that_says_nothing_of_its_tiles() -> None:
    coords = np.array([[1, 2], [3, 4]])
    message = _scale_attention(ScaleMap("20x", 224.0, coords, None, None))
    assert list(message.coords) == [1, 2, 3, 4]
    assert list(message.attention) == list(message.contribution) == []
    full = ScaleMap("20x", 224.0, coords, np.float32([0.25, 0.75]), np.float32([[1, 2], [3, 4]]))
    message = _scale_attention(full)
    assert list(message.attention) == [0.25, 0.75]
    assert list(message.contribution) == [1.0, 2.0, 3.0, 4.0]
