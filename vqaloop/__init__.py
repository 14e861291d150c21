"""vqaloop: a learned quality model inside the encoding loop.

import vqaloop
ladder = vqaloop.build_ladder("input.y4m", codec="av1")
vqaloop.Scorer().score("x.mp4", reference="input.y4m").value
"""

import importlib
from typing import TYPE_CHECKING, Any

from vqaloop.core.version import __version__
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
    from vqaloop.audit.audit import Audit, audit_ladder
    from vqaloop.catalogue.build import build_catalogue
    from vqaloop.catalogue.entries import Catalogue, Entry
    from vqaloop.catalogue.titles import Title
    from vqaloop.cluster.ray_cluster import RayCluster
    from vqaloop.core.ffmpeg import ffmpeg_path
    from vqaloop.delivery.package import Delivery, package_ladder
    from vqaloop.execution.executor import Local
    from vqaloop.execution.job import Job
    from vqaloop.ladder.against import Against, ladder_against
    from vqaloop.ladder.build import build_ladder, build_ladders
    from vqaloop.ladder.compare import LadderComparison, compare_ladders
    from vqaloop.ladder.predict import LadderPlan, plan_ladder
    from vqaloop.ladder.profiles import read_profile
    from vqaloop.ladder.store import read_ladder
    from vqaloop.media.part import cut_part
    from vqaloop.models.registry import create_model
    from vqaloop.quality.scorer import Scorer
    from vqaloop.ratecontrol.controller import RateController
    from vqaloop.ratecontrol.target import Encoded, encode_to_target
    from vqaloop.records import Event, Ladder, Rung, Score
    from vqaloop.regress.compare import Comparison, compare_builds
    from vqaloop.tuning.result import Tuning
    from vqaloop.tuning.tune import tune_encoder

_HOMES = {
    "Against": "ladder.against",
    "Audit": "audit.audit",
    "Catalogue": "catalogue.entries",
    "Comparison": "regress.compare",
    "Encoded": "ratecontrol.target",
    "Entry": "catalogue.entries",
    "Delivery": "delivery.package",
    "Event": "records",
    "Job": "execution.job",
    "Ladder": "records",
    "LadderComparison": "ladder.compare",
    "LadderPlan": "ladder.predict",
    "Local": "execution.executor",
    "RateController": "ratecontrol.controller",
    "RayCluster": "cluster.ray_cluster",
    "Rung": "records",
    "Score": "records",
    "Scorer": "quality.scorer",
    "Title": "catalogue.titles",
    "Tuning": "tuning.result",
    "audit_ladder": "audit.audit",
    "build_catalogue": "catalogue.build",
    "build_ladder": "ladder.build",
    "build_ladders": "ladder.build",
    "compare_builds": "regress.compare",
    "compare_ladders": "ladder.compare",
    "create_model": "models.registry",
    "cut_part": "media.part",
    "encode_to_target": "ratecontrol.target",
    "ffmpeg_path": "core.ffmpeg",
    "ladder_against": "ladder.against",
    "package_ladder": "delivery.package",
    "plan_ladder": "ladder.predict",
    "read_ladder": "ladder.store",
    "read_profile": "ladder.profiles",
    "tune_encoder": "tuning.tune",
}
"""Names loaded on first use, so that `import vqaloop` stays quick."""

__all__ = [
    "Against",
    "Audit",
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
    "LadderPlan",
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
    "audit_ladder",
    "build_catalogue",
    "build_ladder",
    "build_ladders",
    "compare_builds",
    "compare_ladders",
    "create_model",
    "cut_part",
    "encode_to_target",
    "ffmpeg_path",
    "ladder_against",
    "package_ladder",
    "plan_ladder",
    "read_ladder",
    "read_profile",
    "tune_encoder",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"vqaloop.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vqaloop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
