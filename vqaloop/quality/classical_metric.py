"""VMAF of both versions, XPSNR, PSNR, SSIM and CAMBI as metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vqaloop.core.files import file_sha256
from vqaloop.quality import full_reference
from vqaloop.quality.full_reference import CAMBI
from vqaloop.quality.metric import GUARD_GAP
from vqaloop.records import Score, Source


@dataclass(frozen=True)
class ClassicalMetric:
    """VMAF, XPSNR, PSNR or SSIM over all frames, as `quality/full_reference.py` defines them."""

    name: str
    ffmpeg: str
    top: float
    step: float
    ceiling: float
    floor: float
    mode: str = "full-reference"
    guard_gap: ClassVar[float] = GUARD_GAP
    scale: ClassVar[None] = None
    guarded_by: ClassVar[None] = None

    def identity(self) -> dict[str, Any]:
        return {
            "metric": self.name,
            "weights_sha256": None,
            "preprocessing": f"classical {full_reference.REVISION}",
            "decoder": file_sha256(self.ffmpeg),
            "sampling": {},
        }

    def measure(self, source: Source, path: Path, decoder: str) -> Score:
        return full_reference.measure(source, path, [self.name], ffmpeg=self.ffmpeg)[self.name]

    def finer(self) -> None:
        return None

    def confirming(self) -> None:
        return None

    def scene_by_scene(self, scenes: Sequence[tuple[int, int]]) -> "ClassicalMetric":
        return self


CLASSICAL = {
    # VMAF: 6 is about one just noticeable difference and 95 the level
    # above which viewers see none (Kah et al. 2021); dB values are the usual span of streaming
    "vmaf": (100.0, 4.0, 95.0, 30.0),
    "vmaf-v1": (100.0, 4.0, 95.0, 30.0),
    "vmaf-v1-phone": (100.0, 4.0, 95.0, 30.0),
    "vmaf-v1-hfr": (100.0, 4.0, 95.0, 30.0),
    "vmaf-neg": (100.0, 4.0, 95.0, 30.0),
    "ssim": (100.0, 0.6, 99.2, 80.0),
    "psnr": (100.0, 1.2, 45.0, 26.0),
    "xpsnr": (100.0, 1.2, 45.0, 26.0),
    # banding, of which less is better: it is a limit of ladders (--max-banding) and steers nothing
    CAMBI: (17.0, 1.0, 5.0, 0.0),
}
"""Top, step, ceiling and floor of each by name, as in `Metric`."""
