"""The process that decodes slides and encodes their tiles on one GPU, and may die of it.

A program (``python -m cmamil_sdk.features.encoder_child FD``) with one socket to its parent, whose
questions it answers in turn. It ends with the parent, even while it decodes.
"""

from __future__ import annotations

import resource
import socket
import sys
import threading
import traceback
from collections.abc import Iterator

from cmamil_sdk.child_pipe import Failed, frame, receive
from cmamil_sdk.engines import Engine, load_engine
from cmamil_sdk.errors import CmamilError, MemoryTooSmall, SlideUnreadable, UnexpectedError
from cmamil_sdk.features.encode import encode_ahead
from cmamil_sdk.features.encoder_process import (
    EncodeBatches,
    Held,
    LoadEncoder,
    RunEncoder,
    SlideDone,
    WarmUp,
)
from cmamil_sdk.slides import open_slide
from cmamil_sdk.slides.cucim_child import end_with_parent
from cmamil_sdk.slides.cucim_cuda import require_cuda_decoding
from cmamil_sdk.slides.cuda_reader import CudaReader


class EncoderServer:
    """Answers questions with one encoder and, while it is read, one open slide."""

    def __init__(self, load: LoadEncoder) -> None:
        """Load the encoder.

        Raises:
            CmamilError: as :func:`~cmamil_sdk.engines.load_engine`; ReaderMissing, where cuCIM cannot
                decode on a GPU.
        """
        self.engine: Engine = load_engine(load.graph, **load.options)
        require_cuda_decoding()

    def answers(self, question: RunEncoder | WarmUp | EncodeBatches) -> Iterator[object]:
        """The answers to one question; whatever goes wrong becomes the last, :class:`Failed`."""
        try:
            if isinstance(question, RunEncoder):
                yield self.engine.infer(question.inputs)
            elif isinstance(question, WarmUp):
                if question.rows:
                    self.engine.warm_up(question.rows)
                yield Held(self.engine.memory_bytes())
            else:
                yield from self._encode(question)
        except Exception as problem:  # noqa: BLE001 - it is the parent's, which asked
            yield _failed(problem, question)

    def _encode(self, asked: EncodeBatches) -> Iterator[object]:
        device = self.engine.info.device
        with open_slide(asked.path, reader="cucim", device=device) as reader:
            assert isinstance(reader, CudaReader)
            yield reader.facts
            batches = (asked.batches[number] for number in asked.numbers)
            yield from encode_ahead(reader, batches, self.engine)
        yield SlideDone()


def _failed(problem: Exception, question: RunEncoder | WarmUp | EncodeBatches) -> Failed:
    what = str(question.path) if isinstance(question, EncodeBatches) else "The encoder"
    error: CmamilError
    if isinstance(problem, CmamilError):
        error = problem
    elif isinstance(problem, MemoryError):
        error = MemoryTooSmall(
            f"{what} needs more memory than this machine or its GPU gives ({problem}); use a larger one, "
            "or leave --reader out, which decodes on the CPU."
        )
    elif isinstance(problem, OSError):
        error = SlideUnreadable(f"{what}: {problem}; check file and folder.")
    else:
        traceback.print_exception(problem)
        error = UnexpectedError(f"{what}: {type(problem).__name__}: {problem}; report this.")
    return Failed(error.reason, str(error))


def main() -> None:
    """Serve the socket whose descriptor is the first argument until the parent closes it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=int(sys.argv[1])) as pipe:
        threading.Thread(target=end_with_parent, args=(pipe,), daemon=True).start()
        try:
            server = EncoderServer(receive(pipe))
        except CmamilError as problem:
            pipe.sendall(frame(Failed(problem.reason, str(problem))))
            return
        pipe.sendall(frame(server.engine.info))
        while (question := receive(pipe)) is not None:
            for answer in server.answers(question):
                pipe.sendall(frame(answer))


if __name__ == "__main__":
    main()
