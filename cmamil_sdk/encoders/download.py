"""Published weights that are fetched on first use."""

from __future__ import annotations

import http.client
from pathlib import Path

import torch

from cmamil_sdk.errors import WeightsMissing
from cmamil_sdk.files import sha256_of_file


def fetch_weights(url: str, name: str, encoder: str, *, sha256_prefix: str = "") -> Path:
    """The file at ``url``, kept as ``name`` in torch's folder of checkpoints.

    Args:
        url: where the weights are published.
        name: file name under which they are kept.
        encoder: as given to ``--encoder``, for the message.
        sha256_prefix: first digits of the file's sha256, where its publisher states them.

    Raises:
        WeightsMissing: they are not there and cannot be downloaded, or are not the published ones.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (OSError, http.client.HTTPException) as problem:
            raise WeightsMissing(
                f"The weights of {encoder} are not on this machine and cannot be downloaded "
                f"({problem}); download {url} elsewhere, and put it at {path}, or name it with "
                "--weights FILE."
            ) from problem
    digest = sha256_of_file(path)
    if not digest.startswith(sha256_prefix):
        raise WeightsMissing(
            f"{path} is not what {url} holds (its sha256 begins with {digest[:10]}, not with "
            f"{sha256_prefix}); remove it and try again, or name the weights with --weights FILE."
        )
    return path


__all__ = ["fetch_weights"]
