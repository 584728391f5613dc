"""``cmamil plans``: TensorRT plans of a finished bundle, for this machine or others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmamil_sdk.cli.lists import names_in
from cmamil_sdk.cli.output import Progress, output_folder, say, table

if TYPE_CHECKING:
    from cmamil_sdk.engines.plans import ListedPlan
    from cmamil_sdk.export.plans import PlanTarget

ComputeCapability = Annotated[
    str,
    typer.Option(
        help="GPUs that will run plans of tensorrt-rtx, as in 86,89; that of this machine by default."
    ),
]


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle's directory.")],
    engine_cache: Annotated[Path, typer.Option(help="Folder that keeps plans.")],
    target: Annotated[str, typer.Option(help="tensorrt or tensorrt-rtx.")] = "tensorrt-rtx",
    compute_capability: ComputeCapability = "",
) -> None:
    """Build plans of a bundle's graphs into an engine cache; the bundle itself never changes."""
    from cmamil_sdk.bundle.verify import read_manifest, verify_files
    from cmamil_sdk.export.plans import cache_plans

    plan_targets = plan_targets_of([target], compute_capability, option="--target")
    manifest, _ = read_manifest(bundle)
    verify_files(bundle, manifest)
    output_folder(engine_cache)
    for plan_target in plan_targets:
        with Progress("plans") as progress:
            written = cache_plans(
                bundle,
                manifest.recipe.scales,
                plan_target,
                engine_cache,
                lambda phase, done, steps: progress.update(done, steps, phase),
            )
        for plan in written:
            say(f"{plan.path} ({plan.size / 2**20:.1f} MiB, built in {plan.seconds:.1f} s)")


def plan_targets_of(
    targets: Sequence[str], compute_capability: str, *, option: str, others: Sequence[str] = ()
) -> list[PlanTarget]:
    """For which runtimes and GPUs plans are asked for by ``option``; ``others`` ask for none.

    Raises:
        FieldInvalid: an unknown target, or GPUs without a target that takes them.
        EngineMissing: as :func:`~cmamil_sdk.export.plans.plan_target`.
    """
    from cmamil_sdk.engines.base import TENSORRT
    from cmamil_sdk.errors import FieldInvalid

    known = (*others, *TENSORRT)
    unknown = [name for name in targets if name not in known]
    if unknown:
        raise FieldInvalid(f"{option} {unknown[0]} is unknown; choose of {', '.join(known)}.")
    runtimes = [runtime for runtime in TENSORRT if runtime in targets]
    asked = names_in(compute_capability, "--compute-capability") if compute_capability else []
    if asked and "tensorrt-rtx" not in runtimes:
        raise FieldInvalid(
            "--compute-capability belongs to the target tensorrt-rtx (tensorrt builds for the GPU of "
            "this machine alone); add it, or leave the option out."
        )
    if not runtimes:
        return []
    from cmamil_sdk.export.plans import plan_target

    return [plan_target(r, asked if r == "tensorrt-rtx" else ()) for r in runtimes]


def plan_table(plans: Sequence[ListedPlan]) -> str:
    """Plans with what they were built for."""
    rows = []
    for plan in plans:
        key = plan.document.key
        rows.append(
            [
                f"{plan.path.parent.name}/{plan.path.name}",
                f"{key.runtime} {key.runtime_version}",
                ",".join(key.compute_capabilities),
                key.precision,
                key.platform,
                len(key.profiles),
            ]
        )
    header = ["plan", "runtime", "compute capability", "precision", "platform", "profiles"]
    return table(header, rows)
