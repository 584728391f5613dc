"""``cmamil verify``: is this bundle whole, and does it compute here what it computed there?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli.options import Device, EngineCache, EngineName, Json
from cmamil_sdk.cli.output import say, say_json
from cmamil_sdk.cli.parity_tables import (
    engine_document,
    parity_document,
    parity_text,
    precisions_text,
)
from cmamil_sdk.cli.plans import plan_table


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle's directory.")],
    engine: EngineName = "auto",
    device: Device = "auto",
    engine_cache: EngineCache = None,
    json: Json = False,
) -> None:
    """Check every hash, and compare the encoder with its model on every engine and precision here."""
    from cmamil_sdk.bundle import Bundle
    from cmamil_sdk.bundle.manifest import ENCODER_GRAPH
    from cmamil_sdk.engines.plans import known_plans
    from cmamil_sdk.errors import ParityFailed

    loaded = Bundle.load(
        bundle,
        engine=engine,
        device=device,
        engine_cache=engine_cache,
        allow_failed_parity=True,
    )
    plans = known_plans(bundle / ENCODER_GRAPH, engine_cache, loaded.manifest.hashes)
    for plan in plans:
        plan.read()  # compares it with its manifest
    golden = loaded.self_test()
    rows, manifest = loaded.parity_table(), loaded.manifest
    here = {row.label: row.parity for row in rows if row.parity is not None}
    absent = {row.label: row.why for row in rows if row.parity is None}
    document: dict[str, Any] = {
        "bundle": loaded.label,
        "bundle_sha256": loaded.sha256,
        "files": {name: entry.sha256 for name, entry in manifest.files.items()},
        **engine_document(loaded.encoder_info),
        "golden": golden,
        "encoder_parity": parity_document(here.values()),
        "not_here": absent,
        "encoder_parity_at_export": parity_document(manifest.encoder_parity),
        "aggregator_parity_at_export": manifest.parity,
        "aggregator": engine_document(loaded.aggregator_info),
        "aggregator_differences": loaded.aggregator_differences(),
        "precisions_at_export": [r.model_dump(mode="json") for r in manifest.precisions],
        "parity_failed": manifest.parity_failed,
        "plans": [
            {"path": str(plan.path), "sha256": plan.sha256}
            | plan.document.key.model_dump(mode="json")
            for plan in plans
        ],
    }
    if json:
        say_json(document)
    else:
        say(f"{loaded.label}: {len(manifest.files)} files as exported, sha256 {loaded.sha256}\n")
        say(parity_text(list(here.values()), manifest.parity, absent))
        if manifest.precisions:
            say(f"\nat export:\n\n{precisions_text(manifest.precisions)}")
        if plans:
            say(f"\n{plan_table(plans)}")
        differences, in_use = document["aggregator_differences"], loaded.aggregator_info.label
        found = differences.get(in_use, golden["aggregator_difference"])
        say(
            f"\nin use: {loaded.engine_label} ({loaded.encoder_info.reason}); aggregator "
            f"{in_use} ({loaded.aggregator_info.reason}), largest difference {found:.2e}"
            f"{_others(differences, in_use)}"
        )
        if manifest.parity_failed:
            say(f"FAILED at export: {manifest.parity_failed}")
    raise typer.Exit(ParityFailed.exit_code if manifest.parity_failed else 0)


def _others(differences: dict[str, float], in_use: str) -> str:
    """Those of the aggregator's graphs that are not in use."""
    rest = {label: value for label, value in differences.items() if label != in_use}
    return "".join(f", {label} {value:.2e}" for label, value in rest.items())
