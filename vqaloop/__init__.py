"""vqaloop: a learned quality model inside the encoding loop.

import vqaloop
ladder = vqaloop.build_ladder("input.y4m", codec="av1")
vqaloop.Scorer().score("x.mp4", reference="input.y4m").value
"""

import importlib
from typing import TYPE_CHECKING, Any

from vqaloop.errors import (
    Cancelled,
    DecodeFailed,
    EncodeFailed,
    EncoderMissing,
    InputError,
    TargetUnreachable,
    ToolError,
    VqaloopError,
)

if TYPE_CHECKING:
    from vqaloop.catalogue import Catalogue, Entry, build_catalogue
    from vqaloop.comparison import Comparison, compare_builds
    from vqaloop.deliver import Delivery, package_ladder
    from vqaloop.executor import Local
    from vqaloop.job import Job
    from vqaloop.ladder import build_ladder, build_ladders
    from vqaloop.ladderpair import LadderComparison, compare_ladders
    from vqaloop.models import create_model
    from vqaloop.process import ffmpeg_path
    from vqaloop.ratecontrol import RateController
    from vqaloop.rayexecutor import RayCluster
    from vqaloop.records import Event, Ladder, Rung, Score
    from vqaloop.report import read_ladder
    from vqaloop.score import Scorer
    from vqaloop.target import Encoded, encode_to_target
    from vqaloop.titlelist import Title
    from vqaloop.tune import tune_encoder
    from vqaloop.tuning import Tuning

__version__ = "0.1.0"

_HOMES = {
    "Catalogue": "catalogue",
    "Comparison": "comparison",
    "Encoded": "target",
    "Entry": "catalogue",
    "Delivery": "deliver",
    "Event": "records",
    "Job": "job",
    "Ladder": "records",
    "LadderComparison": "ladderpair",
    "Local": "executor",
    "RateController": "ratecontrol",
    "RayCluster": "rayexecutor",
    "Rung": "records",
    "Score": "records",
    "Scorer": "score",
    "Title": "titlelist",
    "Tuning": "tuning",
    "build_catalogue": "catalogue",
    "build_ladder": "ladder",
    "build_ladders": "ladder",
    "compare_builds": "comparison",
    "compare_ladders": "ladderpair",
    "create_model": "models",
    "encode_to_target": "target",
    "ffmpeg_path": "process",
    "package_ladder": "deliver",
    "read_ladder": "report",
    "tune_encoder": "tune",
}
"""Names loaded on first use, so that `import vqaloop` stays quick."""

__all__ = [
    "Cancelled",
    "Catalogue",
    "Comparison",
    "DecodeFailed",
    "Delivery",
    "EncodeFailed",
    "Encoded",
    "EncoderMissing",
    "Entry",
    "Event",
    "InputError",
    "Job",
    "Ladder",
    "LadderComparison",
    "Local",
    "RateController",
    "RayCluster",
    "Rung",
    "Score",
    "Scorer",
    "TargetUnreachable",
    "Title",
    "ToolError",
    "Tuning",
    "VqaloopError",
    "__version__",
    "build_catalogue",
    "build_ladder",
    "build_ladders",
    "compare_builds",
    "compare_ladders",
    "create_model",
    "encode_to_target",
    "ffmpeg_path",
    "package_ladder",
    "read_ladder",
    "tune_encoder",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"vqaloop.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vqaloop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
