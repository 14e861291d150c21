"""FDIM's deep network: a full-reference opinion score of single pictures, trained on people.

FDIM (Zhejiang University, arXiv 2604.24123, 2026; PyPI `fdim`, MIT). A ResNet-18 is run on both
pictures. At each of its four stages the maps of both and their squared difference meet in a
deformable convolution (Dai et al., ICCV 2017) whose offsets come from the reference, followed by
CBAM (Woo et al., ECCV 2018) and a mean over the picture. Names of modules are those of the
released checkpoint.
"""

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqaloop.core.files import check_regular
from vqaloop.errors import InputError

VERSION = "0.2.1"
"""Of the package that carries the checkpoint."""
MEMBER = "fdim/dist/checkpoints/dist_5.0.0.ckpt"
"""The checkpoint inside its wheel."""
SIZE = 85_701_729
"""Bytes of the checkpoint."""
SHA256 = "def2615203d1bc86645bda4657068f493169c9f3d0dbb7b8224f04b1046c7eb5"
WIDTHS = (64, 128, 256, 512)
"""Channels of the four stages."""
FEATURES = sum(WIDTHS)
MOS = (5.1354, -0.7089, -1.4327, 0.6885)
"""FDIM's logistic from the network's answer to opinions: upper and lower asymptote, centre, and
width."""


class Fdim(nn.Module):
    """The network, in evaluation mode as created: it is never trained here."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _ResNet18()
        self.DFFs = nn.ModuleList(_Difference(width) for width in WIDTHS)
        self.attens = nn.ModuleList(_Attention(width) for width in WIDTHS)
        # numbered as in the checkpoint, which counts dropouts too
        self.fc = nn.Sequential(
            nn.Linear(FEATURES, 512),
            nn.ReLU(),
            nn.Identity(),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Identity(),
            nn.Linear(256, 2),
        )
        self.eval()

    def features(self, reference: Tensor, distorted: Tensor) -> Tensor:
        """(B, FEATURES), of (B, 3, H, W) R'G'B' in 0..1, both of one size."""
        pairs = zip(self.backbone(reference), self.backbone(distorted), strict=True)
        means = []
        for difference, attention, maps in zip(self.DFFs, self.attens, pairs, strict=True):
            means.append(attention(difference(*map(_unit, maps))).mean((2, 3)))
        return torch.cat(means, 1)

    def mos(self, features: Tensor) -> Tensor:
        """(B,) opinion scores, about 1..5, of `features`."""
        # the second output is the scores' spread, which FDIM trains but does not use
        answer = self.fc(features)[:, 0]
        top, bottom, centre, width = MOS
        return bottom + (top - bottom) * torch.sigmoid((answer - centre) / width)


def load_fdim(path: Path) -> Fdim:
    """The network with its released weights, fp32 on the CPU.

    Args:
        path: The wheel of FDIM, or the checkpoint out of it (.ckpt).

    Raises:
        InputError: The file is missing, or not that wheel or checkpoint.
    """
    remedy = (
        f"fetch it with `pip download --no-deps fdim=={VERSION}` and name the wheel with --fdim"
    )
    shown = repr(os.fspath(path))
    try:
        check_regular(path)
        if path.suffix == ".whl":
            # no more than the known size is read, whatever the archive says of itself
            with zipfile.ZipFile(path) as wheel, wheel.open(MEMBER) as file:
                data = file.read(SIZE + 1)
        else:
            with open(path, "rb") as plain:
                data = plain.read(SIZE + 1)
    except KeyError as error:
        raise InputError(f"FDIM's wheel {shown} has no {MEMBER}; {remedy}") from error
    except (OSError, RuntimeError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"FDIM's file {shown} cannot be read: {error}; {remedy}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise InputError(
            f"FDIM's file {shown} is not the checkpoint of version {VERSION} (SHA-256 "
            f"{found[:12]}..., not {SHA256[:12]}...); {remedy}"
        )
    network = Fdim()
    network.load_state_dict(torch.load(io.BytesIO(data), "cpu", weights_only=True))
    return network


def _unit(maps: Tensor) -> Tensor:
    """Unit length over channels at each place."""
    return maps / (maps.square().sum(1, keepdim=True) + 1e-10).sqrt()


def deform_conv(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Deformable convolution, version 1: 3x3 taps, stride 1, padding 1, zero outside the picture.

    Args:
        x: (B, C, H, W).
        offset: (B, 18, H, W), in pixels: dy and dx of each tap, taps row by row.
        weight: (D, C, 3, 3).
        bias: (D,).
    """
    height, width = x.shape[2:]
    rows = torch.arange(height, dtype=x.dtype, device=x.device)[:, None]
    columns = torch.arange(width, dtype=x.dtype, device=x.device)
    out = bias[:, None, None].expand(len(x), -1, height, width)
    for tap in range(9):
        dy, dx = offset[:, 2 * tap], offset[:, 2 * tap + 1]
        y, x_at = rows + (tap // 3 - 1) + dy, columns + (tap % 3 - 1) + dx
        # -1 and 1 are the outer edges of the picture, so that one of a single pixel works too
        grid = torch.stack([(2 * x_at + 1) / width - 1, (2 * y + 1) / height - 1], -1)
        # the weights first: sampling is linear, and C is three times D
        mixed = F.conv2d(x, weight[:, :, tap // 3, tap % 3, None, None])
        out = out + F.grid_sample(mixed, grid, "bilinear", "zeros", align_corners=False)
    return out


class _Deform(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        return deform_conv(x, offset, self.weight, self.bias)


class _Difference(nn.Module):
    """Maps of both pictures and their squared difference, sampled where the reference says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.deform = _Deform(3 * width, width)
        self.offset = nn.Conv2d(width, 18, 3, padding=1)

    def forward(self, reference: Tensor, distorted: Tensor) -> Tensor:
        maps = torch.cat([reference, distorted, (reference - distorted) ** 2], 1)
        return F.relu(self.deform(maps, self.offset(reference)))


class _ChannelGate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, width // 16, bias=False),
            nn.ReLU(),
            nn.Linear(width // 16, width, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.fc(x.mean((2, 3))) + self.fc(x.amax((2, 3))))
        return x * gate[:, :, None, None]


class _SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.conv(both))


class _Attention(nn.Module):
    """CBAM: a gate of each channel, then one of each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channel_attention = _ChannelGate(width)
        self.spatial_attention = _SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.spatial_attention(self.channel_attention(x)))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + kept)


class _ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = (64, *WIDTHS)
        for stage in range(1, 5):
            inputs, outputs = widths[stage - 1 : stage + 1]
            blocks = _Block(inputs, outputs, 1 if stage == 1 else 2), _Block(outputs, outputs, 1)
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        maps = []
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            maps.append(x)
        return maps
