"""``cmamil verify``: is this bundle whole, and does it compute here what it computed there?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.output import say, say_json, table


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle's directory.")],
    json: Json = False,
) -> None:
    """Check every hash and reproduce the golden values on this machine's engine."""
    from cmamil_sdk.bundle import Bundle

    loaded = Bundle.load(bundle)
    found = loaded.self_test()
    document = {
        "bundle": loaded.label,
        "bundle_sha256": loaded.sha256,
        "files": {name: entry.sha256 for name, entry in loaded.manifest.files.items()},
        "engines": {loaded.engine_label: found},
        "parity_at_export": loaded.manifest.parity,
    }
    if json:
        say_json(document)
        return
    say(f"{loaded.label}: {len(loaded.manifest.files)} files as exported, sha256 {loaded.sha256}")
    rows = [
        [
            loaded.engine_label,
            f"{found['encoder_cosine']:.8f}",
            f"{found['aggregator_difference']:.2e}",
        ]
    ]
    say(table(["engine", "encoder cosine, worst", "aggregator, largest difference"], rows))
