"""Sections of `bench.gpu` about training: what fails first on a new machine, and a larger teacher.

They need msgspec beside what scores need, and figures on held-out titles pandas and SciPy.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.gpu_sections import (
    SHIPPED,
    TOLERANCE,
    Findings,
    Run,
    Untestable,
    network,
    scores,
    seconds,
    titles,
)

if TYPE_CHECKING:
    from vqaloop.training.recipe import Recipe
    from vqaloop.training.shards import Shard
    from vqaloop.training.step import TrainingModel

LEFT_OVER = ("av", "ffmpeg", "imageio_ffmpeg", "optuna", "pandas", "scipy")
"""What training has to do without."""
LARGEST_GB = 64
"""Memory of a card below which a model of 1 G parameters is not tried."""
NCCL_S = 600
"""Seconds that the other processes wait for the first, which evaluates."""


def risks(run: Run) -> Findings:
    """What a first run on a GPU is most likely to fail on, one by one."""
    found = Findings()
    checks: dict[str, Callable[[Run], dict[str, Any]]] = {
        "training without decoders": _training_without_decoders,
        "deepspeed without nvcc": _deepspeed_without_nvcc,
        "released checkpoints": _released_checkpoints,
        "time and disk of checkpoints": _checkpoint_time,
        "1B teacher as_released": lambda run: _memory_of_step(run, "internvqa-1b"),
        "1B student": lambda run: _memory_of_step(run, None),
        "TF32 set by the host program": _host_settings,
        "time of an evaluation": _evaluation_time,
        "mini's steps": _launch_bound,
    }
    for name, check in checks.items():
        begun = time.monotonic()
        try:
            row = {"status": "ok", **check(run)}
        except Untestable as error:
            row = {"status": "not testable here", "why": str(error)}
        except ModuleNotFoundError as error:
            row = {"status": "not testable here", "why": f"the package {error.name} is missing"}
        except Exception as error:
            row = {"status": "failed", "why": f"{type(error).__name__}: {str(error)[:500]}"}
            found.faults.append(f"{name}: {row['why']}")
        found.figures[name] = {**row, "seconds": time.monotonic() - begun}
        run.report(f"  {name}: {row['status']}" + (f" ({row['why']})" if "why" in row else ""))
        if run.on_gpu:
            torch.cuda.empty_cache()
    return found


def _python(script: str, timeout_s: float, **environment: str) -> str:
    """What a script prints in a process of its own. Raises RuntimeError with its last words."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-400:])
    return done.stdout


def _training_without_decoders(run: Run) -> dict[str, Any]:
    if run.small:
        raise Untestable("left out of the small run: it starts another process")
    if importlib.util.find_spec("msgspec") is None:
        raise Untestable("the package msgspec is missing")
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in LEFT_OVER)
    _python(f"import sys\n{blocked}import vqaloop.training.train", 120)
    return {"without": list(LEFT_OVER)}


def _deepspeed_without_nvcc(run: Run) -> dict[str, Any]:
    if importlib.util.find_spec("deepspeed") is None:
        raise Untestable("DeepSpeed is not installed")
    if run.small:
        raise Untestable("left out of the small run: its import takes ten seconds")
    accelerator = "cuda" if run.on_gpu else "cpu"
    version = _python(
        "import deepspeed; print(deepspeed.__version__)", 180, DS_ACCELERATOR=accelerator
    )
    return {"version": version.split()[-1], "nvcc": bool(os.environ.get("CUDA_HOME"))}


def _released_checkpoints(run: Run) -> dict[str, Any]:
    from vqaloop.models import MODELS, create_model
    from vqaloop.models.checkpoints import load_released

    files = [
        path
        for suffix in ("pt", "pth", "bin")
        for path in sorted(run.data.glob(f"*.{suffix}") if run.data else ())
    ]
    if not files:
        raise Untestable("no released checkpoint (*.pt, *.pth, *.bin) in --data")
    loaded: dict[str, str] = {}
    for path in files:
        reasons = []
        for name in MODELS:
            with torch.device(run.device):
                model = create_model(name)
            try:
                load_released(model, path)
                loaded[path.name] = name
                break
            except Exception as error:
                reasons.append(f"{name}: {error}")
        else:
            raise RuntimeError(f"{path.name} fits no model: {'; '.join(reasons)[:400]}")
    return {"loaded": loaded}


def _checkpoint_time(run: Run) -> dict[str, Any]:
    size = 1 << (20 if run.small else 30)
    data = torch.zeros(size, dtype=torch.uint8)
    with tempfile.TemporaryDirectory(dir=run.out.absolute().parent) as folder:
        begun = time.perf_counter()
        path = Path(folder, "checkpoint.pt")
        torch.save(data, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        took = time.perf_counter() - begun
    # fp32 weights, moving average and two moments of AdamW, with the teacher left out
    small, large = 23.0e6 * 16, 1.02e9 * 16
    return {
        "mb_per_s": size / took / 1e6,
        "small_s": small / size * took,
        "1b_s": large / size * took,
    }


def _memory_of_step(run: Run, teacher: str | None) -> dict[str, Any]:
    """One step of Small with that teacher, or of 1B alone, as the recipes for two GPUs have it.

    Both with activations kept and, as in those recipes, computed again; the latter has to fit.
    """
    if not run.on_gpu:
        raise Untestable("takes a GPU")
    _, total = torch.cuda.mem_get_info()
    if total < LARGEST_GB << 30:
        raise Untestable(f"the card has {total / 1e9:.0f} GB, and this takes about {LARGEST_GB}")
    rows: dict[str, Any] = {}
    for recompute in (True, False):
        name = "recomputed" if recompute else "kept"
        try:
            rows[name] = _step_memory(run, teacher, recompute)
        except torch.OutOfMemoryError:
            if recompute:
                raise
            rows[name] = "out of memory"
        torch.cuda.empty_cache()
    return rows


def _step_memory(run: Run, teacher: str | None, recompute: bool) -> dict[str, Any]:
    from vqaloop.models import create_student
    from vqaloop.training.batch import Batch
    from vqaloop.training.recipe import Losses, Teacher
    from vqaloop.training.step import TrainingModel, freeze

    loss = Losses(alone=1.0, teacher=1.0, feature=1.0) if teacher else Losses(alone=1.0)
    student_name = "internvqa-small" if teacher else "internvqa-1b"
    recipe = replace(
        _recipe(student_name, loss),
        teacher=Teacher(teacher, freeze="as_released") if teacher else None,
        scenes=4,
        crops=1,
        encodes=2,
    )
    with run.device:
        student = create_student(student_name, heads=False)
        larger = create_student(teacher, heads=False) if teacher else None
        if larger is not None:
            freeze(larger, "as_released")
        (larger or student).backbone.recompute = recompute
        model = TrainingModel(student, larger, recipe)
        clips = torch.randint(16, 236, (8, 8, 336, 224), dtype=torch.uint8)
        batch = Batch(clips, torch.rand(4, 2, 1), torch.rand(4, 2, 1))
    torch.cuda.reset_peak_memory_stats()
    step = stepper(model, recipe)
    losses = step(batch, 1e-6)
    begun = time.perf_counter()
    step(batch, 1e-6)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return {"peak_gb": peak / 1e9, "step_s": time.perf_counter() - begun, "losses": losses}


def _host_settings(run: Run) -> dict[str, Any]:
    """Scores in a host program that allows TF32 or bf16, by either kind of setting."""
    reference, encodes = next(titles(replace(run, small=True)))
    encode = next(iter(encodes.values()))
    expected = scores(network(SHIPPED[0], run.device), reference, encode)
    backends: Any = torch.backends
    hosts: dict[str, Callable[[], None]] = {
        "high": lambda: torch.set_float32_matmul_precision("high"),
        "flags": lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    }
    convolution: Any = getattr(backends.cudnn, "conv", None)
    before = getattr(convolution, "fp32_precision", None)
    if before is not None:
        hosts["settings"] = lambda: setattr(backends, "fp32_precision", "tf32")
    gaps = {}
    for name, host in hosts.items():
        host()
        try:
            found = scores(network(SHIPPED[0], run.device), reference, encode)
        finally:
            torch.set_float32_matmul_precision("highest")
            if before is not None:
                backends.fp32_precision = "none"
                convolution.fp32_precision = before
        gaps[name] = max(abs(found[head] - expected[head]) for head in expected)
    if max(gaps.values()) > TOLERANCE:
        raise RuntimeError(f"scores follow the host's setting: {gaps}")
    return {"largest_difference": gaps}


def _evaluation_time(run: Run) -> dict[str, Any]:
    """Seconds for which the other processes would wait at 960 clips held out, in full fp32."""
    from vqaloop.models import create_student
    from vqaloop.models.device import exact

    took: dict[str, float] = {}
    names = [SHIPPED[0]] if run.small else ["internvqa-small", "fastvqa-tiny", "fastvqa-base"]
    for name in names:
        student = create_student(name, heads=name in SHIPPED).to(run.device).eval()
        backbone: Any = student.backbone
        side = 224 if name.startswith("fastvqa") else backbone.config.size
        frames = 32 if name.startswith("fastvqa") else backbone.config.frames
        count = 1 if run.small else 4
        clips = torch.randn(count, 3, frames, side, side, device=run.device)
        with torch.inference_mode(), exact():
            took[name] = seconds(lambda: student.look(clips), run) * 960 / count  # noqa: B023
    if run.on_gpu and max(took.values()) > NCCL_S:
        raise RuntimeError(f"NCCL gives up after {NCCL_S} s: {took}")
    return {"seconds_of_960_clips": took}


def _launch_bound(run: Run) -> dict[str, Any]:
    """Clips/s of mini's training at the scenes a CPU takes, and at ten times as many."""
    from vqaloop.models import create_student
    from vqaloop.training.batch import Batch
    from vqaloop.training.recipe import Losses
    from vqaloop.training.step import TrainingModel

    loss = Losses(region=1.0, pooled=1.0, ordered=1.0, alone=1.0)
    rates = {}
    for scenes in (1, 2) if run.small else (3, 30):
        crops, encodes = (1, 2) if run.small else (4, 4)
        recipe = replace(
            _recipe(SHIPPED[0], loss), scenes=scenes, crops=crops, encodes=encodes, augment="none"
        )
        groups = scenes * crops
        with run.device:
            model = TrainingModel(create_student(SHIPPED[0]), None, recipe)
            clips = torch.randint(
                16, 236, (groups * (encodes + 1), 2, 168, 112), dtype=torch.uint8
            )
            batch = Batch(
                clips[groups:], torch.rand(groups, encodes, 1), torch.rand(scenes, encodes, 1),
                clips[:groups],
            )  # fmt: skip
        step = stepper(model, recipe)
        took = seconds(lambda: step(batch, 1e-6), run)  # noqa: B023
        rates[f"{scenes} scenes"] = {"step_s": took, "clips_per_s": len(batch.distorted) / took}
    return {"rates": rates}


# --- a larger teacher ----------------------------------------------------------------------------


def _recipe(model: str, loss: Any) -> "Recipe":
    from vqaloop.training.recipe import Recipe

    return Recipe(model, ("",), "", 1, 3e-4, loss, split="fold 1/5")


def stepper(model: "TrainingModel", recipe: "Recipe") -> Callable[[Any, float], dict[str, float]]:
    """A step of AdamW on one batch at a learning rate; it gives the losses, unweighted."""
    from vqaloop.training.train import parameter_groups

    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), lr=0.0, betas=recipe.betas)
    rng = np.random.default_rng(recipe.seed)
    weights = vars(recipe.loss)

    def step(batch: Any, rate: float) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        losses = model(batch, int(rng.integers(1 << 30)))
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        return {name: value.item() for name, value in losses.items()}

    return step


def teacher(run: Run) -> Findings:
    """Train a larger student on the shards of `--data` in the time that is left.

    Labels come with the shards (`vqaloop corpus`), since they take libvmaf. The last fifth of the
    titles is held out. Weights and the log are written beside the JSON.
    """
    from vqaloop.models import create_student
    from vqaloop.models.student import start_from_cosines
    from vqaloop.models.weights import save_student
    from vqaloop.training.batch import draw
    from vqaloop.training.recipe import Losses, head_config
    from vqaloop.training.shards import load_corpus
    from vqaloop.training.step import TrainingModel
    from vqaloop.training.targets import Label, with_targets

    if run.data is None or not any(run.data.glob("*.safetensors")):
        raise Untestable("no labelled shards in --data; labels take libvmaf, so they are carried")
    shards = load_corpus([run.data])
    train, unseen = _split(shards)
    if shards[0].labels:
        train = [with_targets(shard, Label("v1"), ()) for shard in train]
    name = SHIPPED[0] if run.small else "internvqa-small"
    anchored = all(shard.reference is not None for shard in shards)
    parts = {"region": 1.0, "pooled": 1.0, "ordered": 1.0} if anchored else {}
    scenes = min(len(train), 2 if run.small else 12)
    recipe = replace(
        _recipe(name, Losses(**parts, alone=1.0, alone_pooled=1.0)), scenes=scenes, augment="turns"
    )
    torch.manual_seed(0)
    with run.device:
        student = create_student(name, anchored, head_config(recipe) if anchored else None)
        if anchored:
            start_from_cosines(student.backbone.patch_embed)  # type: ignore[arg-type]
            student.backbone.patch_embed.requires_grad_(False)
        model = TrainingModel(student, None, recipe)
    step, rng = stepper(model, recipe), np.random.default_rng(0)
    # the last tenth, at most 20 s, for the evaluation and the file
    span = min(5.0, run.left_s) if run.small else max(0.0, run.left_s - min(20, run.left_s / 10))
    begun = time.monotonic()
    log: list[dict[str, float]] = []
    while not log or time.monotonic() - begun < span:
        done = (time.monotonic() - begun) / span
        # a short warm-up, then half a cosine over the time
        rate = recipe.learning_rate * min(1.0, (len(log) + 1) / 100, 1e-3 + np.cos(done * 1.57))
        losses = step(draw(train, recipe, rng).to(run.device), rate)
        if not np.isfinite(sum(losses.values())):
            raise RuntimeError(f"the loss is no number at step {len(log) + 1}: {losses}")
        log.append({"step": len(log) + 1, "seconds": time.monotonic() - begun, **losses})
        if run.small and len(log) >= 3:
            break
    path = run.out.with_name(f"{run.out.stem}-{name}.safetensors")
    trained_on = {"titles": json.dumps(sorted({shard.content for shard in train}))}
    view = {"view": json.dumps(shards[0].view)}
    save_student(student, path, name, shards[0].label, {**trained_on, **view})
    return _trained(run, student, log, path, unseen)


def _split(shards: Sequence["Shard"]) -> tuple[list["Shard"], list["Shard"]]:
    contents = sorted({shard.content for shard in shards})
    apart = set(contents[len(contents) - len(contents) // 5 :])
    train = [shard for shard in shards if shard.content not in apart]
    return train, [shard for shard in shards if shard.content in apart]


def _trained(
    run: Run, student: Any, log: list[dict[str, float]], path: Path, unseen: list["Shard"]
) -> Findings:
    """Figures of a run: losses of its first and last tenth, correlations on titles held out."""
    lines = [",".join(log[0]), *(",".join(f"{v:.6g}" for v in row.values()) for row in log)]
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n", encoding="ascii")
    part = max(1, len(log) // 10)
    found = Findings({"weights": path.name, "steps": len(log)})
    found.figures["held_out"] = [shard.name for shard in unseen]
    for name, rows in (("first", log[:part]), ("last", log[-part:])):
        losses = [key for key in rows[0] if key not in ("step", "seconds")]
        found.figures[f"losses_{name}"] = {k: sum(r[k] for r in rows) / part for k in losses}
    if not unseen:
        found.figures["figures"] = "no title held out: there are fewer than five"
        return found
    try:
        from vqaloop.training.evaluate import score_shards, summary

        scored = score_shards(student.eval(), unseen, run.device, crops=8)
        found.figures["figures"] = summary(scored.table)
    except ModuleNotFoundError as error:
        found.figures["figures"] = f"not computed: the package {error.name} is missing"
    return found
