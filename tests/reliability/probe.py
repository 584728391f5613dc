"""Try every file of a folder as a user would, in a process whose memory is limited.

A program of its own (``python probe.py PLAN RESULTS``), so that what kills it is seen from outside. Says
on standard error what it is about to try.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import resource
import sys
from pathlib import Path
from typing import Any

from cmamil_sdk.cli.app import main


def give_up_privileges() -> None:
    """Let file permissions hold for root too (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    none = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def cmamil(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(arguments))
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
    return int(code), out.getvalue(), err.getvalue()


def inspect(slide: str, reader: str, options: list[str]) -> dict[str, Any]:
    """What ``cmamil inspect`` says of a slide."""
    code, out, err = cmamil("inspect", slide, "--reader", reader, "--json", *options)
    document = json.loads(out) if out else None
    return {"code": code, "document": document, "err": err}


def probe(plan: dict[str, Any]) -> dict[str, Any]:
    """Inspect every file through every reader, then extract the features of all in one run."""
    results: dict[str, Any] = {}
    for reader in plan["readers"]:
        inspected = {}
        for slide in plan["slides"]:
            sys.stderr.write(f"inspect {slide} {reader}\n")
            inspected[Path(slide).name] = inspect(slide, reader, plan["inspect_options"])
        sys.stderr.write(f"features {reader}\n")
        code, out, err = cmamil(
            *("features", "--slides", *plan["arguments"], "--reader", reader, "--json"),
            *("--out", f"{plan['out']}/{reader}", *plan["features_options"]),
        )
        results[reader] = {
            "inspect": inspected,
            "features": {"code": code, "document": json.loads(out) if out else None, "err": err},
        }
    return results


if __name__ == "__main__":
    plan_path, results_path = map(Path, sys.argv[1:])
    wanted = json.loads(plan_path.read_text("utf-8"))
    give_up_privileges()
    limit = int(wanted["memory_mib"]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    results_path.write_text(json.dumps(probe(wanted)), "utf-8")
