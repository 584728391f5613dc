"""A bundle is loaded and tested in a process of its own before the server uses it.

A graph that nobody has run here may crash the runtime, or hang it: then the process ends, and the server
goes on. It is a program (``python -m cmamil_sdk.serving.trial FD``) with one open socket to the server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import traceback
from pathlib import Path

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.child_pipe import how_it_ended
from cmamil_sdk.errors import BundleUnsupported, CmamilError, UnexpectedError, error_from_reason

from .child import ChildProcess
from .config import ServerConfig
from .messages import BundleTried, Failed, Parts, Reply, TryBundle, frame
from .task_frames import receive_task
from .worker import confine

LOG = logging.getLogger(__name__)

_LONGEST_S = 1800.0  # a large encoder on a GPU takes minutes
TRIAL_COMMAND = (sys.executable, "-P", "-m", "cmamil_sdk.serving.trial")


async def try_bundle(path: Path, config: ServerConfig) -> BundleTried:
    """Have a process verify and load a bundle and run its golden test; takes seconds.

    Cancelled, it ends the process.

    Raises:
        BundleUnsupported: the process died of it, or was not done within half an hour.
        CmamilError: as :meth:`Bundle.load`.
    """
    answer: asyncio.Future[Reply | Parts | None] = asyncio.get_running_loop().create_future()

    def settle(reply: Reply | Parts | None) -> None:
        if not answer.done():
            answer.set_result(reply)

    child = ChildProcess(settle, lambda: settle(None))
    try:
        await child.start(TRIAL_COMMAND)
    except OSError as problem:
        raise UnexpectedError(f"A process cannot be started ({problem}).") from problem
    try:
        child.send(_question(path, config))
        async with asyncio.timeout(_LONGEST_S):
            reply = await answer
    except TimeoutError as problem:
        raise BundleUnsupported(
            f"{path} was not loaded within {_LONGEST_S:g} s; export it again, or choose "
            "another engine."
        ) from problem
    finally:
        child.kill()
        status = await child.ended()
    if isinstance(reply, BundleTried):
        return reply
    if isinstance(reply, Failed):
        if reply.details:
            LOG.error("the trial of %s met an unexpected error:\n%s", path, reply.details)
        raise error_from_reason(reply.reason, reply.message)
    raise BundleUnsupported(
        f"Loading and testing {path} ended the process that tried it, which "
        f"{how_it_ended(status or 0)}; export it again, or choose another engine."
    )


def _question(path: Path, config: ServerConfig) -> TryBundle:
    return TryBundle(
        parent_pid=os.getpid(),
        path=str(path),
        engine=config.engine,
        device=config.device,
        precision=config.precision,
        allow_failed_parity=config.allow_failed_parity,
    )


def tried(asked: TryBundle) -> BundleTried | Failed:
    """Load a bundle; what goes wrong becomes :class:`Failed`."""
    try:
        bundle = Bundle.load(
            Path(asked.path),
            engine=asked.engine,
            device=asked.device,
            precision=asked.precision,
            callers=1,
            allow_failed_parity=asked.allow_failed_parity,
        )
    except CmamilError as problem:
        return Failed(problem.reason, str(problem))
    except Exception as problem:  # noqa: BLE001 - it is the server's, which asked
        message = f"Loading {asked.path} failed with {type(problem).__name__}."
        return Failed("UNEXPECTED_ERROR", message, traceback.format_exc())
    return BundleTried(bundle.sha256, bundle.encoder_info, bundle.encoder_parity.model_dump())


def main() -> None:
    """Answer the one question on the socket whose descriptor is the first argument."""
    with socket.socket(fileno=int(sys.argv[1])) as pipe:
        asked = receive_task(pipe)
        if isinstance(asked, TryBundle):
            confine(asked.parent_pid)
            pipe.sendall(frame(tried(asked)))


if __name__ == "__main__":
    main()
