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
_exact_setting = contextlib.ExitStack()


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """A context of full fp32, also where the host program allows TF32 or bf16 in its place.

    All devices agree then. The setting is the whole process's: of several threads inside, the
    last to leave restores it.
    """
    global _exact_inside
    with _exact_lock:
        if not _exact_inside:
            is_new = hasattr(torch.backends.cuda.matmul, "fp32_precision")
            _exact_setting.enter_context(_full_fp32() if is_new else _full_fp32_by_flags())
        _exact_inside += 1
    try:
        yield
    finally:
        with _exact_lock:
            _exact_inside -= 1
            if not _exact_inside:
                _exact_setting.close()


@contextlib.contextmanager
def _full_fp32() -> Iterator[None]:
    """Full fp32 by the settings of PyTorch 2.9 and later.

    Kernels go by these alone. The older flags are neither read nor written: reading them raises
    an error where the host program has set both, and using them warns.
    """
    backends: Any = torch.backends
    products = backends.cuda.matmul, backends.mkldnn.matmul
    operations = (*products, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv)
    before = [operation.fp32_precision for operation in operations]
    for operation in operations:
        operation.fp32_precision = "ieee"
    yield
    for operation, value in zip(operations, before, strict=True):
        # first as inherited: what followed a common setting goes on following it
        operation.fp32_precision = "none"
        if operation.fp32_precision != value:
            operation.fp32_precision = value


@contextlib.contextmanager
def _full_fp32_by_flags() -> Iterator[None]:
    """The same before PyTorch 2.9."""
    convolution = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), convolution.allow_tf32
    torch.set_float32_matmul_precision("highest")
    convolution.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    convolution.allow_tf32 = before[1]


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 on GPUs. On CPUs none, whether they multiply it or not: a recipe trains the same
    student on all of them, in bf16 where its engine asks for that."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
