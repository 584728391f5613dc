"""A recorded double of CUDA and of TensorRT's runtime: device memory is host memory, plans are ONNX."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from cmamil_sdk.errors import GpuOutOfMemory


class FakeCuda:
    """The calls of :class:`cmamil_sdk.engines.cuda.Cuda`; counts what is not given back."""

    def __init__(self, room: int = 2**40) -> None:
        self.index = 0
        self.compute_capability = "89"
        self.room = room
        self.memory: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.recording: list[Callable[[], None]] | None = None
        self.graphs: list[Any] = []
        self.launches = 0

    def activate(self) -> None:
        pass

    def new_stream(self) -> int:
        stream = max(self.streams, default=0) + 1
        self.streams.add(stream)
        return stream

    def destroy_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def synchronize(self, stream: int) -> None:
        assert stream in self.streams
        assert self.recording is None, "a stream that records cannot be waited for"

    def allocate(self, size: int) -> int:
        if size + sum(map(len, self.memory.values())) > self.room:
            raise GpuOutOfMemory("full")
        assert self.recording is None
        buffer = ctypes.create_string_buffer(b"\xff" * size, size)  # never zeros by luck
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        del self.memory[address]

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        assert stream in self.streams
        ctypes.memmove(target, source, size)

    def clear(self, address: int, size: int, stream: int) -> None:
        assert stream in self.streams
        ctypes.memset(address, 0, size)

    def begin_capture(self, stream: int) -> None:
        assert stream in self.streams
        self.recording = []

    def end_capture(self, stream: int) -> Any:
        graph, self.recording = self.recording, None
        self.graphs.append(graph)
        return graph

    def launch(self, graph: Any, stream: int) -> None:
        self.launches += 1
        for step in graph:
            step()

    def destroy_graph(self, graph: Any) -> None:
        self.graphs.remove(graph)


class FakeContext:
    """Runs the ONNX graph on what lies at the addresses it was given."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.profile = engine, None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, position: int, stream: int) -> bool:
        self.profile = self.engine.profiles[position]
        return stream > 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        smallest, _, largest = self.profile[name]
        assert all(a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True))
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._computed(zeros=True)[name].shape

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.engine.cuda
        assert stream in cuda.streams
        assert set(self.addresses) == set(self.engine.modes)
        if cuda.recording is not None:
            cuda.recording.append(self._execute)
        else:
            self._execute()
        return self.engine.takes_work

    def _execute(self) -> None:
        for name, array in self._computed(zeros=False).items():
            ctypes.memmove(self.addresses[name], array.ctypes.data, array.nbytes)

    def _computed(self, *, zeros: bool) -> dict[str, np.ndarray]:
        feeds = {}
        for name, shape in self.shapes.items():
            array = np.zeros(shape, self.engine.dtypes[name])
            if not zeros:
                ctypes.memmove(array.ctypes.data, self.addresses[name], array.nbytes)
            feeds[name] = array
        session = self.engine.session
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))


class FakeEngine:
    takes_work = True

    def __init__(self, data: bytes, profiles: Any, cuda: FakeCuda) -> None:
        self.cuda, self.profiles = cuda, profiles
        self.num_optimization_profiles = len(profiles)
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        types = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(int64)": np.int64}
        self.dtypes = {i.name: types[i.type] for i in self.session.get_inputs()}
        self.modes = dict.fromkeys(self.dtypes, Mode.INPUT)
        self.modes |= {o.name: Mode.OUTPUT for o in self.session.get_outputs()}
        self.num_io_tensors = len(self.modes)

    def get_tensor_name(self, number: int) -> str:
        return list(self.modes)[number]

    def get_tensor_mode(self, name: str) -> Mode:
        return self.modes[name]

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_profile_shape(self, name: str, position: int) -> list[list[int]]:
        return [list(shape) for shape in self.profiles[position][name]]

    def get_engine_stat(self, stat: str) -> int:
        return {"weights": 1000}[stat]

    def get_device_memory_size_for_profile_v2(self, position: int) -> int:
        return 100 * (position + 1)

    def create_execution_context(self, strategy: str) -> FakeContext:
        assert strategy == "on profile change"
        return FakeContext(self)


class Mode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


def fake_library(cuda: FakeCuda, profiles: Any) -> Any:
    """A module as ``tensorrt_rtx``; it reads plans through the stream reader, in small pieces."""

    class Runtime:
        engine_host_code_allowed = True

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, reader: Any) -> FakeEngine | None:
            assert self.engine_host_code_allowed is False
            reader.seek(0, Origin.SET)
            data = b"".join(iter(lambda: reader.read(1000, 0), b""))
            if data.startswith(b"no plan"):
                self.logger.log("error", "this is no plan")
                return None
            return FakeEngine(data, profiles, cuda)

    class Origin(enum.Enum):
        SET = 0
        CUR = 1
        END = 2

    return SimpleNamespace(
        __version__="9.9",
        ILogger=type("ILogger", (), {"ERROR": "error", "INTERNAL_ERROR": "internal"}),
        IStreamReaderV2=type("IStreamReaderV2", (), {}),
        Runtime=Runtime,
        SeekPosition=Origin,
        EngineStat=SimpleNamespace(TOTAL_WEIGHTS_SIZE="weights"),
        TensorIOMode=Mode,
        ExecutionContextAllocationStrategy=SimpleNamespace(ON_PROFILE_CHANGE="on profile change"),
        float32="float32",
    )
