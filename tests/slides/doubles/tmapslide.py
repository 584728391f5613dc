"""Double of tmapslide 0.2.3: its names, signatures, return types and coordinates; pixels of a .npz
behind a header.

Recorded: as kfbslide, but what is not stored is grey; ``tmap.version`` is 06 or 07, and
``tmap.mpp_source`` says whether the scale was in the file or derived from the objective.
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
                self._rgba = file["rgba"]
                self._version, self._source = str(file["version"]), str(file["mpp_source"])
        except Exception as e:
            raise OpenSlideUnsupportedFormatError(f"Cannot parse TMAP file: {e}") from e
        self.closed = False

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
        return (1.0, 2.0)

    @property
    def properties(self):
        return MappingProxyType(
            {
                "openslide.vendor": "unic",
                "openslide.quickhash-1": "",
                "tmap.version": self._version,
                "tmap.objective_power": "20",
                "openslide.objective-power": "20",
                "openslide.mpp-x": "0.5",
                "openslide.mpp-y": "0.5",
                "tmap.mpp_source": self._source,
            }
        )

    def read_region(self, location, level, size):
        ds = self.level_downsamples[level]
        x, y = int(location[0] / ds), int(location[1] / ds)
        out = Image.new("RGBA", size, (244, 244, 244, 255))
        out.paste(Image.fromarray(self._rgba[:: int(ds), :: int(ds)]), (-x, -y))
        return out

    def close(self):
        self.closed = True
