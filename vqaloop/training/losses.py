"""Training losses: regression and order against labels, distillation from a teacher.

Scores and labels are in 0..1, all losses fp32 scalars. G is the number of groups (scene x region),
E that of the encodes of a group, P that of its crops, A that of the auxiliary outputs. A label
that was not measured is nan, and has no part in a loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vqaloop.models.student import Student, StudentOutput
from vqaloop.training.batch import Batch
from vqaloop.training.recipe import Losses

PREFERENCE_SCALE = 0.05
"""Difference of scores in 0..1 at which the odds that one is preferred are e to one."""
PAIR_TIE = 0.06
"""Labels of 0..1 that differ by no more than this have no clear order: about one just noticeable
difference of VMAF."""
RATE_CLASS = 2.0
"""Octaves of bits a pixel of the canvas that are one class of bitrate: a factor of 4."""
TEMPERATURE = 0.5
"""Of the similarities between classes."""
FIDELITY_SCALE = 10.0
"""Factor on differences in 0..1 of the fidelity loss."""


@dataclass(frozen=True)
class Answers:
    """Answers of one head."""

    regions: Tensor
    """(G, E, 1 + A) of the crops of a region, pooled."""
    pooled: Tensor
    """(scenes, E, 1 + A) of a scene: mean over its regions, as of a title over time."""

    @property
    def scores(self) -> Tensor:
        """(G, E)"""
        return self.regions[..., 0]


def label_losses(
    student: Student, look: StudentOutput, batch: Batch, weights: Losses
) -> dict[str, Tensor]:
    """Losses of a student against the labels.

    Args:
        student: Its heads turn the sums of `look` into scores.
        look: What it computed of the batch.
        batch: The clips and their labels.
        weights: Which losses are computed.

    Returns:
        Losses with a weight by name, unweighted; see `recipe.Losses` for each.
    """
    label, pooled_label = batch.labels[..., 0], batch.pooled[..., 0]
    heads: list[Answers] = []
    losses: dict[str, Tensor] = {}
    if look.anchored is not None:
        found = answers_of(student.anchored_answers, look.anchored, batch)
        heads.append(found)
        losses |= {
            "region": masked_mse(found.scores, label),
            "pooled": masked_mse(found.pooled[..., 0], pooled_label),
            "ordered": ordered_loss(found.scores, label),
        }
    if not heads or weights.alone or weights.alone_pooled:
        found = alone_answers_of(student, look, batch)
        heads.append(found)
        losses |= {
            "alone": masked_mse(found.scores, label),
            "alone_pooled": masked_mse(found.pooled[..., 0], pooled_label),
        }
    zero = label.new_zeros(())
    if weights.auxiliary and batch.labels.shape[-1] > 1 and student.alone is not None:
        pairs = [(x.regions, batch.labels) for x in heads]
        pairs += [(x.pooled, batch.pooled) for x in heads]
        errors = (masked_mse(x[..., 1:], y[..., 1:]) for x, y in pairs)
        losses["auxiliary"] = sum(errors, zero)
    if look.values is not None:
        losses["dense"] = dense_loss(*look.values)
    if weights.pairs:
        losses["pairs"] = sum((pair_loss(x.scores, label) for x in heads), zero)
    if weights.fidelity:
        losses["fidelity"] = sum((fidelity_loss(x.scores, label) for x in heads), zero)
    if batch.rates is not None:
        classes = (batch.rates / RATE_CLASS).floor()
        classes = classes.repeat_interleave(len(label) // len(classes), 0)
        if weights.coarse:
            losses["coarse"] = group_contrast(_of_regions(look.feature, batch), classes)
        if weights.fine:
            parts = [class_rank_loss(x.scores, label, classes) for x in heads]
            losses["fine"] = sum(parts, zero)
    return {name: value for name, value in losses.items() if getattr(weights, name)}


def _of_regions(features: Tensor, batch: Batch) -> Tensor:
    """(clips, D) features as (G, E, D) means over the crops of a region."""
    groups, encodes = batch.labels.shape[:2]
    return features.float().reshape(groups, -1, encodes, features.shape[-1]).mean(1)


def distillation_losses(
    student: Student,
    look: StudentOutput,
    feature: Tensor,
    teacher: Student,
    target: StudentOutput,
    batch: Batch,
    weights: Losses,
) -> dict[str, Tensor]:
    """Losses between a student and its teacher on the same clips.

    `teacher` and `feature` are MSE(teacher, y) and SmoothL1 of arXiv 2502.19026, `levels` the
    multi-level distillation and `preferences` the losses of RankDVQA-mini (arXiv 2312.08864),
    `answers` response-based distillation (Hinton, Vinyals & Dean 2015) by MSE, since scores are no
    classes.

    Args:
        student: The model that learns.
        look: What it computed of the clips.
        feature: (clips, D) its pooled feature, at the teacher's width.
        teacher: The model it learns from.
        target: What the teacher computed of the same clips, maybe in a view of its own.
        batch: The clips and their labels.
        weights: Which losses are computed.

    Returns:
        Losses by name, unweighted.
    """
    losses = {}
    theirs = alone_answers_of(teacher, target, batch)
    if weights.teacher:
        losses["teacher"] = masked_mse(theirs.scores, batch.labels[..., 0])
    if weights.feature:
        # normalised: the scale of features differs between families without regard to quality
        mine, known = (F.layer_norm(x.float(), x.shape[-1:]) for x in (feature, target.feature))
        losses["feature"] = F.smooth_l1_loss(mine, known, beta=2.0)
    if weights.levels and look.projected and target.projected:
        taps = zip(look.projected, target.projected, strict=True)
        losses["levels"] = torch.stack([F.mse_loss(x.float(), y.float()) for x, y in taps]).mean()
    if weights.answers or weights.preferences:
        heads = [(alone_answers_of(student, look, batch).regions, theirs.regions)]
        if look.anchored is not None and target.anchored is not None:
            mine = answers_of(student.anchored_answers, look.anchored, batch).regions
            known = answers_of(teacher.anchored_answers, target.anchored, batch).regions
            heads.append((mine, known))
        if weights.answers:
            # a model without token heads answers with the score alone
            common = [(x[..., : y.shape[-1]], y[..., : x.shape[-1]]) for x, y in heads]
            losses["answers"] = torch.stack([F.mse_loss(x, y) for x, y in common]).sum()
        if weights.preferences:
            parts = [preference_losses(x[..., 0], y[..., 0]) for x, y in heads]
            losses["preferences"] = torch.stack(parts).sum()
    return losses


def alone_answers_of(student: Student, look: StudentOutput, batch: Batch) -> Answers:
    """`answers_of` the head without reference, which may take what bitstreams say."""
    stream = batch.stream
    if stream is not None:
        stream = stream.repeat_interleave(len(batch.labels) // len(stream), 0)
    return answers_of(partial(student.alone_answers, stream=stream), look.alone, batch)


def answers_of(
    answers: Callable[..., Tensor], sums: tuple[Tensor, Tensor], batch: Batch
) -> Answers:
    """Answers of a head to (clips, ·) sums and weights, of regions and of scenes.

    Sums and weights of the crops of a region are added before the last layer, as of those of a
    moment of a title.
    """
    groups, encodes = batch.labels.shape[:2]
    # fp32: a sum over many clips in bf16 would lose the last ones
    values, weights = (x.float().reshape(groups, -1, encodes, x.shape[-1]).sum(1) for x in sums)
    means = (values / weights).to(sums[0].dtype)  # bf16 when an engine has cast the student
    canvas, scenes = batch.heights, len(batch.pooled)
    if canvas is not None:
        canvas = canvas.repeat_interleave(groups // scenes)[:, None]
    regions = answers(means, torch.ones_like(means), canvas).float()
    return Answers(regions, regions.reshape(scenes, -1, *regions.shape[1:]).mean(1))


def masked_mse(values: Tensor, labels: Tensor) -> Tensor:
    """Mean square error where there is a label; 0 where there is none at all."""
    known = ~labels.isnan()
    gaps = torch.where(known, values - labels.nan_to_num(), 0.0)
    return gaps.square().sum() / known.sum().clamp(min=1)


def ordered_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """MSE of (G, E) scores and labels, less the mean of each over the encodes of a group.

    An offset common to all encodes of a region costs nothing here.
    """
    known = ~labels.isnan()
    count = known.sum(1, keepdim=True).clamp(min=1)
    gaps = torch.where(known, scores - labels.nan_to_num(), 0.0)
    return masked_mse(gaps - gaps.sum(1, keepdim=True) / count, labels * 0)


def pair_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the order of two labels and its probability by the scores.

    The mean of -log sigmoid(sign(yi - yj) (si - sj) / PREFERENCE_SCALE), RankNet (Burges et al.
    2005), over all pairs of a step, of one scene or of two, whose labels differ by more than
    PAIR_TIE; 0 without such pairs. As stage 1 of RankDVQA (arXiv 2202.08595), whose annotator,
    VMAF, is trusted only where it is clear.

    Args:
        scores: In 0..1, of any shape.
        labels: In 0..1, of the same shape.
    """
    gap, wanted = (_gaps(x) for x in (scores, labels))
    clear = wanted.abs() > PAIR_TIE  # not where one is nan
    wrong = F.softplus(-gap * wanted.nan_to_num().sign() / PREFERENCE_SCALE)
    return torch.where(clear, wrong, 0.0).sum() / clear.sum().clamp(min=1)


def fidelity_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Fidelity loss (Tsai et al. 2007) of preferences by scores p and by labels q.

    1 - the mean of sqrt(p q) + sqrt((1 - p) (1 - q)) over all pairs, where p is
    sigmoid(FIDELITY_SCALE (si - sj)) and q the same of labels.

    Args:
        scores: In 0..1, of any shape.
        labels: In 0..1, of the same shape.
    """
    gap, wanted = (_gaps(x) for x in (scores, labels))
    known = ~wanted.isnan()
    wanted = wanted.nan_to_num()
    # by logarithms, since the square root of 0 has no slope
    alike = sum(
        ((F.logsigmoid(sign * gap) + F.logsigmoid(sign * wanted)) / 2).exp()
        for sign in (FIDELITY_SCALE, -FIDELITY_SCALE)
    )
    # nothing is lost on pairs of one with itself
    count = known.sum() - known.diagonal().sum()
    return torch.where(known, 1 - alike, 0.0).sum() / count.clamp(min=1)


def group_contrast(features: Tensor, classes: Tensor) -> Tensor:
    """Group contrastive loss: classes of bitrate are to be separable by their features.

    With c the mean unit feature of a class over every second group, and c' that over the others:
    -log of exp(c c' / TEMPERATURE) over its sum with the c' of all classes, mean over the classes
    that both halves have; 0 where those are fewer than two. The coarse half of Yu et al. (arXiv
    2401.08522), whose formula is not known; this is NT-Xent of groups, as in arXiv 2102.02751.

    Args:
        features: (G, E, D), groups of one scene beside each other.
        classes: (G, E) numbers of classes; nan: of none.
    """
    unit = F.normalize(features, dim=-1)
    halves = [(unit[i::2].flatten(0, 1), classes[i::2].flatten()) for i in (0, 1)]
    both = set(halves[0][1].tolist()) & set(halves[1][1].tolist())
    known = sorted(number for number in both if number == number)
    if len(known) < 2:
        return unit.sum() * 0
    one, other = (torch.stack([x[own == number].mean(0) for number in known]) for x, own in halves)
    alike = one @ other.T / TEMPERATURE
    return F.cross_entropy(alike, torch.arange(len(known), device=alike.device))


def class_rank_loss(scores: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Rank loss inside classes: how far the order of two falls short of the gap of their labels.

    The mean of max(0, |yi - yj| - sign(yi - yj) (si - sj)) over all pairs of one class, of one
    scene or of two; 0 without such pairs. The fine half of Yu et al. (arXiv 2401.08522).

    Args:
        scores: In 0..1, of any shape.
        labels: In 0..1, of the same shape; nan: not measured.
        classes: Numbers of classes, of the same shape; nan: of none.
    """
    gap, wanted = (_gaps(x) for x in (scores, labels))
    # a number that is none equals no other
    alike = (classes.flatten()[:, None] == classes.flatten()) & ~wanted.isnan()
    alike &= ~torch.eye(len(alike), dtype=torch.bool, device=alike.device)
    wanted = wanted.nan_to_num()
    short = F.relu(wanted.abs() - wanted.sign() * gap)
    return torch.where(alike, short, 0.0).sum() / alike.sum().clamp(min=1)


def preference_losses(scores: Tensor, known: Tensor) -> Tensor:
    """The three losses of RankDVQA-mini (arXiv 2312.08864) on preferences of N pairs.

    With p the (N,) probabilities that the first of a pair is preferred, of student and teacher:
    the cross-entropy of both (instance), the squared differences of their p pT over N (batch) and
    that of their pT p (class). Pairs are of regions that follow each other in the batch.

    Args:
        scores: Of the student, in 0..1, of any shape.
        known: Of the teacher, of the same shape.
    """
    mine, theirs = (
        (x.flatten() - x.flatten().roll(-1)) / PREFERENCE_SCALE for x in (scores, known)
    )
    p, q = mine.sigmoid(), theirs.sigmoid()
    instance = F.binary_cross_entropy_with_logits(mine, q)
    # |q qT - p pT|² without the N x N matrices
    own, other, both = p @ p, q @ q, p @ q
    batch = (own.square() - 2 * both.square() + other.square()) / len(p)
    return instance + batch + (own - other).square()


def dense_loss(alone: Tensor, anchored: Tensor, weights: Tensor) -> Tensor:
    """Mean square difference of (B, N, S) values of two heads, by `weights`.

    Self-distillation: the anchored head, which sees the source, teaches the other what is damaged
    where. Nothing of it is trained by this.
    """
    known, part = anchored.detach().float(), weights.detach().float()
    return ((alone.float() - known).square() * part).sum() / part.sum()


def fdim_loss(projected: Tensor, features: Tensor) -> Tensor:
    """SmoothL1 of (..., D) features after LayerNorm without weights, where FDIM's are known."""
    known = ~features.isnan().any(-1)
    wanted = F.layer_norm(features.float().nan_to_num(), features.shape[-1:])
    found = F.layer_norm(projected.float(), projected.shape[-1:])
    errors = F.smooth_l1_loss(found, wanted, reduction="none").mean(-1)
    return torch.where(known, errors, 0.0).sum() / known.sum().clamp(min=1)


def _gaps(values: Tensor) -> Tensor:
    """(N, N) differences of each value to each other."""
    flat = values.flatten()
    return flat[:, None] - flat
