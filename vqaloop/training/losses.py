"""Training losses: regression and ranking against labels, distillation from a teacher.

Scores and labels are in 0..1, all losses fp32 scalars. G is the number of groups (scene x crop), E
that of the encodes of a group, K that of the labels of a clip.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vqaloop.models.student import Student, StudentOutput
from vqaloop.training.recipe import Losses, Recipe

RANK_MARGIN = 0.05
"""Scale of the rank loss, as a difference of scores in 0..1."""
RANK_TIE = 0.01
"""Labels of 0..1 that differ by no more than this count as equal: such a pair has no order."""


def label_losses(
    student: Student,
    look: StudentOutput,
    crop_labels: Tensor,
    pooled_labels: Tensor,
    recipe: Recipe,
) -> dict[str, Tensor]:
    """Losses of a student against the labels.

    Args:
        student: Its heads turn the sums of `look` into scores.
        look: What it computed of G·E clips, encodes of a group together.
        crop_labels: (G, E, K) of each crop, divided by `step.FEATURE_SCALES`.
        pooled_labels: (scenes, E, K) of the crops of an encode taken together.
        recipe: Weights of the losses, and the shape of a batch.

    Returns:
        Losses with a weight by name, unweighted; see `recipe.Losses` for each.
    """
    weights = recipe.loss
    label, pooled_label = crop_labels[..., 0], pooled_labels[..., 0]
    crop, pooled = _scores_of(student.alone_answers, look.alone, recipe)
    ranked = [crop[..., 0]]
    losses = {"alone": F.mse_loss(crop[..., 0], label)}
    if weights.alone_pooled:
        losses["alone_pooled"] = F.mse_loss(pooled[..., 0], pooled_label)
    features = [(crop, crop_labels), (pooled, pooled_labels)]
    if look.anchored is not None:
        crop, pooled = _scores_of(student.anchored_answers, look.anchored, recipe)
        score = crop[..., 0]
        ranked.append(score)
        features += [(crop, crop_labels), (pooled, pooled_labels)]
        losses |= {
            "crop": F.mse_loss(score, label),
            "pooled": F.mse_loss(pooled[..., 0], pooled_label),
            # means taken out: an offset common to all encodes of a crop costs nothing here
            "ordered": F.mse_loss(
                score - score.mean(1, keepdim=True), label - label.mean(1, keepdim=True)
            ),
        }
    if weights.features and crop_labels.shape[-1] > 1:
        losses["features"] = sum(
            (F.mse_loss(x[..., 1:], y[..., 1:]) for x, y in features), label.new_zeros(())
        )
    if weights.rank:
        losses["rank"] = sum((rank_loss(s, label) for s in ranked), label.new_zeros(()))
    return {name: value for name, value in losses.items() if getattr(weights, name)}


def distillation_losses(
    student: Student,
    look: StudentOutput,
    feature: Tensor,
    teacher: Student,
    target: StudentOutput,
    labels: Tensor,
    weights: Losses,
) -> dict[str, Tensor]:
    """Losses between a student and its teacher on the same clips.

    `teacher` and `feature` are MSE(teacher, y) and SmoothL1 of arXiv 2502.19026, `levels` is the
    multi-level distillation of RankDVQA-mini (arXiv 2312.08864), `answers` response-based
    distillation (Hinton, Vinyals & Dean 2015) by MSE, since scores are no classes.

    Args:
        student: The model that learns.
        look: What it computed of B clips.
        feature: (B, D) its pooled feature, at the teacher's width.
        teacher: The model it learns from.
        target: What the teacher computed of the same clips, maybe in a view of its own.
        labels: (B,) of each clip, for the teacher's own loss.
        weights: Which losses are computed.

    Returns:
        Losses by name, unweighted.
    """
    losses = {}
    if weights.teacher:
        score = teacher.alone_answers(*target.alone)[:, 0].float()
        losses["teacher"] = F.mse_loss(score, labels)
    if weights.feature:
        # normalised: the scale of features differs between families without regard to quality
        mine, theirs = (F.layer_norm(x.float(), x.shape[-1:]) for x in (feature, target.feature))
        losses["feature"] = F.smooth_l1_loss(mine, theirs, beta=2.0)
    if weights.levels and look.projected and target.projected:
        taps = zip(look.projected, target.projected, strict=True)
        losses["levels"] = torch.stack([F.mse_loss(x.float(), y.float()) for x, y in taps]).mean()
    if weights.answers:
        pairs = [(student.alone_answers(*look.alone), teacher.alone_answers(*target.alone))]
        if look.anchored is not None and target.anchored is not None:
            mine = student.anchored_answers(*look.anchored)
            pairs.append((mine, teacher.anchored_answers(*target.anchored)))
        # a model without token heads answers with the score alone
        errors = [
            F.mse_loss(x[..., : y.shape[-1]].float(), y[..., : x.shape[-1]].float())
            for x, y in pairs
        ]
        losses["answers"] = torch.stack(errors).sum()
    return losses


def rank_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Pairwise logistic loss: RankNet (Burges et al. 2005), the fine step of arXiv 2401.08522.

    The mean of log(1 + exp(-sign(yi - yj) (si - sj) / RANK_MARGIN)) over pairs of encodes of one
    group whose labels differ by more than RANK_TIE; 0 without such pairs.

    Args:
        scores: (G, E) in 0..1.
        labels: (G, E) in 0..1.
    """
    gap = scores[:, :, None] - scores[:, None]
    wanted = labels[:, :, None] - labels[:, None]
    counts = wanted.abs() > RANK_TIE
    wrong = F.softplus(-gap * wanted.sign() / RANK_MARGIN)
    return (wrong * counts).sum() / counts.sum().clamp(min=1)


def _scores_of(
    answers: Callable[..., Tensor], sums: tuple[Tensor, Tensor], recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """(G, E, K) answers of each crop and (scenes, E, K) of crops pooled, from (G·E, ·) sums."""
    values, weights = (torch.unflatten(x.float(), 0, (-1, recipe.encodes)) for x in sums)
    # pooling adds sums and weights before the last layer, as a title's score does
    pooled = (torch.unflatten(x, 0, (-1, recipe.crops)).sum(1) for x in (values, weights))

    def answered(values: Tensor, weights: Tensor) -> Tensor:
        means = (values / weights).to(sums[0].dtype)  # bf16 when an engine has cast the student
        return answers(means, torch.ones_like(means)).float()

    return answered(values, weights), answered(*pooled)
