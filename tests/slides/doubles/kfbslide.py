"""Double of kfbslide 0.3.4: its names, signatures, return types and coordinates; pixels of a .npz
behind a header.

Recorded: a level's pixel is int(location / downsample); tiles that are not stored stay transparent;
a file that does not parse raises OpenSlideUnsupportedFormatError, a tile that does not decode PIL's
error.
"""

import io
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

HEADER_BYTES = 2048


class OpenSlideError(Exception):
    pass


class OpenSlideUnsupportedFormatError(OpenSlideError):
    pass


class OpenSlide:
    def __init__(self, filename: str):
        assert isinstance(filename, str)
        try:
            data = Path(filename).read_bytes()[HEADER_BYTES:]
            with np.load(io.BytesIO(data)) as file:
                self._rgba, self._spoilt = file["rgba"], bool(file["spoilt"])
                self._mpp, self._scan_scale = float(file["mpp"]), int(file["scan_scale"])
        except Exception as e:
            raise OpenSlideUnsupportedFormatError(f"Cannot parse KFB file: {e}") from e
        self._closed = False

    @property
    def level_count(self):
        return len(self.level_downsamples)

    @property
    def dimensions(self):
        return self.level_dimensions[0]

    @property
    def level_dimensions(self):
        height, width = self._rgba.shape[:2]
        return tuple((int(width / ds), int(height / ds)) for ds in self.level_downsamples)

    @property
    def level_downsamples(self):
        return (1.0, 2.0, 4.0)

    @property
    def properties(self):
        return MappingProxyType(
            {
                "openslide.vendor": "kfbio",
                "openslide.quickhash-1": "",
                "openslide.mpp-x": str(self._mpp),
                "openslide.mpp-y": str(self._mpp),
                "openslide.objective-power": str(self._scan_scale),
            }
        )

    def read_region(self, location, level, size):
        if self._closed:
            raise OpenSlideError("Slide is closed")
        if self._spoilt:
            Image.open(__file__)  # raises UnidentifiedImageError
        ds = self.level_downsamples[level]
        x, y = int(location[0] / ds), int(location[1] / ds)
        stored = self._rgba[:: int(ds), :: int(ds)]
        return Image.fromarray(stored).crop((x, y, x + size[0], y + size[1]))

    def close(self):
        self._closed = True
