"""What a hospital does, and how often."""

from __future__ import annotations

from .keeping import half_upload, job, upload
from .looking import features, inspection, tensors
from .predicting import again, at_once, bad, cancelled, good, hurried, uncached, vanishing
from .traffic import Kind

EVERYTHING: dict[Kind, int] = {
    good: 4,
    uncached: 4,
    at_once: 2,
    again: 2,
    bad: 3,
    hurried: 3,
    cancelled: 3,
    vanishing: 3,
    job: 3,
    upload: 2,
    half_upload: 2,
    features: 3,
    inspection: 2,
    tensors: 2,
}
