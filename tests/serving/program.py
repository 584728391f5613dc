"""A server as a process of its own, which can be killed."""

from __future__ import annotations

import subprocess
import sys

from cmamil_sdk.serving.config import ServerConfig

_PROGRAM = """
import sys
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import serve
config = ServerConfig.model_validate_json(sys.argv[1])
serve(config, on_ready=lambda port: print(port, flush=True))
"""


def start_program(config: ServerConfig) -> tuple[subprocess.Popen[str], int]:
    """The process, and the port of the server once it is ready."""
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, config.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    return program, int(program.stdout.readline())
