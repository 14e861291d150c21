"""The selective scan of a state-space model (Mamba, arXiv 2312.00752), and orders of 2-D tokens.

With N states a channel the scan is h(t) = exp(d(t) A) h(t-1) + d(t) B(t) u(t) and y(t) = C(t) h(t)
+ D u(t), in fp32. The orders are those of LocalMamba (arXiv 2403.09338): window by window, so that
neighbours in a picture stay neighbours in the sequence.
"""

import importlib.util
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL = "mamba_ssm"
"""Package whose kernel takes the place of the plain scan on CUDA, where it is installed."""


class _LinearScan(torch.autograd.Function):
    """h(t) = a(t) h(t-1) + b(t) along axis 1 of (M, L, E), in chunks that run side by side."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = _scanned(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        # the gradient of b(t) is that of h(t) and a(t+1) times that of b(t+1): a scan backwards
        later = F.pad(a[:, 1:], (0, 0, 0, 1))
        of_b = _scanned(later.flip(1), gradients[0].flip(1)).flip(1)
        return of_b * F.pad(h[:, :-1], (0, 0, 1, 0)), of_b


def linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """(M, L, E) h(t) = a(t) h(t-1) + b(t) from h(-1) = 0; a is in 0..1."""
    return cast(Tensor, _LinearScan.apply(a, b))  # type: ignore[no-untyped-call]


def _scanned(a: Tensor, b: Tensor) -> Tensor:
    """`linear_scan` in about twice the square root of L steps, without gradients.

    Chunks are scanned side by side, each from 0; then each takes what the one before left, times
    the product of its own a, which is at most 1.
    """
    count, length, width = a.shape
    chunk = math.isqrt(max(length - 1, 0)) + 1
    chunks = -(-length // chunk)
    pad = (0, 0, 0, chunks * chunk - length)
    # step by step through the first axis, so that each step is of contiguous memory
    a, h = (
        F.pad(x, pad).view(count, chunks, chunk, width).permute(2, 1, 0, 3).contiguous()
        for x in (a, b)
    )
    kept = a.clone()
    for i in range(1, chunk):
        h[i].addcmul_(a[i], h[i - 1])
        kept[i].mul_(kept[i - 1])
    for j in range(1, chunks):
        h[:, j].addcmul_(kept[:, j], h[-1, j - 1])
    return h.permute(2, 1, 0, 3).reshape(count, -1, width)[:, :length]


def selective_scan(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor
) -> Tensor:
    """Scan K sequences of each sample, in fp32.

    Args:
        u: (B, K, L, E) inputs.
        delta: (B, K, L, E) steps, positive.
        a: (K, E, N) decay rates, negative.
        b: (B, K, L, N) of the inputs to the states.
        c: (B, K, L, N) of the states to the outputs.
        skip: (K, E) of the inputs to the outputs.

    Returns:
        (B, K, L, E).
    """
    with torch.autocast(u.device.type, enabled=False):
        u, delta, a, b, c, skip = (x.float() for x in (u, delta, a, b, c, skip))
        if u.device.type == "cuda" and importlib.util.find_spec(KERNEL) is not None:
            return _by_kernel(u, delta, a, b, c, skip)
        decay = (delta[..., None] * a[:, None]).exp()  # (B, K, L, E, N)
        fed = (delta * u)[..., None] * b[..., None, :]
        shape = decay.shape
        h = linear_scan(decay.flatten(3).flatten(0, 1), fed.flatten(3).flatten(0, 1))
        y: Tensor = (h.view(shape) * c[..., None, :]).sum(-1) + skip[:, None] * u
        return y


def _by_kernel(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
    """`selective_scan` by mamba_ssm's kernel, whose sequences are last and directions groups."""
    interface = importlib.import_module(f"{KERNEL}.ops.selective_scan_interface")
    directions, width = u.shape[1], u.shape[3]
    inputs, steps = (x.permute(0, 1, 3, 2).flatten(1, 2).contiguous() for x in (u, delta))
    into, out_of = (x.transpose(2, 3).contiguous() for x in (b, c))
    y: Tensor = interface.selective_scan_fn(
        inputs, steps, a.flatten(0, 1).contiguous(), into, out_of, skip.flatten().contiguous()
    )
    return torch.unflatten(y, 1, (directions, width)).transpose(2, 3)


def cross_scan(x: Tensor, window: int, directions: int) -> Tensor:
    """(B, H, W, C) tokens in the order of each direction: (B, K, L, C).

    Window by window along rows of windows, and along rows inside; by columns; and both reversed.
    Two directions are the first and its reverse. The grid is padded with zeros to whole windows.
    """
    pad = -x.shape[2] % window, -x.shape[1] % window
    x = F.pad(x, (0, 0, 0, pad[0], 0, pad[1]))
    orders = [_by_windows(x, window)]
    if directions == 4:
        orders.append(_by_windows(x.transpose(1, 2), window))
    elif directions != 2:
        raise ValueError(f"a scan has 2 or 4 directions, not {directions}")
    forward = torch.stack(orders, 1)
    return torch.cat([forward, forward.flip(2)], 1)


def cross_merge(y: Tensor, height: int, width: int, window: int) -> Tensor:
    """The way back from `cross_scan`, summed over directions: (B, H, W, C)."""
    rows, columns = (-(-side // window) * window for side in (height, width))
    forward, back = y.chunk(2, 1)
    orders = (forward + back.flip(2)).unbind(1)
    x = _from_windows(orders[0], rows, columns, window)
    if len(orders) == 2:
        x = x + _from_windows(orders[1], columns, rows, window).transpose(1, 2)
    return x[:, :height, :width]


def _by_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (B, H·W, C)."""
    x = torch.unflatten(x, 2, (-1, window))
    x = torch.unflatten(x, 1, (-1, window))  # (B, H/w, w, W/w, w, C)
    return x.transpose(2, 3).flatten(1, 4)


def _from_windows(x: Tensor, rows: int, columns: int, window: int) -> Tensor:
    """The way back from `_by_windows`."""
    x = torch.unflatten(x, 1, (rows // window, columns // window, window, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
