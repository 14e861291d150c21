"""Device and floating-point precision of the networks."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from vqaloop.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """auto: the first GPU, else the CPU. Raises InputError for cuda without a CUDA device."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {name!r}; choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("this PyTorch sees no CUDA device; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


_exact_lock = threading.Lock()
_exact_inside = 0
_exact_before = (False, False)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """A context of full fp32, also on GPUs that would round to TF32, so that all devices agree.

    The setting is the whole process's: of several threads inside, the last to leave restores it.
    """
    global _exact_inside, _exact_before
    linear, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    with _exact_lock:
        if not _exact_inside:
            _exact_before = linear.allow_tf32, convolution.allow_tf32
            linear.allow_tf32 = convolution.allow_tf32 = False
        _exact_inside += 1
    try:
        yield
    finally:
        with _exact_lock:
            _exact_inside -= 1
            if not _exact_inside:
                linear.allow_tf32, convolution.allow_tf32 = _exact_before


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 where it is quicker: on GPUs, and on processors that multiply it natively."""
    quick = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=bool(quick))
