"""``cmamil verify``: is this bundle whole, and does it compute here what it computed there?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmamil_sdk.cli.options import Device, EngineCache, EngineName, Json
from cmamil_sdk.cli.output import say, say_json, table
from cmamil_sdk.cli.plans import plan_table


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle's directory.")],
    engine: EngineName = "auto",
    device: Device = "auto",
    engine_cache: EngineCache = None,
    json: Json = False,
) -> None:
    """Check every hash and reproduce the golden values on this machine's engine."""
    from cmamil_sdk.bundle import Bundle
    from cmamil_sdk.engines.plans import cached_plans, listed_plans

    loaded = Bundle.load(bundle, engine=engine, device=device, engine_cache=engine_cache)
    found = loaded.self_test()
    plans = listed_plans(bundle) + (cached_plans(engine_cache) if engine_cache else [])
    for plan in plans:
        plan.open().close()  # compares it with its manifest
    document = {
        "bundle": loaded.label,
        "bundle_sha256": loaded.sha256,
        "files": {name: entry.sha256 for name, entry in loaded.manifest.files.items()},
        "engines": {loaded.engine_label: found},
        "parity_at_export": loaded.manifest.parity,
        "plans": [
            {"path": str(plan.path), "sha256": plan.entry.sha256}
            | plan.document.key.model_dump(mode="json")
            for plan in plans
        ],
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
    if plans:
        say(plan_table(plans))
