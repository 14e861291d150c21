"""Students of each family: the heads on their tokens, bf16, and weights on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.nets import noise
from vqaloop.errors import InputError
from vqaloop.models import create_student
from vqaloop.models.checkpoints import load_released
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.student import Student, start_from_cosines
from vqaloop.models.weights import load_student, save_student
from vqaloop.quality.inference import bytes_of, joined, part_of
from vqaloop.training.step import repeat_anchor

NAMES = ("rankdvqa-mini", "swinv2-c2f-mini", "qmamba-mini")
HEADS = HeadConfig(("v1", "cambi"), change=True, worst=2, canvas=True)
HEIGHT = 720.0


@pytest.fixture(scope="module", params=NAMES)
def student(request: pytest.FixtureRequest) -> tuple[str, Student]:
    torch.manual_seed(0)
    student = create_student(request.param, config=HEADS)
    assert student.embedding is not None
    start_from_cosines(student.embedding)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # norms that begin at zero would hide what is behind them
        for parameter in student.backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        for head in (student.anchored, student.alone):
            assert head is not None
            for parameter in head.fuse.parameters():
                parameter.mul_(3)
    return request.param, student.eval()


CLIPS, SOURCE = noise(2, 2, 3, 2, 80, 80)


def test_comparing_is_what_looking_gives(student: tuple[str, Student]) -> None:
    _, net = student
    with torch.inference_mode():
        anchor = net.anchor(SOURCE, HEIGHT)
        # 5 x 5 places of two frames
        assert anchor.embedding.shape == (2, 50, 96)
        found = net.compare(CLIPS, anchor)
        look = net.look(CLIPS, anchor, HEIGHT)
        assert look.anchored is not None
        for one, other in zip(found, look.anchored, strict=True):
            torch.testing.assert_close(one, other)
        score = net.anchored_answers(*found, HEIGHT)
        assert score.shape == (2, 2) and score[0, 0] != score[1, 0]
        torch.testing.assert_close(net(CLIPS, SOURCE, HEIGHT), score[:, 0])
        alone = net(CLIPS, canvas_height=HEIGHT)
        assert look.feature.shape == (2, net.backbone.feature_width) and alone[0] != alone[1]
        same = net(SOURCE, SOURCE, HEIGHT)
        assert (same - score[:, 0]).abs().min() > 1e-3


def test_anchors_are_repeated_parted_and_joined_whole(student: tuple[str, Student]) -> None:
    _, net = student
    with torch.inference_mode():
        anchor = net.anchor(SOURCE, HEIGHT)
        found = net.compare(CLIPS, anchor)
        parts = [part_of(anchor, slice(i, i + 1)) for i in range(2)]
        torch.testing.assert_close(net.compare(CLIPS, joined(parts)), found)
        assert sum(bytes_of(part) for part in parts) == bytes_of(anchor)
        twice = net.compare(CLIPS.repeat_interleave(2, 0), repeat_anchor(anchor, 2))
        torch.testing.assert_close(twice[0][::2], found[0], atol=1e-3, rtol=1e-4)


def test_scores_do_not_depend_on_the_batch(student: tuple[str, Student]) -> None:
    _, net = student
    with torch.inference_mode():
        together = net(CLIPS, SOURCE, HEIGHT)
        single = [net(c[None], s[None], HEIGHT) for c, s in zip(CLIPS, SOURCE, strict=True)]
    torch.testing.assert_close(together, torch.cat(single), atol=1e-5, rtol=1e-4)


def test_weights_come_back(student: tuple[str, Student], tmp_path: Path) -> None:
    name, net = student
    path = tmp_path / "mine.safetensors"
    save_student(net, path, name, "VMAF v1", {})
    loaded, about = load_student(path)
    assert about["model"] == name and loaded.config == HEADS
    before, after = net.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    exact = [key for key in before if "patch_embed" in key]
    assert exact and all(torch.equal(before[key], after[key]) for key in exact)
    with torch.inference_mode():
        gap = loaded(CLIPS, SOURCE, HEIGHT) - net(CLIPS, SOURCE, HEIGHT)
    assert 100 * gap.abs().max() < 0.3


def test_bf16_by_autocast_and_as_a_whole(student: tuple[str, Student]) -> None:
    name, net = student
    with torch.inference_mode():
        score, alone = net(CLIPS, SOURCE, HEIGHT), net(CLIPS, canvas_height=HEIGHT)
        with torch.autocast("cpu", torch.bfloat16):
            found = net(CLIPS, SOURCE, HEIGHT).float(), net(CLIPS, None, HEIGHT).float()
        torch.testing.assert_close(found, (score, alone), atol=0.02, rtol=0)
        cast = create_student(name, config=HEADS).eval()
        cast.load_state_dict(net.state_dict())
        cast.bfloat16()
        torch.testing.assert_close(cast(CLIPS, SOURCE, HEIGHT).float(), score, atol=0.03, rtol=0)
        torch.testing.assert_close(cast(CLIPS, None, HEIGHT).float(), alone, atol=0.03, rtol=0)


def test_nothing_is_published_of_these(student: tuple[str, Student], tmp_path: Path) -> None:
    path = tmp_path / "released.safetensors"
    save_file({"head.weight": torch.zeros(1, 4)}, path)
    with pytest.raises(InputError, match="no weights are published"):
        load_released(student[1].backbone, path)


def test_every_parameter_is_trained(student: tuple[str, Student]) -> None:
    name, net = student
    net.zero_grad()
    look = net.look(CLIPS, net.anchor(SOURCE, HEIGHT), HEIGHT)
    assert look.anchored is not None
    answers = net.anchored_answers(*look.anchored, HEIGHT).sum()
    total = answers + net.alone_answers(*look.alone, HEIGHT).sum() + look.feature.square().sum()
    torch.autograd.backward(total)
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == [], name
