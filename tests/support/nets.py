"""What the tests of networks share: a small shape, noise, and plain formulas in fp64."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.models import create_student, fastvqa
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.internvideo2 import Config
from vqaloop.models.student import start_from_cosines
from vqaloop.models.weights import save_student
from vqaloop.quality.crop_sampling import CropSampling
from vqaloop.quality.student_engine import StudentEngine
from vqaloop.quality.student_metric import StudentMetric

Values = npt.NDArray[np.float64]

MINI = Config(
    width=64, depth=2, heads=2, mlp_width=96, frames=2, size=28, pool_heads=4, pooled_width=48
)
MINI_SWIN = fastvqa.Config(
    width=12, depths=(2, 2, 1, 1), heads=(2, 3, 4, 4), window=(2, 3, 3), hidden=5
)


def shaken(module: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> None:
    """Give every parameter a value of its own, so that no weight of 1 or bias of 0 hides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def published_shapes(
    width: int, hidden: int, depth: int, tokens: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released InternVideo2 classifier with one output."""
    d, h = width, hidden
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, tokens, d),
        "patch_embed.proj.weight": (d, 3, 1, 14, 14),
        "patch_embed.proj.bias": (d,),
        "fc_norm.weight": (768,),
        "fc_norm.bias": (768,),
        "head.weight": (1, 768),
        "head.bias": (1,),
        "clip_projector.cross_attn.proj.weight": (768, d),
        "clip_projector.cross_attn.proj.bias": (768,),
    }
    for part in "qkv":
        shapes |= {
            f"clip_projector.norm1_{part}.weight": (d,),
            f"clip_projector.norm1_{part}.bias": (d,),
            f"clip_projector.cross_attn.{part}_bias": (d,),
            f"clip_projector.cross_attn.{part}.weight": (d, d),
        }
    for n in range(depth):
        block = {
            "norm1.weight": (d,),
            "attn.qkv.weight": (3 * d, d),
            "attn.proj.weight": (d, d),
            "attn.proj.bias": (d,),
            "attn.q_norm.weight": (d,),
            "attn.k_norm.weight": (d,),
            "ls1.gamma": (d,),
            "norm2.weight": (d,),
            "mlp.fc1.weight": (h, d),
            "mlp.fc1.bias": (h,),
            "mlp.fc2.weight": (d, h),
            "mlp.fc2.bias": (d,),
            "ls2.gamma": (d,),
        }
        assert len(block) == 13
        shapes |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
    assert len(shapes) == 22 + 13 * depth
    return shapes


def rms_norm(x: Values, weight: Values) -> Values:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight)


def layer_norm(x: Values, weight: Values, bias: Values) -> Values:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(variance + 1e-5) * weight + bias)


def softmax(x: Values) -> Values:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def values(module: torch.nn.Module) -> dict[str, Values]:
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def attention(q: Values, k: Values, v: Values, heads: int) -> Values:
    """(N, D) queries and (M, D) keys and values, head by head."""
    size = q.shape[-1] // heads
    parts = []
    for h in range(heads):
        at = slice(h * size, (h + 1) * size)
        parts.append(softmax(q[:, at] @ k[:, at].T / math.sqrt(size)) @ v[:, at])
    return np.concatenate(parts, -1)


def random_student(
    folder: Path,
    name: str = "internvqa-tiny",
    label: str = "VMAF of nothing: random",
    config: HeadConfig | None = None,
    **about: str,
) -> Path:
    """Weights of a student that has learnt nothing, but answers differently to different clips.

    `config` is of its heads, `about` further metadata of the header, such as a view.
    """
    torch.manual_seed(0)
    student = create_student(name, config=config)
    assert student.embedding is not None and student.anchored is not None
    assert student.alone is not None
    start_from_cosines(student.embedding)
    with torch.no_grad():
        # as it starts, it answers about 0.5 to all
        for head in (student.anchored, student.alone):
            for parameter in head.fuse.parameters():
                parameter.mul_(3)
    path = folder / "internvqa-mine.safetensors"
    save_student(student, path, name, label, about)
    return path


def student_metric(weights: Path, **sampling: Any) -> StudentMetric:
    engine = StudentEngine(weights, "cpu")
    return StudentMetric("internvqa-mine", engine, ffmpeg_path(), CropSampling(**sampling))
