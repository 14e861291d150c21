"""Training by a recipe: DeepSpeed's engine around one `Lesson`, with checkpoints and a log.

Started plainly it trains in one process; started by DeepSpeed's or PyTorch's launcher, in as many
as that gives, one a GPU. Checkpoints are read without pickle's freedoms (weights_only).
"""

import contextlib
import json
import logging
import math
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqaloop.checkpoints import load_released
from vqaloop.datasets import held_out
from vqaloop.device import autocast
from vqaloop.errors import InputError
from vqaloop.evaluate import predict, summary
from vqaloop.files import renamed_to
from vqaloop.lesson import Lesson, draw, freeze
from vqaloop.models import create_student
from vqaloop.models.internvideo2 import InternVideo2
from vqaloop.models.student import Student, start_from_cosines
from vqaloop.prune import prune
from vqaloop.recipe import Recipe, Teacher
from vqaloop.runlog import RunLog
from vqaloop.shards import Shard, load_corpus
from vqaloop.weights import load_student, save_student

CHECKPOINT_EVERY = 50
"""Steps between two checkpoints."""
EVALUATE_EVERY = 500
"""Steps between two looks at the titles held out."""


def train(
    recipe: Recipe,
    *,
    device: torch.device,
    resume: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train to the recipe's last step; returns the weights file (running mean of weights).

    A checkpoint is kept every CHECKPOINT_EVERY steps and picked up again unless `resume` is false;
    the corpus is read anew then, so it may have grown. `log.csv` and `log.png` in the recipe's
    folder tell how it went. Raises InputError for a corpus, weights or a checkpoint that do not
    fit the recipe.
    """
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    shards, unseen = split(recipe)
    if len(shards) < recipe.scenes:
        raise InputError(f"a step takes {recipe.scenes} scenes and the corpus has {len(shards)}")
    shown = teachers_view(recipe, shards)
    torch.manual_seed(recipe.seed)
    student, teacher = first_student(recipe), first_teacher(recipe.teacher)
    if recipe.fixed_embedding and isinstance(student.backbone, InternVideo2):
        student.backbone.patch_embed.requires_grad_(False)
    with quiet_engine(device) as deepspeed:
        engine = _engine(deepspeed, Lesson(student, teacher, recipe), recipe, device)
        first = engine.global_rank == 0
        say = report if first else lambda line: None
        mean = _copy(student, recipe, device)
        step, log = 0, RunLog(out / "log.csv")
        if resume and (out / "latest").exists():
            step = _load(engine, mean, out)
            say(f"resumed at step {step}")
        log.open(step)
        say(f"{len(shards)} scenes, {len(unseen)} held out; {recipe.steps} steps")
        half = engine.bfloat16_enabled()
        # the engine's own fp32 values: bf16 ones would round away what a step changes
        full = deepspeed.utils.safe_get_full_fp32_param if half else lambda value: value
        since = time.monotonic()
        while step < recipe.steps:
            rate = recipe.learning_rate * _schedule(step, recipe)
            for group in engine.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            parts: dict[str, float] = {}
            for part in range(recipe.accumulate):
                rng = np.random.default_rng([recipe.seed, step, part, engine.global_rank])
                batch = draw(shards, recipe, rng, shown).to(device)
                with contextlib.nullcontext() if half else autocast(device):
                    found: dict[str, Tensor] = engine(batch, int(rng.integers(1 << 30)))
                weights = vars(recipe.loss)
                total = torch.stack([weights[k] * v for k, v in found.items()]).sum()
                if not torch.isfinite(total):
                    raise InputError(
                        f"the loss is no longer a number at step {step}; lower learning_rate"
                    )
                engine.backward(total)
                engine.step()
                for key, value in found.items():
                    parts[key] = parts.get(key, 0.0) + value.item() / recipe.accumulate
            step += 1
            _follow(mean, student, min(recipe.average, step / (step + 10)), full)
            pace, since = time.monotonic() - since, time.monotonic()
            log.add({"step": step, "lr": rate, "seconds": pace, **parts})
            if step % 20 == 0:
                say(f"step {step}/{recipe.steps} {log.summary(20)}")
            if step % EVALUATE_EVERY == 0 or step == recipe.steps:
                figures = summary(predict(mean, unseen, device, crops=8)) if first else {}
                log.add({"step": step, **figures})
                say(f"step {step} held out: {json.dumps(figures)}")
            if step % CHECKPOINT_EVERY == 0 or step == recipe.steps:
                if first:
                    log.write()
                _save(engine, mean, out, step)
            since = time.monotonic()
        if first:
            log.plot(out / "log.png")
    path = out / f"{recipe.model}.safetensors"
    if first:
        about = {"recipe": json.dumps(asdict(recipe)), "view": json.dumps(shards[0].view)}
        save_student(mean, path, recipe.model, shards[0].label, about)
    return path


def split(recipe: Recipe) -> tuple[list[Shard], list[Shard]]:
    """Shards to train on and shards held out. Raises InputError when they share a title."""
    shards = load_corpus(recipe.corpus)
    if any((s.label, s.view) != (shards[0].label, shards[0].view) for s in shards):
        raise InputError("the corpus mixes labels or views; train on one of each")
    if recipe.held_out:
        unseen = load_corpus(recipe.held_out)
        both = {s.content for s in shards} & {s.content for s in unseen}
        if both:
            raise InputError(f"titles on both sides of the split: {', '.join(sorted(both))}")
        return shards, unseen
    names = held_out(shards, recipe.split)
    return (
        [shard for shard in shards if shard.content not in names],
        [shard for shard in shards if shard.content in names],
    )


def teachers_view(recipe: Recipe, shards: Sequence[Shard]) -> list[Shard] | None:
    """The shards as the teacher sees them, in the same order; None when it sees the same."""
    if recipe.teacher is None or not recipe.teacher.corpus:
        return None
    known = {shard.name: shard for shard in load_corpus(recipe.teacher.corpus)}
    for shard in shards:
        other = known.get(shard.name)
        if other is None or other.distorted.shape[:2] != shard.distorted.shape[:2]:
            raise InputError(
                f"the teacher's corpus has no {shard.name} of as many encodes and clips; "
                "prepare both views from the same files, with the same number of clips"
            )
    return [known[shard.name] for shard in shards]


def first_student(recipe: Recipe) -> Student:
    """The student before its first step: from nothing, from a checkpoint, or pruned."""
    loss = recipe.loss
    heads = any((loss.crop, loss.pooled, loss.ordered, loss.features, loss.levels))
    student = create_student(recipe.model, heads)
    if recipe.start:
        try:
            larger, about = load_student(Path(recipe.start))
        except InputError:
            load_released(student.backbone, Path(recipe.start))
            return student
        if heads and larger.anchored is None:
            raise InputError(f"{recipe.start} has no anchored head, which the losses need")
        return larger if about["model"] == recipe.model else prune(larger, student)
    if heads and isinstance(student.backbone, InternVideo2):
        start_from_cosines(student.backbone)
    return student


def first_teacher(teacher: Teacher | None) -> Student | None:
    """The teacher, frozen as asked."""
    if teacher is None:
        return None
    model = create_student(teacher.model, heads=False)
    if teacher.weights:
        try:
            model, _ = load_student(Path(teacher.weights))
        except InputError:
            load_released(model.backbone, Path(teacher.weights))
    freeze(model, teacher.freeze)
    return model


def parameter_groups(lesson: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters by weight decay (matrices only) and by depth, when deep blocks learn faster.

    As InternVideo2 fine-tunes: a block's rate is `layer_decay` times that of the next one, the
    embeddings below the first, all else at the full rate.
    """
    depth = 1 + max(
        (
            int(n.split("blocks.")[1].split(".")[0])
            for n, _ in lesson.named_parameters()
            if "blocks." in n and n.startswith("student.")
        ),
        default=0,
    )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in lesson.named_parameters():
        if not parameter.requires_grad:
            continue
        level = depth + 1
        if "blocks." in name:
            level = int(name.split("blocks.")[1].split(".")[0]) + 1
        elif any(key in name for key in ("patch_embed", "pos_embed", "cls_token")):
            level = 0
        plain = parameter.ndim <= 1 or "pos_embed" in name or "cls_token" in name
        decay = 0.0 if plain else recipe.weight_decay
        scale = recipe.layer_decay ** max(0, depth + 1 - level)
        groups.setdefault((decay, scale), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "scale": scale}
        for (decay, scale), params in groups.items()
    ]


def engine_config(recipe: Recipe) -> dict[str, Any]:
    """DeepSpeed's configuration: the recipe's JSON, with what the recipe itself decides."""
    config: dict[str, Any] = {"zero_optimization": {"stage": 1}}
    if recipe.engine:
        try:
            config = json.loads(Path(recipe.engine).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"DeepSpeed's file {recipe.engine} cannot be read: {error}"
            ) from error
    config |= {
        "train_micro_batch_size_per_gpu": recipe.scenes * recipe.crops * recipe.encodes,
        "gradient_accumulation_steps": recipe.accumulate,
        "gradient_clipping": recipe.clip_norm,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    return config


@contextlib.contextmanager
def quiet_engine(device: torch.device) -> Iterator[Any]:
    """DeepSpeed, its chatter sent to stderr, for one process or for those of a launcher."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    with contextlib.redirect_stdout(sys.stderr):
        try:
            import deepspeed
        except ImportError as error:
            raise InputError("training needs DeepSpeed: pip install 'vqaloop[train]'") from error
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        alone: dict[str, str] = {}
        if "WORLD_SIZE" not in os.environ:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
            alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= alone
        if os.environ["WORLD_SIZE"] == "1":
            # one process has nobody to talk to; building the means to would take a compiler
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        try:
            yield deepspeed
        finally:
            for key in alone:  # a program started later is no part of this run
                os.environ.pop(key, None)


def _engine(deepspeed: Any, lesson: Lesson, recipe: Recipe, device: torch.device) -> Any:
    lesson.to(device)
    optimizer = torch.optim.AdamW(
        parameter_groups(lesson, recipe), lr=recipe.learning_rate, betas=(0.9, 0.99)
    )
    engine, *_ = deepspeed.initialize(
        model=lesson, optimizer=optimizer, config=engine_config(recipe)
    )
    return engine


def _copy(student: Student, recipe: Recipe, device: torch.device) -> Student:
    """An fp32 twin, which becomes the running mean."""
    mean = create_student(recipe.model, student.anchored is not None).to(device)
    mean.load_state_dict({k: v.to(mean.state_dict()[k]) for k, v in student.state_dict().items()})
    return mean.eval()


@torch.no_grad()
def _follow(
    mean: Student, student: Student, decay: float, full: Callable[[Tensor], Tensor | None]
) -> None:
    """Move the mean towards the student; `full` gives a parameter in fp32, None if it is fixed."""
    for kept, new in zip(mean.parameters(), student.parameters(), strict=True):
        value = full(new)
        kept.lerp_((new if value is None else value).to(kept.dtype), 1 - decay)


def _save(engine: Any, mean: Student, out: Path, step: int) -> None:
    """Write checkpoint `step`, then name it in `latest`, then remove those before."""
    tag = f"checkpoint-{step}"
    engine.save_checkpoint(
        str(out), tag, client_state={"step": step, "mean": mean.state_dict()}, save_latest=False
    )
    if engine.global_rank:
        return
    with renamed_to(out / "latest") as part:
        part.write_text(tag, encoding="ascii")
    for script in out.glob("zero_to_*.py"):
        script.unlink()  # DeepSpeed's own, for checkpoints of other shapes
    for old in out.glob("checkpoint-*"):
        if old.name != tag:
            shutil.rmtree(old)


def _load(engine: Any, mean: Student, out: Path) -> int:
    """Take up the latest checkpoint; its step. Raises InputError when it does not fit."""
    tag = (out / "latest").read_text(encoding="ascii", errors="replace").strip()
    engine.checkpoint_engine.load = _read
    try:
        if not re.fullmatch("checkpoint-[0-9]+", tag) or not (out / tag).is_dir():
            raise InputError(f"there is no {tag!r}")
        _, state = engine.load_checkpoint(str(out), tag)
        mean.load_state_dict(state["mean"])
        return int(state["step"])
    except (
        OSError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,  # what DeepSpeed says of a file that is not there
        EOFError,
        UnpicklingError,
        InputError,
    ) as error:
        raise InputError(
            f"{out / tag} is no checkpoint of this recipe; remove {out / 'latest'} "
            f"or give --restart to start anew: {error}"
        ) from error


def _read(path: str, map_location: Any = None) -> Any:
    """In place of DeepSpeed's own, which would run what a pickle says."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location=map_location, weights_only=True)


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1, done))) / 2
