"""The judges of the panel: names, units, versions and licences of the labels they give."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """One judge, and what its label is."""

    text: str
    """Name and version."""
    unit: str
    licence: str
    """Of the program or the weights that compute it."""
    top: float
    """The value of an encode that equals its source."""
    higher_is_better: bool = True
    whole_frames: bool = True
    """Whether whole frames are measured too, and not regions alone."""


_LIBVMAF = "BSD-2-Clause-Patent, Netflix"

LABELS = {
    "v1": Label("VMAF v1.0.16", "0..100", _LIBVMAF, 100),
    "neg": Label("VMAF NEG v0.6.1", "0..100", _LIBVMAF, 100),
    "v0.6.1": Label("VMAF v0.6.1", "0..100", _LIBVMAF, 100),
    "cambi": Label("CAMBI of VMAF v1.0.16", "0 and more", _LIBVMAF, 0, higher_is_better=False),
    "xpsnr": Label("XPSNR of FFmpeg, Y:U:V 4:1:1", "dB", "LGPL-2.1-or-later, FFmpeg", 60),
    "ssimulacra2": Label(
        "SSIMULACRA 2 of ssimulacra2 0.3.0", "up to 100", "BSD-3-Clause", 100, whole_frames=False
    ),
    "fdim": Label(
        "FDIM of fdim 0.2.1, the network alone", "MOS 1..5", "MIT, Zhejiang University", 5,
        whole_frames=False,
    ),
    "cvvdp": Label(
        "ColorVideoVDP 0.5.7", "JOD up to 10", "MIT, University of Cambridge", 10,
        whole_frames=False,
    ),
}  # fmt: skip
"""By the names of their columns. Of a canvas above 2560x1440 the VMAFs are of their 4K models."""
