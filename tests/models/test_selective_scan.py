"""The chunked scan against a loop, and orders of tokens as permutations."""

import itertools
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.support.nets import noise
from vqaloop.models import selective_scan as scans
from vqaloop.models.selective_scan import cross_merge, cross_scan, linear_scan, selective_scan


def inputs(length: int, states: int = 2) -> tuple[Tensor, ...]:
    """u, delta, a, b, c, skip of 2 samples, 3 directions, 4 channels."""
    u, delta = noise(2, 3, length, 4, seed=1), noise(2, 3, length, 4, seed=2).abs()
    a = -noise(3, 4, states, seed=3).exp()
    b, c = noise(2, 3, length, states, seed=4), noise(2, 3, length, states, seed=5)
    return u, delta, a, b, c, noise(3, 4, seed=6)


def naive(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
    """Step by step, in fp64."""
    u, delta, a, b, c, skip = (x.double() for x in (u, delta, a, b, c, skip))
    h, out = torch.zeros(*u.shape[:2], u.shape[3], a.shape[2], dtype=torch.float64), []
    for t in range(u.shape[2]):
        step = delta[:, :, t, :, None]
        fed = step * b[:, :, t, None, :] * u[:, :, t, :, None]
        h = (step * a[None]).exp() * h + fed
        out.append((h * c[:, :, t, None, :]).sum(-1) + skip * u[:, :, t])
    return torch.stack(out, 2)


@pytest.mark.parametrize("length", [1, 2, 7, 16, 50])
@pytest.mark.parametrize("states", [1, 3])
def test_chunks_give_what_a_loop_gives(length: int, states: int) -> None:
    given = inputs(length, states)
    torch.testing.assert_close(selective_scan(*given), naive(*given).float(), atol=1e-5, rtol=1e-5)


def test_state_is_fp32_under_autocast_and_of_bf16_inputs() -> None:
    given = [x.bfloat16() for x in inputs(40)]
    with torch.autocast("cpu", torch.bfloat16):
        found = selective_scan(*given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, naive(*given).float(), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_loop() -> None:
    given = [x.requires_grad_() for x in inputs(11)]
    weight = noise(2, 3, 11, 4, seed=9)
    found = torch.autograd.grad((selective_scan(*given) * weight).sum(), given)
    expected = torch.autograd.grad((naive(*given).float() * weight).sum(), given)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_linear_scan_checks_by_finite_differences() -> None:
    a = torch.rand(2, 6, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_scan, (a, b))


def order_by_hand(rows: int, columns: int, window: int, by_columns: bool) -> list[int]:
    """Numbers of tokens, row by row, in the order of a scan; -1 for those that pad the grid."""
    down, across = -(-rows // window), -(-columns // window)
    windows = itertools.product(range(down), range(across))
    if by_columns:
        windows = ((r, c) for c, r in itertools.product(range(across), range(down)))  # type: ignore[assignment]
    found = []
    for top, left in windows:
        places = itertools.product(range(window), range(window))
        for one, two in places:
            r, c = (two, one) if by_columns else (one, two)
            r, c = top * window + r, left * window + c
            found.append(r * columns + c if r < rows and c < columns else -1)
    return found


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (4, 7), (3, 2)])
@pytest.mark.parametrize("directions", [2, 4])
def test_scans_are_permutations_and_merging_undoes_them(
    rows: int, columns: int, directions: int
) -> None:
    numbers = torch.arange(1.0, rows * columns + 1).view(1, rows, columns, 1)
    found = cross_scan(numbers, 3, directions)[0, ..., 0].int() - 1
    by_rows, by_columns = (order_by_hand(rows, columns, 3, flag) for flag in (False, True))
    forward = [by_rows] if directions == 2 else [by_rows, by_columns]
    assert found.tolist() == [*forward, *(order[::-1] for order in forward)]
    x = noise(2, rows, columns, 5)
    merged = cross_merge(cross_scan(x, 3, directions), rows, columns, 3)
    torch.testing.assert_close(merged, directions * x)
    # each order is undone by its own way back
    y = noise(2, directions, found.shape[1], 5)
    sums = torch.zeros(2, rows * columns, 5)
    for k, order in enumerate(found.tolist()):
        for t, token in enumerate(order):
            if token >= 0:
                sums[:, token] += y[:, k, t]
    torch.testing.assert_close(cross_merge(y, rows, columns, 3).flatten(1, 2), sums)


def test_three_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="2 or 4 directions, not 3"):
        cross_scan(noise(1, 3, 3, 1), 3, 3)


def test_the_kernel_is_called_as_it_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """mamba_ssm: u, delta (B, D, L), A (D, N), B, C (B, G, N, L), D (D); a group G of channels."""

    def reference(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        h, out = torch.zeros(len(u), *a.shape), []
        b, c = (x.repeat_interleave(u.shape[1] // x.shape[1], 1) for x in (b, c))
        for t in range(u.shape[2]):
            step = delta[:, :, t, None]
            h = (step * a).exp() * h + step * b[..., t] * u[:, :, t, None]
            out.append((h * c[..., t]).sum(-1) + d * u[:, :, t])
        return torch.stack(out, 2)

    package, ops, interface = (ModuleType(name) for name in ("mamba_ssm", "ops", "interface"))
    interface.selective_scan_fn = reference  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mamba_ssm", package)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", ops)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
    given = inputs(9)
    found = scans._by_kernel(*given)
    torch.testing.assert_close(found, naive(*given).float(), atol=1e-5, rtol=1e-5)
