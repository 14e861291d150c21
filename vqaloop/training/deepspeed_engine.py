"""DeepSpeed's engine: configuration, start and checkpoints.

Checkpoints are read with weights_only, so that a pickle in them runs no code.
"""

import contextlib
import importlib.util
import json
import logging
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from vqaloop.core.files import renamed_to
from vqaloop.errors import InputError
from vqaloop.models.internvideo2 import PatchEmbed
from vqaloop.models.student import Student
from vqaloop.training.recipe import Recipe

MISSING = "training needs DeepSpeed: pip install 'vqaloop[train]'"


def check_installed() -> None:
    """Raises InputError where there is no DeepSpeed, without the seconds its import takes."""
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(MISSING)


def engine_config(recipe: Recipe, clips: int) -> dict[str, Any]:
    """DeepSpeed's configuration: the recipe's JSON, with batch size, clipping and the like set.

    `clips` are those of a batch.

    Raises InputError for a file that is no JSON object, and for what this training does not
    support: ZeRO-3, where no process has a whole parameter for the moving average, and fp16.
    """
    config: Any = {"zero_optimization": {"stage": 1}}
    if recipe.engine:
        try:
            config = json.loads(Path(recipe.engine).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"DeepSpeed's file {recipe.engine} cannot be read: {error}"
            ) from error
        if not isinstance(config, dict):
            raise InputError(f"DeepSpeed's file {recipe.engine} must hold one JSON object")
        zero, fp16 = config.get("zero_optimization"), config.get("fp16")
        if isinstance(zero, dict) and str(zero.get("stage", 0)).strip() not in ("0", "1", "2"):
            raise InputError(f"{recipe.engine}: ZeRO's stage is 0, 1 or 2, not {zero['stage']!r}")
        if isinstance(fp16, dict) and fp16.get("enabled"):
            raise InputError(f"{recipe.engine}: training runs in fp32 or bf16, not in fp16")
    config |= {
        "train_micro_batch_size_per_gpu": clips,
        "gradient_accumulation_steps": recipe.accumulate,
        "gradient_clipping": recipe.clip_norm,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    return dict(config)


@contextlib.contextmanager
def quiet_engine(device: torch.device) -> Iterator[Any]:
    """DeepSpeed, its messages sent to stderr, for one process or for those of a launcher."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    with contextlib.redirect_stdout(sys.stderr):
        try:
            import deepspeed
        except ImportError as error:
            raise InputError(MISSING) from error
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        alone: dict[str, str] = {}
        if "WORLD_SIZE" not in os.environ:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
            alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= alone
        if os.environ["WORLD_SIZE"] == "1" and device.type != "cuda":
            # one process needs no shared-memory communication, whose build takes a compiler; set
            # whole, since to look the table up would probe every operation (and need nvcc)
            known = vars(deepspeed.ops).get("__compatible_ops__", {})
            deepspeed.ops.__compatible_ops__ = known | {"deepspeed_shm_comm": False}
        try:
            yield deepspeed
        finally:
            for key in alone:  # a program started later is no part of this run
                os.environ.pop(key, None)


def start(
    deepspeed: Any,
    model: nn.Module,
    groups: list[dict[str, Any]],
    recipe: Recipe,
    clips: int,
    device: torch.device,
) -> Any:
    """The engine around `model`, AdamW on parameter `groups`; a batch is of `clips`.

    Raises InputError when DeepSpeed does not take the recipe's file.
    """
    config = engine_config(recipe, clips)
    if device.type == "cuda":
        # each process of a launcher its own GPU, before anything is put on one
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    model.to(device)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)
    # energies are of differences of its coefficients, which bf16 would round; the optimiser keeps
    # the fp32 of what trains alone
    fixed = [
        (parameter, parameter.detach().clone())
        for module in model.modules()
        if isinstance(module, PatchEmbed)
        for parameter in module.parameters()
        if not parameter.requires_grad
    ]
    refusals = (AssertionError, ValueError, TypeError, LookupError, AttributeError)
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    except (*refusals, deepspeed.DeepSpeedConfigError) as error:
        if not recipe.engine:
            raise
        raise InputError(f"DeepSpeed does not take its file {recipe.engine}: {error}") from error
    for parameter, value in fixed:
        parameter.data = value
    return engine


def save(engine: Any, mean: Student, out: Path, step: int, titles: frozenset[str]) -> None:
    """Write checkpoint `step`, then name it in `latest`, then remove those before.

    In this order, a run that is killed at any moment leaves `latest` at a whole checkpoint.
    `titles` are all that were trained on so far.
    """
    tag = f"checkpoint-{step}"
    state = {"step": step, "mean": mean.state_dict(), "titles": sorted(titles)}
    # a frozen teacher of 1 G parameters would be most of the file, and comes from its own
    engine.save_checkpoint(
        str(out), tag, client_state=state, save_latest=False, exclude_frozen_parameters=True
    )
    if engine.global_rank:
        return
    with renamed_to(out / "latest") as part:
        part.write_text(tag, encoding="ascii")
    for script in out.glob("zero_to_*.py"):
        script.unlink()  # DeepSpeed's own, for checkpoints of other shapes
    for old in out.glob("checkpoint-*"):
        if old.name != tag and re.fullmatch("checkpoint-[0-9]+", old.name) and old.is_dir():
            shutil.rmtree(old)


def load(engine: Any, mean: Student, out: Path) -> tuple[int, frozenset[str]]:
    """Load the latest checkpoint into engine and moving average.

    Returns its step and the titles trained on until then. Raises InputError when it does not fit.
    """
    from deepspeed.runtime.zero.utils import ZeRORuntimeException

    tag = (out / "latest").read_text(encoding="ascii", errors="replace").strip()
    engine.checkpoint_engine.load = read
    try:
        if not re.fullmatch("checkpoint-[0-9]+", tag) or not (out / tag).is_dir():
            raise InputError(f"there is no {tag!r}")
        _, state = engine.load_checkpoint(str(out), tag, custom_load_fn=_fill)
        mean.load_state_dict(state["mean"])
        # checkpoints of an earlier release lack their titles
        return int(state["step"]), frozenset(map(str, state.get("titles", ())))
    except (
        OSError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,  # DeepSpeed's for a missing file
        EOFError,
        UnpicklingError,
        ZeRORuntimeException,  # of another number of processes
    ) as error:
        raise InputError(
            f"{out / tag} is no checkpoint of this recipe; remove {out / 'latest'} "
            f"or give --restart to start anew: {error}"
        ) from error


def _fill(src: dict[str, Any], dst: nn.Module) -> None:
    """Load a checkpoint's module, which lacks what is frozen. Raises RuntimeError."""
    missing, unknown = dst.load_state_dict(src, strict=False)
    frozen = {name for name, value in dst.named_parameters() if not value.requires_grad}
    lacking = sorted({*missing} & {name for name, _ in dst.named_parameters()} - frozen)
    if lacking or unknown:
        raise RuntimeError(f"missing: {lacking[:3]}, unknown: {unknown[:3]}")


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process; every process takes part, and gets the same."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return flag
    found = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


def read(path: str, map_location: Any = None) -> Any:
    """Replaces DeepSpeed's loader of checkpoint files, which would run code in a pickle."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def member(owner: Any, name: str) -> Any:
        """What some Pythons, such as 3.11.2, pickle as getattr, for this one class."""
        if owner is not ZeroStageEnum or name not in ZeroStageEnum.__members__:
            raise UnpicklingError(f"getattr of {name} is not allowed")
        return ZeroStageEnum[name]

    named = [(member, f"{module}.getattr") for module in ("__builtin__", "builtins")]
    known = [LossScaler, ZeroStageEnum, fragment_address, *named]
    with torch.serialization.safe_globals(known):
        return torch.load(path, map_location=map_location, weights_only=True)
