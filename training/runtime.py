"""The state of the process around a training: threads, seeds, determinism, Lightning's chatter."""

from __future__ import annotations

import logging
import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch

from cmamil_sdk.errors import ConfigInvalid, EngineMissing
from cmamil_sdk.wording import counted

from .config import Precision
from .lightning_import import PossibleUserWarning

_LOGGERS = ("lightning.pytorch", "lightning.fabric")
_MEMORY: Any = torch.utils.deterministic


@contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seed Python, NumPy and torch, and fix torch's threads; all is as before afterwards."""
    states = random.getstate(), np.random.get_state()
    n_threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = _MEMORY.fill_uninitialized_memory
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # a help in debugging that writes every tensor twice
        _MEMORY.fill_uninitialized_memory = False
        try:
            yield
        finally:
            _MEMORY.fill_uninitialized_memory = fill
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.set_num_threads(n_threads)
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's tips and hints off the terminal, and let Ctrl-C through.

    Lightning answers Ctrl-C with ``sys.exit`` and leaves the signal ignored; callers get the
    KeyboardInterrupt instead, and the handler they had.
    """
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=PossibleUserWarning)
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")
            yield
    except SystemExit as stop:
        signal.signal(signal.SIGINT, handler)
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def choose_device(wanted: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        EngineMissing: a GPU is asked for that torch does not see.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda" if wanted == "auto" else wanted)
    if (device.index or 0) >= torch.cuda.device_count():
        raise EngineMissing(
            f"device {wanted!r}: torch sees {counted(torch.cuda.device_count(), 'GPU')} here; "
            "choose another device, or 'cpu'."
        )
    return torch.device("cuda", device.index or 0)


def lightning_precision(
    precision: Precision, device: torch.device
) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """Lightning's name of a precision.

    Raises:
        ConfigInvalid: the device cannot train in it.
    """
    if precision == "fp32":
        return "32-true"
    if precision == "bf16-mixed":
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ConfigInvalid(
                f"precision 'bf16-mixed' needs a GPU with bfloat16, which {device} is not; choose "
                "'fp16-mixed' or 'fp32'."
            )
        return "bf16-mixed"
    if device.type != "cuda":
        raise ConfigInvalid(
            f"precision 'fp16-mixed' needs a CUDA device, and the training runs on {device}, whose "
            "float16 is slow and unscaled; choose 'bf16-mixed' or 'fp32'."
        )
    return "16-mixed"


__all__ = ["choose_device", "lightning_precision", "quiet_lightning", "reproducible"]
