"""The judges of the panel: names, units, versions and licences of the labels they give."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Label:
    """One judge, and what its label is."""

    name: str
    """In texts."""
    version: str
    """Of the model or the program."""
    unit: str
    licence: str
    """Of the program or the weights that compute it."""
    higher_is_better: bool = True


_NETFLIX = "BSD-2-Clause-Patent, Netflix"

LABELS = {
    "v1": Label("VMAF v1", "vmaf_v1.0.16 of libvmaf", "0..100", _NETFLIX),
    "neg": Label("VMAF NEG", "vmaf_v0.6.1neg of libvmaf", "0..100", _NETFLIX),
    "v0.6.1": Label("VMAF v0.6.1", "vmaf_v0.6.1 of libvmaf", "0..100", _NETFLIX),
    "cambi": Label(
        "CAMBI", "as in vmaf_v1.0.16 of libvmaf", "0 and more", _NETFLIX, higher_is_better=False
    ),
    "xpsnr": Label(
        "XPSNR", "filter of FFmpeg, planes 4:1:1", "dB, at most 60", "LGPL-2.1-or-later, FFmpeg"
    ),
    "ssimulacra2": Label(
        "SSIMULACRA 2", "PyPI ssimulacra2 0.3.0", "at most 100", "BSD-3-Clause, Pacidus"
    ),
    "fdim": Label(
        "FDIM", "PyPI fdim 0.2.1, its network alone", "MOS 1..5", "MIT, Zhejiang University"
    ),
    "cvvdp": Label(
        "ColorVideoVDP", "PyPI cvvdp 0.5.7", "JOD, at most 10", "MIT, University of Cambridge"
    ),
}
"""By the names of their columns. Of a canvas above 2560x1440 the VMAFs are of their 4K models."""


def describe(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Versions, units and licences of some labels, as headers of weights have them."""
    return {name: asdict(LABELS[name]) for name in names}
