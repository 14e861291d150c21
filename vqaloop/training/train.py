"""Training and knowledge distillation by a recipe, on DeepSpeed, with checkpoints and a log.

Started plainly it trains in one process; started by PyTorch's launcher, in as many as that gives,
one a GPU: `torchrun --nproc_per_node N -m vqaloop distill RECIPE`. (DeepSpeed's own launcher adds
an option --local_rank that vqaloop does not take.) The first of them reports progress, evaluates
on the titles held out while the others wait, and writes the weights.
"""

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqaloop.core.scopes import check_cancelled
from vqaloop.core.text import counted
from vqaloop.errors import InputError
from vqaloop.models import create_student
from vqaloop.models.internvideo2 import InternVideo2
from vqaloop.models.score_scale import HEADER_KEY, ScoreScale
from vqaloop.models.student import Student
from vqaloop.models.style_prompt import attach, save_prompt
from vqaloop.models.weights import save_student
from vqaloop.panel.labels import describe
from vqaloop.quality.clip_views import View
from vqaloop.quality.student_engine import VMAF, is_anchored_by
from vqaloop.training import deepspeed_engine as engines
from vqaloop.training.batch import clips_of_step, draw
from vqaloop.training.evaluate import score_shards, summary, summary_lines
from vqaloop.training.opinion_scale import scale_of
from vqaloop.training.recipe import Recipe
from vqaloop.training.shards import Shard, load_corpus
from vqaloop.training.split import labelled_part, split_corpus, teacher_shards
from vqaloop.training.starting_weights import initial_student, initial_teacher, listed
from vqaloop.training.step import TrainingModel
from vqaloop.training.targets import PANEL_KEY, Label, label_of, with_targets
from vqaloop.training.training_log import TrainingLog
from vqaloop.training.windows import Window, check_window, middle_windows, view_of

CHECKPOINT_EVERY = 50
"""Steps between two checkpoints."""
EVALUATE_EVERY = 500
"""Steps between two evaluations on the titles held out."""


def train(
    recipe: Recipe,
    *,
    device: torch.device,
    resume: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train a student to the recipe's last step.

    Or its prompt, where the recipe asks for one. A checkpoint is written every CHECKPOINT_EVERY
    steps; a resumed run gives the same weights as one that was not interrupted. The corpus is read
    again then, so it may have grown. `log.csv` and `log.png` in the recipe's folder hold losses
    and correlations by step.

    Args:
        recipe: See `recipe.read_recipe`.
        device: Where to train; under a launcher each process takes its own GPU.
        resume: Go on from the latest checkpoint in the recipe's folder, if there is one.
        report: Called with lines of progress, in the first process alone.

    Returns:
        The weights file, or the prompt's, an exponential moving average over the steps. Its header
        names all titles that it, its initial weights and its teacher were trained on.

    Raises:
        InputError: The corpus, weights or a checkpoint do not fit the recipe.
    """
    engines.check_installed()
    shards, unseen = split_corpus(recipe)
    if len(shards) < recipe.scenes:
        besides = f" beside the {len(unseen)} held out" if unseen and not recipe.held_out else ""
        raise InputError(
            f"a step takes {counted(recipe.scenes, 'scene')} and the corpus has {len(shards)}"
            f"{besides}; add clips to the corpus, or lower `scenes` in the recipe"
        )
    window = Window(recipe.frames, recipe.crop)
    for shard in (*shards, *unseen):
        check_window(shard, window)
    taught_on = teacher_shards(recipe, shards)
    label = label_of(recipe.label, recipe.panel, shards) if shards[0].labels else None
    if recipe.labelled:
        # after the label, which is the same however few of it are seen
        shards = labelled_part(shards, recipe)
    if recipe.teacher is not None:
        for shard in taught_on or ():
            check_window(shard, Window(recipe.teacher.frames, recipe.teacher.crop))
    apart = frozenset(shard.content for shard in unseen)
    torch.manual_seed(recipe.seed)
    student, known = initial_student(recipe, apart, opinions=label is None)
    teacher, taught = initial_teacher(recipe.teacher, apart)
    if recipe.fixed_embedding and student.embedding is not None:
        student.embedding.requires_grad_(False)
    for network, wanted in ((student, recipe), (teacher, recipe.teacher)):
        if network is not None and wanted is not None:
            network.backbone.set_drop_path(wanted.drop_path)
            if isinstance(network.backbone, InternVideo2):
                network.backbone.recompute = wanted.recompute
    Path(recipe.out).mkdir(parents=True, exist_ok=True)  # nothing was refused
    model = TrainingModel(student, teacher, recipe)
    with engines.quiet_engine(device) as deepspeed:
        trainer = Trainer(deepspeed, model, shards, unseen, taught_on, label, device, report)
        trainer.titles |= known | taught
        trainer.start(resume)
        while trainer.step_count < recipe.steps:
            trainer.step()
            if trainer.due(EVALUATE_EVERY):
                trainer.evaluate()
            if trainer.due(CHECKPOINT_EVERY):
                trainer.checkpoint()
    return trainer.finish()


class Trainer:
    """A training run in one process: DeepSpeed's engine, the moving average, and the log.

    It trains on `shards`, with the teacher on `teacher_shards` if that has a view of its own, and
    evaluates on `unseen`. `label` is that of regions; None: opinion scores.
    """

    def __init__(
        self,
        deepspeed: Any,
        model: TrainingModel,
        shards: list[Shard],
        unseen: list[Shard],
        teacher_shards: list[Shard] | None,
        label: Label | None,
        device: torch.device,
        report: Callable[[str], None],
    ) -> None:
        self.recipe = recipe = model.recipe
        self.student, self.device = model.student, device
        self.unseen, self.teacher_shards = unseen, teacher_shards
        self.label = label
        self.shards = shards
        if label is not None:
            self.shards = [with_targets(shard, label, recipe.auxiliary) for shard in shards]
        self.out = Path(recipe.out)
        clips = clips_of_step(shards[0], recipe)
        groups = parameter_groups(model, recipe)
        self.engine = engines.start(deepspeed, model, groups, recipe, clips, device)
        model.train()
        clips *= recipe.accumulate * self.engine.world_size
        self.rate = recipe.learning_rate * (clips / recipe.rate_clips if recipe.rate_clips else 1)
        """Learning rate before the schedule."""
        self.first = self.engine.global_rank == 0
        self.say = report if self.first else lambda line: None
        self.average = _copy(model.student, recipe, device)
        # the engine's own fp32 values: bf16 ones would round away what a step changes
        half = self.engine.bfloat16_enabled()
        self.fp32 = deepspeed.utils.safe_get_full_fp32_param if half else lambda value: value
        self.log = TrainingLog(self.out / "log.csv")
        self.step_count = 0
        """Steps taken."""
        self.titles = frozenset(shard.content for shard in shards)
        """All that the weights were trained on, by this run or before it."""

    def start(self, resume: bool) -> None:
        """Go on from the latest checkpoint, if there is one and `resume`; open the log.

        Raises InputError when the checkpoint was trained on a title that is now held out.
        """
        latest = self.out / "latest"
        if resume and latest.exists():
            self.step_count, before = engines.load(self.engine, self.average, self.out)
            with torch.no_grad():
                # of the student's frozen parameters, which checkpoints lack, it has the values
                pairs = zip(self.student.parameters(), self.average.parameters(), strict=True)
                for own, average in pairs:
                    if not own.requires_grad:
                        own.copy_(average)
            apart = before & {shard.content for shard in self.unseen}
            if apart:
                raise InputError(
                    f"{self.out} was trained on titles that this recipe holds out: "
                    f"{listed(apart)}; give another `out`, or --restart"
                )
            self.titles |= before
            self.say(f"resumed at step {self.step_count}")
        elif self.first:
            latest.unlink(missing_ok=True)
        self.log.open(self.step_count)
        scenes = counted(len(self.shards), "scene")
        steps = counted(self.recipe.steps, "step")
        self.say(f"{scenes}, {len(self.unseen)} held out; {steps}")

    def due(self, every: int) -> bool:
        """Whether the step just taken is a multiple of `every`, or the last."""
        return self.step_count % every == 0 or self.step_count == self.recipe.steps

    def step(self) -> None:
        """One optimiser step on `accumulate` batches, then the moving average and the log."""
        check_cancelled()
        recipe, since = self.recipe, time.monotonic()
        rate = self.rate * _schedule(self.step_count, recipe)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        losses: dict[str, float] = {}
        for part in range(recipe.accumulate):
            for name, value in self._backward(part).items():
                losses[name] = losses.get(name, 0.0) + value / recipe.accumulate
        self.step_count += 1
        # short at first, or the initial weights would dominate the average for long
        decay = min(recipe.average, self.step_count / (self.step_count + 10))
        _follow(self.average, self.student, decay, self.fp32)
        seconds = time.monotonic() - since
        self.log.add({"step": self.step_count, "lr": rate, "seconds": seconds, **losses})
        if self.step_count % 20 == 0:
            told = self.log.summary(20, recipe.steps - self.step_count)
            self.say(f"step {self.step_count}/{recipe.steps}: {told}")

    def _backward(self, part: int) -> dict[str, float]:
        """Gradients of one batch; its losses by name, unweighted."""
        # a generator of its own for each batch: a resumed run draws what a straight one would
        rng = np.random.default_rng(
            [self.recipe.seed, self.step_count, part, self.engine.global_rank]
        )
        batch = draw(self.shards, self.recipe, rng, self.teacher_shards)
        losses: dict[str, Tensor] = self.engine(batch.to(self.device), int(rng.integers(1 << 30)))
        weights = vars(self.recipe.loss)
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        # of all processes: one that stopped alone would leave the others waiting for it
        if engines.any_process(not bool(torch.isfinite(total)), self.device):
            raise InputError(
                f"the loss is no longer a number at step {self.step_count}; lower learning_rate"
            )
        self.engine.backward(total)
        self.engine.step()
        return {name: value.item() for name, value in losses.items()}

    def evaluate(self) -> None:
        """Correlations of the moving average on the titles held out, in the first process."""
        figures: dict[str, float | None] = {}
        if self.first:
            window = Window(self.recipe.frames, self.recipe.crop)
            unseen = (middle_windows(shard, window) for shard in self.unseen)
            scores = score_shards(self.average, unseen, self.device, crops=8, label=self.label)
            figures = summary(scores.table)
        self.log.add({"step": self.step_count, **figures})
        for line in summary_lines(figures):
            self.say(f"step {self.step_count} held out, {line}")

    def checkpoint(self) -> None:
        """Write log and checkpoint; every process takes part in the latter."""
        if self.first:
            self.log.write()
        engines.save(self.engine, self.average, self.out, self.step_count, self.titles)

    def finish(self) -> Path:
        """Write the averaged weights and the plot of the log; the weights file."""
        recipe, shard = self.recipe, self.shards[0]
        prompt = self.student.prompt
        path = self.out / f"{recipe.model}{'.prompt' if prompt else ''}.safetensors"
        if self.first:
            # where the engine's file lies is this machine's business
            story = {**asdict(recipe), "engine": Path(recipe.engine).name}
            about = {
                "recipe": json.dumps(story),
                "view": json.dumps(view_of(shard, Window(recipe.frames, recipe.crop))),
                "titles": json.dumps(sorted(self.titles)),
            }
            scale = self._scale()
            if scale is not None:
                about[HEADER_KEY] = scale.to_json()
            if self.label is not None:
                used = dict.fromkeys([*self.label.judges, *recipe.auxiliary])
                about["judges"] = json.dumps(describe(list(used)))
                if self.label.panel is not None:
                    about[PANEL_KEY] = self.label.panel.to_json()
            text = shard.label if self.label is None else self.label.text
            if prompt is None or self.average.prompt is None:
                save_student(self.average, path, recipe.model, text, about)
            else:
                about |= {"model": recipe.model, "label": text}
                save_prompt(self.average.prompt, path, prompt.of, about)
            self.log.plot(self.out / "log.png")
        return path

    def _scale(self) -> ScoreScale | None:
        """The map from the averaged weights' answers to VMAF points, where shards allow one."""
        if self.label is not None or self.shards[0].label.startswith(VMAF):
            return None
        names = {shard.name for shard in self.shards}
        window = Window(self.recipe.frames, self.recipe.crop)
        view = view_of(self.shards[0], window)
        cut = None if view is None else View(**{k: view[k] for k in view if k != "seed"})
        anchors = self.average.anchored is not None and is_anchored_by(cut)
        # read again: those trained on lack their sources where one of them does
        whole = (s for s in load_corpus(self.recipe.corpus) if s.name in names)
        try:
            shards = (middle_windows(shard, window) for shard in whole)
            scale = scale_of(self.average, shards, anchors, self.device)
        except InputError as error:
            self.say(f"no scale in VMAF points, so these weights steer no ladder: {error}")
            return None
        self.say(
            f"scale in VMAF points, {scale.mode}: RMSE {scale.rmse:.2f} on titles left out, of "
            f"{counted(scale.encodes, 'encode')} of {counted(scale.titles, 'title')}"
        )
        return scale


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters by weight decay (matrices only) and by depth, when deep blocks learn faster.

    As InternVideo2 fine-tunes: a block's rate is `layer_decay` times that of the next one, the
    embeddings below the first, all else at the full rate. Blocks are counted through all stages
    of a FAST-VQA; what merges patches after a stage goes with its last block.
    """
    levels: dict[str, int] = {}
    blocks: dict[str, dict[str, int]] = {"student": {}, "teacher": {}, "bridge": {}, "fdim": {}}
    for name, _ in model.named_parameters():
        count = blocks[name.partition(".")[0]]
        block = re.match(r".*\bblocks\.[0-9]+\.", name)
        if block:
            levels[name] = count.setdefault(block[0], len(count) + 1)
        elif ".downsample." in name:
            levels[name] = len(count)
    depth = len(blocks["student"])
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # what is in no block is deeper than all of them, but for the embeddings
        level = levels.get(name, depth + 1)
        if any(key in name for key in ("patch_embed", "pos_embed", "cls_token")):
            level = 0
        # biases, norms and position tables are not decayed, as usual for transformers
        plain = parameter.ndim <= 1 or "pos_embed" in name or "cls_token" in name
        decay = 0.0 if plain else recipe.weight_decay
        scale = recipe.layer_decay ** max(0, depth + 1 - level)
        groups.setdefault((decay, scale), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "scale": scale}
        for (decay, scale), params in groups.items()
    ]


def _copy(student: Student, recipe: Recipe, device: torch.device) -> Student:
    """An fp32 copy, which becomes the moving average."""
    with torch.device("meta"):  # no memory, and no random values, before the copies
        mean = create_student(recipe.model, student.anchored is not None, student.config)
        if student.prompt is not None:
            attach(mean, student.prompt.basic)
    values = {
        name: value.detach().to(device, torch.float32 if value.is_floating_point() else None)
        for name, value in student.state_dict().items()
    }
    mean.load_state_dict({name: value.clone() for name, value in values.items()}, assign=True)
    return mean.eval().requires_grad_(False)


@torch.no_grad()
def _follow(
    mean: Student, student: Student, decay: float, full: Callable[[Tensor], Tensor | None]
) -> None:
    """Exponential moving average: `full` gives a parameter in fp32, None if it is fixed."""
    for average, new in zip(mean.parameters(), student.parameters(), strict=True):
        value = full(new)
        average.lerp_((new if value is None else value).to(average.dtype), 1 - decay)


def _schedule(step: int, recipe: Recipe) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine down to 0.01."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1, done))) / 2
