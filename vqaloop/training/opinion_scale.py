"""The map from a trained student's answers to VMAF points, learnt on the encodes it trained on."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from vqaloop.errors import InputError
from vqaloop.models.score_scale import Mode, ScoreScale
from vqaloop.models.student import Student
from vqaloop.training.evaluate import clip_scores, score_shards
from vqaloop.training.shards import Shard

TARGET = "VMAF v0.6.1, sampled"
"""What the points are, see `training/vmaf_labels.py`."""


def scale_of(
    student: Student, shards: Iterable[Shard], anchors: bool, device: torch.device
) -> ScoreScale:
    """Fit the map on shards made with their sources, whose encodes have a VMAF.

    Args:
        student: The weights as they are written, on `device`.
        shards: Those trained on, with clips as the loop cuts them.
        anchors: Whether the loop compares clips with those of the source in the network; else it
            takes the difference between the answers on both.
        device: Where the student runs.

    Returns:
        The map, with its error on titles left out.

    Raises:
        InputError: No encode has a VMAF, they are of too few titles, or the answers do not rise
            with VMAF.
    """
    mode: Mode = "anchored" if anchors else "difference"
    answers: list[float] = []
    points: list[float] = []
    titles: list[str] = []
    label = ""
    for shard in shards:
        label = shard.label
        known = [row.get("vmaf") for row in shard.encodes]
        rows = [e for e, v in enumerate(known) if isinstance(v, float) and 0 <= v <= 100]
        if shard.reference is None or not rows:
            continue
        # pooled over the clips as the loop pools them
        if anchors:
            found = score_shards(student, [shard], device).table["anchored"].to_numpy(float)
        else:
            source = replace(shard, encodes=[{}], distorted=shard.reference[None], reference=None)
            original, own = (
                clip_scores(student, some, device, "alone") for some in (source, shard)
            )
            found = 100 - (original - own).mean(1)
        answers += found[rows].tolist()
        points += [shard.encodes[e]["vmaf"] for e in rows]
        titles += [shard.content] * len(rows)
    if not points:
        raise InputError(
            "no encode of the corpus has a VMAF; make it anew of encodes with their sources, "
            "by an ffmpeg with libvmaf"
        )
    return ScoreScale.fit(answers, points, titles, label, mode, TARGET)
