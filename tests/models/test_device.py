"""Precision of fp32 arithmetic, whatever the host program has set, and of training."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from vqaloop.models.device import _full_fp32_by_flags, autocast, exact

BACKENDS: Any = torch.backends
NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")
needs_settings = pytest.mark.skipif(not NEW, reason="PyTorch has them since 2.9")


def holders() -> list[Any]:
    """What has a setting of its own, the common one last."""
    products = BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul
    convolutions = BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.mkldnn.conv
    return [*products, *convolutions, BACKENDS]


def values() -> list[str]:
    return [holder.fp32_precision for holder in holders()]


@pytest.fixture
def restored() -> Iterator[None]:
    """Leaves the process as it was."""
    matmul, flag = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    before = values() if NEW else []
    yield
    torch.backends.cudnn.allow_tf32 = flag
    torch.set_float32_matmul_precision(matmul)
    for holder, value in zip(reversed(holders() if NEW else []), reversed(before), strict=True):
        holder.fp32_precision = value


def common(value: str) -> Callable[[], None]:
    return lambda: setattr(BACKENDS, "fp32_precision", value)


def old_flags() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def both() -> None:
    old_flags()
    BACKENDS.cuda.matmul.fp32_precision = "ieee"


@needs_settings
@pytest.mark.parametrize(
    "host",
    [
        lambda: None,
        common("tf32"),
        common("bf16"),
        common("ieee"),
        old_flags,
        both,
        lambda: torch.set_float32_matmul_precision("medium"),
    ],
    ids=["nothing", "tf32", "bf16", "ieee", "old flags", "both", "medium"],
)
def test_full_fp32_whatever_the_host_has_set(host: Callable[[], None], restored: None) -> None:
    host()
    before = values()
    with exact(), exact():
        assert values()[:-1] == ["ieee"] * 5
        assert torch.ones(2, 2) @ torch.ones(2, 1) == pytest.approx(2)
    assert values() == before


@needs_settings
def test_what_follows_the_common_setting_follows_it_afterwards(restored: None) -> None:
    BACKENDS.fp32_precision = "tf32"
    with exact():
        pass
    BACKENDS.fp32_precision = "ieee"
    assert BACKENDS.cuda.matmul.fp32_precision == "ieee"


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_full_fp32_by_the_older_flags(precision: str, restored: None) -> None:
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = True
    with _full_fp32_by_flags():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32


def test_a_recipe_trains_alike_on_processors_with_and_without_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    with autocast(torch.device("cpu")):
        assert torch.nn.Linear(4, 4)(torch.ones(2, 4)).dtype == torch.float32
