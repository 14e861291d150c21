"""The map from a trained student's answers to VMAF points, learnt on the encodes it trained on."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from vqaloop.models.score_scale import Mode, ScoreScale
from vqaloop.models.student import Student
from vqaloop.training.evaluate import score_shards
from vqaloop.training.shards import Shard
from vqaloop.training.vmaf_labels import TARGET


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
        InputError: The encodes are of too few titles, or the answers do not rise with VMAF.
    """
    mode: Mode = "anchored" if anchors else "difference"
    answers: list[float] = []
    points: list[float] = []
    titles: list[str] = []
    label = ""
    for shard in shards:
        label = shard.label
        rows = [e for e, row in enumerate(shard.encodes) if isinstance(row.get("vmaf"), float)]
        if shard.reference is None or not rows:
            continue
        table = score_shards(student, [shard], device).table
        if anchors:
            found = table["anchored"].to_numpy(float)
        else:
            source = replace(
                shard,
                encodes=[{"score": 100.0}],
                distorted=shard.reference[None],
                reference=None,
                crop_labels=None,
                frame_labels=None,
            )
            original = score_shards(student, [source], device).table["alone"].to_numpy(float)
            found = 100 - (original - table["alone"].to_numpy(float))
        answers += found[rows].tolist()
        points += [shard.encodes[e]["vmaf"] for e in rows]
        titles += [shard.content] * len(rows)
    return ScoreScale.fit(answers, points, titles, label, mode, TARGET)
