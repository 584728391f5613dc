"""TensorRT plans: what each was built from, where they are listed, and which may run here.

A plan holds for one graph, one version of TensorRT, some GPUs and one operating system. Beside each,
``<graph>.json`` says for which; a ``manifest.json`` lists both with their hashes. Plans that no manifest
lists are never opened.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

from cmamil_sdk.engines.base import Precision, RuntimeName
from cmamil_sdk.errors import BundleCorrupt, EngineMissing
from cmamil_sdk.files import FileEntry, parse_document, read_listed

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]
"""Per input the smallest, the optimal and the largest shape."""

PLAN_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
"""Of the graphs that plans are built of: TensorRT computes in the types of a graph."""

MANIFEST = "manifest.json"
PLAN_SUFFIX = ".plan"

BUILDER_SETTINGS: dict[str, bool | int] = {
    "strongly_typed": True,
    # TF32 has 10 bits of mantissa: it would be fp32 in name only.
    "tf32": False,
    # Scores of global attention between 65,536 tiles and their 16,384 grandparents take 4 GiB.
    "workspace_mib": 16384,
}
"""How every plan is built."""


class PlanKey(BaseModel):
    """All that a plan depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    graph_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the bundle's ONNX graph")
    runtime: RuntimeName
    runtime_version: str
    compute_capabilities: tuple[str, ...] = Field(min_length=1, description="of GPUs, as in 89")
    precision: str
    profiles: tuple[Profile, ...] = Field(min_length=1)
    builder: dict[str, bool | int]
    platform: str = Field(description="operating system and processor, as in linux-x86_64")

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the plan's folder."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class TensorSpec(BaseModel):
    """Type and shape of an input; a dynamic axis is its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    shape: tuple[int | str, ...]


class PlanDocument(BaseModel):
    """The contents of the JSON beside a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: PlanKey
    inputs: dict[str, TensorSpec]


@dataclass(frozen=True)
class ListedPlan:
    """A plan that a manifest lists."""

    path: Path
    sha256: str
    document: PlanDocument

    def read(self) -> bytes:
        """The plan, compared with the manifest.

        Raises:
            BundleCorrupt: it is missing or changed.
        """
        return read_listed(self.path, self.sha256)


@dataclass(frozen=True)
class Here:
    """What a plan must have been built for, to run in this process."""

    graph_sha256: str
    runtime: RuntimeName
    runtime_version: str
    compute_capability: str
    precision: str

    def differences(self, key: PlanKey) -> list[str]:
        """Each reason why a plan must not run here, in words; empty if it may."""
        found = []
        if key.graph_sha256 != self.graph_sha256:
            found.append(f"graph {key.graph_sha256[:12]}… instead of {self.graph_sha256[:12]}…")
        for name, theirs, ours in (
            ("runtime", key.runtime, self.runtime),
            ("version", key.runtime_version, self.runtime_version),
            ("precision", key.precision, self.precision),
            ("platform", key.platform, this_platform()),
            ("builder settings", key.builder, BUILDER_SETTINGS),
        ):
            if theirs != ours:
                found.append(f"{name} {theirs} instead of {ours}")
        if self.compute_capability not in key.compute_capabilities:
            theirs = ", ".join(key.compute_capabilities)
            found.append(f"compute capability {theirs} instead of {self.compute_capability}")
        return found


def this_platform() -> str:
    """Operating system and processor, for example ``linux-x86_64``."""
    return f"{platform.system()}-{platform.machine()}".lower()


def listed_plans(folder: Path) -> list[ListedPlan]:
    """Plans that ``folder/manifest.json`` lists; none where there is no manifest.

    Raises:
        BundleCorrupt: the manifest or a plan's document is damaged.
    """
    return list(_listed(folder, _read_listing(folder))) if (folder / MANIFEST).exists() else []


def cached_plans(cache: Path) -> list[ListedPlan]:
    """Plans of an engine cache, which holds a folder with a manifest of its own for each.

    Raises:
        EngineMissing: there is no such directory.
        BundleCorrupt: a manifest or a plan's document is damaged.
    """
    if not cache.is_dir():
        raise EngineMissing(
            f"--engine-cache {cache} is no directory; make it with `cmamil plans`, or leave it out."
        )
    return [plan for folder in sorted(cache.iterdir()) for plan in listed_plans(folder)]


def known_plans(
    graph: Path, cache: Path | None, hashes: Mapping[str, str] | None = None
) -> list[ListedPlan]:
    """Plans of the bundle that ``graph`` is in, and of an engine cache if there is one.

    ``hashes`` are those of the bundle's manifest; None: it is read for them.

    Raises:
        EngineMissing, BundleCorrupt: as :func:`listed_plans` and :func:`cached_plans`.
    """
    folder = graph.parent
    own = listed_plans(folder) if hashes is None else list(_listed(folder, hashes))
    return [*own, *(cached_plans(cache) if cache is not None else [])]


def fitting_plan(plans: Sequence[ListedPlan], here: Here, graph: Path) -> ListedPlan:
    """The first plan that may run here.

    Raises:
        EngineMissing: there is none; says in what each differs.
    """
    reasons = []
    for plan in plans:
        differences = here.differences(plan.document.key)
        if not differences:
            return plan
        if plan.path.stem == graph.name.partition(".")[0]:
            reasons.append(f"{plan.path.parent.name} has {', '.join(differences)}")
    found = "; ".join(reasons) if reasons else "there is none at all"
    raise EngineMissing(
        f"No plan of {graph} fits {here.runtime} {here.runtime_version} and a GPU of compute "
        f"capability {here.compute_capability} ({found}); build one with `cmamil plans`."
    )


def _listed(folder: Path, hashes: Mapping[str, str]) -> Iterator[ListedPlan]:
    for name, sha256 in hashes.items():
        if not name.endswith(PLAN_SUFFIX):
            continue
        document = str(PurePosixPath(name).with_suffix(".json"))
        if document not in hashes:
            raise BundleCorrupt(
                f"{folder / MANIFEST} lists {name} without {document}; copy or build the plan again."
            )
        parsed = _parse(folder / document, read_listed(folder / document, hashes[document]))
        yield ListedPlan(folder / name, sha256, parsed)


class _Listing(BaseModel):
    files: dict[str, FileEntry]


def _read_listing(folder: Path) -> dict[str, str]:
    """sha256 by name."""
    file = folder / MANIFEST
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise BundleCorrupt(
            f"{file} cannot be read ({problem}); copy or build the plan again."
        ) from problem
    listing = parse_document(_Listing, document, where=file, error=BundleCorrupt)
    return {name: entry.sha256 for name, entry in listing.files.items()}


def _parse(path: Path, data: bytes) -> PlanDocument:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise BundleCorrupt(f"{path} is not JSON ({problem}); build the plan again.") from problem
    return parse_document(PlanDocument, document, where=path, error=BundleCorrupt)


__all__ = [
    "BUILDER_SETTINGS",
    "MANIFEST",
    "PLAN_PRECISIONS",
    "PLAN_SUFFIX",
    "Here",
    "ListedPlan",
    "PlanDocument",
    "PlanKey",
    "Profile",
    "Shape",
    "TensorSpec",
    "cached_plans",
    "fitting_plan",
    "known_plans",
    "listed_plans",
    "this_platform",
]
