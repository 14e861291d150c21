"""The student: its start, its heads by hand, pooling over clips."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.nets import (
    MINI,
    MINI_SWIN,
    Values,
    layer_norm,
    noise,
    published_shapes,
    shaken,
    values,
)
from vqaloop.errors import InputError
from vqaloop.models import create_student
from vqaloop.models.fastvqa import FastVQA
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.internvideo2 import TINY, InternVideo2
from vqaloop.models.stream_facts import StreamFacts
from vqaloop.models.student import (
    ENERGY_FLOOR,
    LEAST_WORST,
    STATISTICS,
    Anchor,
    Student,
    StudentOutput,
    _rooted,
    _summed,
    change_energy,
    log_energy,
    start_from_cosines,
)
from vqaloop.training.step import repeat_anchor


@pytest.fixture(scope="module")
def tiny() -> InternVideo2:
    torch.manual_seed(0)
    backbone = InternVideo2(TINY)
    start_from_cosines(backbone.patch_embed)
    return backbone


LUMA = torch.tensor([0.2126, 0.7152, 0.0722])
STD = torch.tensor([0.229, 0.224, 0.225])


def test_cosine_start_is_orthogonal_in_luma(tiny: InternVideo2) -> None:
    weight = tiny.patch_embed.proj.weight.detach()[:, :, 0]  # (D, 3, 14, 14)
    luma = weight[: TINY.width - 2 * (TINY.width // 16)]
    # what each channel answers to luma detail: the same plane in R, G and B before normalisation
    planes = (luma / STD[:, None, None]).sum(1).flatten(1) * STD.mean()
    torch.testing.assert_close(planes @ planes.T, torch.eye(len(planes)), atol=1e-5, rtol=0)


def test_flat_grey_gives_the_dc_coefficient_alone(tiny: InternVideo2) -> None:
    # the same step in R, G and B, as seen after the input's scaling
    grey = (0.1 / STD)[None, :, None, None, None].expand(1, 3, 1, 14, 14)
    found = tiny.patch_embed(grey)[0, 0]
    assert found[0].abs() > 0.1
    assert found[1:].abs().max() < 1e-5


def test_colour_channels_answer_to_colour_alone(tiny: InternVideo2) -> None:
    colour = TINY.width // 16
    blue = (torch.tensor([0.0, 0.0, 0.1]) / STD)[None, :, None, None, None].expand(1, 3, 1, 14, 14)
    first_blue, first_red = TINY.width - 2 * colour, TINY.width - colour
    found = tiny.patch_embed(blue)[0, 0]
    assert found[first_blue] > 0 > found[first_red]


SECOND = HeadConfig(("panel", "flicker", "dark"), change=True, worst=5, canvas=True)
THIRD = replace(SECOND, bits=True)
HEIGHT = 432.0
STREAM = StreamFacts(0.05, 0.5).inputs()


def made(config: HeadConfig | None = None) -> Student:
    torch.manual_seed(0)
    student = Student(InternVideo2(MINI), config=config)
    shaken(student)
    return student


@pytest.fixture(scope="module")
def student() -> Student:
    return made()


@pytest.fixture(scope="module")
def second() -> Student:
    return made(SECOND)


def test_log_energy_by_hand() -> None:
    root = math.sqrt(ENERGY_FLOOR)
    found = log_energy(torch.tensor([0.0, root, -root, 1.0]))
    expected = [0.0, math.log(2) / 4, math.log(2) / 4, math.log(1 / ENERGY_FLOOR + 1) / 4]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_change_by_hand() -> None:
    # three frames of two tokens
    x = torch.tensor([1.0, 10.0, 4.0, 40.0, 9.0, 0.0])[None, :, None]
    expected = log_energy(torch.tensor([3.0, 30.0, 3.0, 30.0, 5.0, -40.0]))
    assert torch.equal(change_energy(x, 3)[0, :, 0], expected)
    assert not change_energy(x, 1).any()


def clips_and_anchor(student: Student, count: int = 3) -> tuple[Tensor, Anchor]:
    anchor = student.anchor(noise(count, 3, 2, 28, 28))
    return noise(count, 3, 2, 28, 28, seed=2), anchor


def anchored(look: StudentOutput) -> tuple[Tensor, Tensor]:
    assert look.anchored is not None
    return look.anchored


def linear(layer: nn.Module, x: Values) -> Values:
    assert isinstance(layer, nn.Linear)
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    return np.asarray(x @ weight.T + bias)


def gelu(x: Values) -> Values:
    return np.asarray(x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2)


def energy(x: Values) -> Values:
    return np.asarray(np.log(x**2 / ENERGY_FLOOR + 1) / 4)


def stepped(x: Values, frames: int) -> Values:
    """(N, D) difference to the frame before, token by token."""
    each = len(x) // frames
    out = np.empty_like(x)
    for i in range(len(x)):
        later = i if i >= each else i + each
        out[i] = x[later] - x[later - each]
    return out


def canvas(config: HeadConfig) -> list[float]:
    return [math.log2(HEIGHT / 1080)] * config.canvas


def pooled_means(values: Values, weight: Values) -> Values:
    """(N, S) values and weights to S statistics."""
    worst = np.log1p(np.exp(values[:, STATISTICS:])) ** 4
    sums = (np.concatenate([values[:, :STATISTICS], worst], 1) * weight).sum(0)
    means = sums / weight.sum(0)
    means[STATISTICS:] = (means[STATISTICS:] + LEAST_WORST) ** (1 / 4)
    return np.asarray(means)


def fused(fuse: nn.Module, means: Values, given: Sequence[float]) -> Values:
    assert isinstance(fuse, nn.Sequential)
    return linear(fuse[2], gelu(linear(fuse[0], np.concatenate([means, given]))))


class Plain:
    """One clip's taps in fp64, and the heads over them written out."""

    def __init__(self, student: Student, clip: Tensor) -> None:
        assert student.anchored is not None and student.alone is not None
        assert isinstance(student.backbone, InternVideo2)
        self.head, self.alone, self.config = student.anchored, student.alone, student.config
        with torch.no_grad():
            tokens, taps = student.backbone.tokens(clip[None], (0, 1, 2))
            feature = student.backbone.fc_norm(student.backbone.clip_projector(tokens))
            self.answer = float(student.backbone.head(feature))
        self.embedding, *deep = (tap[0].double().numpy() for tap in taps)
        self.projected = []
        for tokens64, layer in zip(deep, self.head.project, strict=True):
            assert isinstance(layer, nn.Sequential)
            norm = values(layer[0])
            normed = layer_norm(tokens64, norm["weight"], norm["bias"])
            self.projected.append(linear(layer[1], normed))

    def moving(self) -> Values:
        return np.concatenate([energy(self.embedding), energy(stepped(self.embedding, 2))], -1)

    def with_canvas(self, seen: list[Values]) -> Values:
        columns = [np.full((len(seen[0]), 1), value) for value in canvas(self.config)]
        return np.concatenate([*seen, *columns], 1)

    def judged_alone(self) -> Values:
        seen = [gelu(linear(self.alone.energy, self.moving())), *self.projected]
        context = gelu(linear(self.alone.context, self.with_canvas(seen)))
        weight = np.log1p(np.exp(linear(self.alone.weight, context))) + 1e-4
        means = pooled_means(linear(self.alone.value, context), weight)
        given = [*canvas(self.config), *(STREAM if self.config.bits else ())]
        out = fused(self.alone.fuse, means, given)
        out[0] = 1 / (1 + np.exp(-(out[0] + self.answer)))
        return out

    def judged_against(self, source: "Plain") -> Values:
        head = self.head
        first = gelu(linear(head.source_energy, source.moving()))
        seen = self.with_canvas([first, *source.projected])
        context = gelu(linear(head.source_context, seen))
        weight = np.log1p(np.exp(linear(head.weight, context))) + 1e-4
        energies = [energy(x.embedding) for x in (self, source)]
        energies.append(energy(self.embedding - source.embedding))
        if self.config.change:
            mine, theirs = (stepped(x.embedding, 2) for x in (self, source))
            energies += [energy(mine), energy(mine - theirs)]
        parts = [gelu(linear(head.compare_energy, np.concatenate(energies, 1))), context]
        for mine, theirs in zip(self.projected, source.projected, strict=True):
            parts += [abs(mine - theirs), mine * theirs]
        value = linear(head.value, gelu(linear(head.compare, np.concatenate(parts, 1))))
        out = fused(head.fuse, pooled_means(value, weight), canvas(self.config))
        out[0] = 1 / (1 + np.exp(-out[0]))
        return out


@pytest.mark.parametrize("config", [HeadConfig(), SECOND, THIRD])
def test_both_heads_follow_the_formulas(config: HeadConfig) -> None:
    student = made(config)
    reference, clip = noise(1, 3, 2, 28, 28), noise(1, 3, 2, 28, 28, seed=2)
    with torch.no_grad():
        look = student.look(clip, student.anchor(reference, HEIGHT), HEIGHT)
        alone = student.alone_answers(*look.alone, HEIGHT, STREAM)[0]
        against = student.anchored_answers(*anchored(look), HEIGHT)[0]
        assert torch.equal(student(clip, canvas_height=HEIGHT, stream=STREAM), alone[:1])
        assert torch.equal(student(clip, reference, HEIGHT), against[:1])
    assert look.feature.shape == (1, MINI.pooled_width)
    plain = Plain(student, clip[0])
    assert alone.shape == against.shape == (len(config.outputs),)
    np.testing.assert_allclose(alone.numpy(), plain.judged_alone(), rtol=1e-4, atol=1e-4)
    found = plain.judged_against(Plain(student, reference[0]))
    np.testing.assert_allclose(against.numpy(), found, rtol=1e-4, atol=1e-4)
    for tokens, theirs in zip(look.projected, plain.projected, strict=True):
        np.testing.assert_allclose(tokens[0].numpy(), theirs, rtol=1e-3, atol=1e-3)


def test_a_clip_against_itself_scores_the_same_in_any_batch(student: Student) -> None:
    clip = noise(1, 3, 2, 28, 28)
    others = torch.cat([noise(2, 3, 2, 28, 28, seed=7), clip, noise(1, 3, 2, 28, 28, seed=8)])
    single = student(clip, clip)
    torch.testing.assert_close(student(others, others)[2:3], single)
    same = clip.expand(4, -1, -1, -1, -1)
    torch.testing.assert_close(student(same, same), single.expand(4))


@pytest.mark.parametrize("config", [HeadConfig(), SECOND, THIRD])
def test_sums_of_two_halves_are_those_of_the_whole(config: HeadConfig) -> None:
    student, columns = made(config), STATISTICS + config.worst
    reference, clips = noise(3, 3, 2, 28, 28), noise(3, 3, 2, 28, 28, seed=2)
    with torch.no_grad():
        whole, one, rest = (
            student.look(clips[part], student.anchor(reference[part], HEIGHT), HEIGHT)
            for part in (slice(None), slice(1), slice(1, None))
        )
    assert whole.alone[0].shape == whole.alone[1].shape == (3, columns + 1)
    assert anchored(whole)[0].shape == anchored(whole)[1].shape == (3, columns)
    pooled = []
    for looks in ((whole,), (one, rest)):
        alone, against = (
            [torch.cat([pair[i] for pair in pairs]).sum(0) for i in (0, 1)]
            for pairs in ([look.alone for look in looks], [anchored(look) for look in looks])
        )
        pooled.append(
            (
                student.alone_answers(alone[0], alone[1], HEIGHT, STREAM),
                student.anchored_answers(against[0], against[1], HEIGHT),
            )
        )
    for at_once, in_parts in zip(*pooled, strict=True):
        torch.testing.assert_close(in_parts, at_once, rtol=1e-4, atol=1e-4)
    assert whole.alone[1][:, -1].sum() == 3  # the paper's answers are averaged over clips


def test_pooling_equal_clips_changes_nothing(student: Student) -> None:
    clips = noise(1, 3, 2, 28, 28).expand(3, -1, -1, -1, -1)
    look = student.look(clips, student.anchor(clips))
    for answers, (sums, weights) in (
        (student.alone_answers, look.alone),
        (student.anchored_answers, anchored(look)),
    ):
        torch.testing.assert_close(
            answers(sums.sum(0), weights.sum(0)), answers(sums, weights)[0], rtol=1e-4, atol=1e-5
        )


def test_weights_come_from_the_source_alone_and_are_positive(student: Student) -> None:
    clips, anchor = clips_and_anchor(student)
    assert (anchor.weights > 0).all()
    one = anchored(student.look(clips, anchor))
    other = anchored(student.look(clips.flip(0), anchor))
    assert torch.equal(one[1], other[1])
    assert not torch.allclose(one[0], other[0])


def test_the_anchor_does_not_change_what_is_judged_alone(student: Student) -> None:
    clips, anchor = clips_and_anchor(student)
    with_one, without = student.look(clips, anchor), student.look(clips)
    assert without.anchored is None
    for one, other in zip(with_one.alone, without.alone, strict=True):
        assert torch.equal(one, other)


def test_repeated_anchor_serves_several_encodes(student: Student) -> None:
    reference, clips = noise(2, 3, 2, 28, 28), noise(4, 3, 2, 28, 28, seed=5)
    together = anchored(student.look(clips, repeat_anchor(student.anchor(reference), 2)))[0]
    for i in range(4):
        single = student.look(clips[i, None], student.anchor(reference[i // 2, None]))
        torch.testing.assert_close(together[i, None], anchored(single)[0], rtol=1e-4, atol=1e-3)


def test_scores_lie_between_0_and_1(student: Student) -> None:
    clips = noise(5, 3, 2, 28, 28) * 20
    for found in (student(clips), student(clips, noise(5, 3, 2, 28, 28, seed=2))):
        assert ((found >= 0) & (found <= 1)).all()


def test_without_heads_a_student_is_its_backbone() -> None:
    torch.manual_seed(0)
    bare = Student(InternVideo2(MINI), heads=False)
    shaken(bare)
    clips = noise(4, 3, 2, 28, 28)
    look = bare.look(clips)
    expected = bare.backbone(clips)[:, 0]
    torch.testing.assert_close(bare(clips), expected)
    torch.testing.assert_close(bare.alone_answers(*look.alone)[:, 0], expected)
    torch.testing.assert_close(look.feature, bare.backbone.judge(clips)[1])
    assert look.anchored is None and look.projected == ()
    pooled = bare.alone_answers(look.alone[0].sum(0), look.alone[1].sum(0))
    torch.testing.assert_close(pooled[0], expected.mean())
    assert {n.split(".")[0] for n in bare.state_dict()} == {"backbone"}


def test_a_net_cast_to_bf16_sees_small_errors_all_the_same() -> None:
    """The embedding stays fp32: a difference of 1 in 1000 would not survive 8 bits of it."""
    torch.manual_seed(0)
    student = Student(InternVideo2(MINI))
    shaken(student)
    clip = noise(2, 3, 2, 28, 28)
    with torch.no_grad():
        student.bfloat16()
        anchor = student.anchor(clip)
        assert anchor.embedding.dtype == torch.float32
        assert anchor.weights.dtype == torch.bfloat16
        other = student.anchor(clip * 1.001)
        gap = (other.embedding - anchor.embedding) / anchor.embedding
        assert 0 < gap.abs().median() < 0.002
        same, near = (anchored(student.look(x, anchor))[0] for x in (clip, clip * 1.01))
        assert same.dtype == torch.bfloat16 and not torch.equal(same, near)


def test_another_family_judges_without_heads() -> None:
    torch.manual_seed(0)
    bare = Student(FastVQA(MINI_SWIN), heads=False).eval()
    clips = noise(2, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(bare(clips), bare.backbone(clips)[:, 0])
    with pytest.raises(AssertionError, match="heads need tokens"):
        Student(FastVQA(MINI_SWIN))


@pytest.mark.parametrize("config", [HeadConfig(), SECOND, THIRD])
def test_gradient_reaches_every_parameter(config: HeadConfig) -> None:
    student = made(config)
    anchor = student.anchor(noise(2, 3, 2, 28, 28), HEIGHT)
    look = student.look(noise(2, 3, 2, 28, 28, seed=2), anchor, HEIGHT)
    torch.autograd.backward(
        student.anchored_answers(*anchored(look), HEIGHT).sum()
        + student.alone_answers(*look.alone, HEIGHT, STREAM).sum()
    )
    without = [
        name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert without == []


def test_a_student_adds_only_its_heads_to_the_backbone() -> None:
    with torch.device("meta"):
        names = create_student("internvqa-small").state_dict().keys()
    assert {n.split(".", 1)[1] for n in names if n.startswith("backbone.")} == published_shapes(
        384, 1536, 12, 2049
    ).keys()
    assert all(n.startswith(("backbone.", "anchored.", "alone.")) for n in names)


def test_more_statistics_leave_the_first_ones_as_they_are(student: Student) -> None:
    larger = made(HeadConfig(worst=5))
    with torch.no_grad():
        for name, value in student.state_dict().items():
            own = larger.state_dict()[name]
            own[tuple(map(slice, value.shape))] = value
        clips, references = noise(2, 3, 2, 28, 28), noise(2, 3, 2, 28, 28, seed=2)
        few, many = (x.compare(clips, x.anchor(references)) for x in (student, larger))
    for one, other in zip(few, many, strict=True):
        torch.testing.assert_close(other[:, :STATISTICS], one, rtol=1e-4, atol=1e-4)


def test_the_worst_tokens_dominate_a_generalised_mean() -> None:
    """One token in 64 moves a statistic by its root, where a mean moves by a 64th."""
    student = made(HeadConfig(worst=1))
    head = student.anchored
    assert head is not None
    values = torch.full((1, 64, STATISTICS + 1), -20.0)
    values[0, 0] = 10.0
    sums, weights = _summed(values, torch.ones_like(values))
    statistics = _rooted(sums / weights)[0]
    assert statistics[0] == pytest.approx(-20 + 30 / 64)
    assert statistics[-1] == pytest.approx(10 / 64**0.25, rel=1e-3)


@pytest.mark.parametrize("value", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_generalised_means_stay_finite(value: float) -> None:
    values = torch.full((1, 8, STATISTICS + 2), value, requires_grad=True)
    sums, weights = _summed(values, torch.full_like(values, 1e-4))
    found = _rooted(sums / weights)
    torch.autograd.backward(found.sum())
    assert values.grad is not None
    assert found.isfinite().all() and values.grad.isfinite().all()


def test_the_canvas_cannot_be_left_out(second: Student) -> None:
    clips = noise(2, 3, 2, 28, 28)
    anchor = second.anchor(clips, HEIGHT)
    look = second.look(clips, anchor, HEIGHT)
    for call in (
        lambda: second.anchor(clips),
        lambda: second.look(clips, anchor),
        lambda: second.anchored_answers(*anchored(look)),
        lambda: second.alone_answers(*look.alone),
        lambda: second(clips),
        lambda: second(clips, clips),
    ):
        with pytest.raises(ValueError, match="take the height of the canvas"):
            call()


def test_what_the_bitstream_says_cannot_be_left_out() -> None:
    third, clips = made(THIRD), noise(2, 3, 2, 28, 28)
    alone = third.look(clips, canvas_height=HEIGHT).alone
    for call in (
        lambda: third.alone_answers(*alone, HEIGHT),
        lambda: third(clips, canvas_height=HEIGHT),
    ):
        with pytest.raises(ValueError, match="take what the bitstream says"):
            call()
    assert third(clips, clips, HEIGHT).shape == (2,), "not taken against a source"


def test_each_video_has_facts_of_its_own() -> None:
    third, clips = made(THIRD), noise(6, 3, 2, 28, 28)
    facts = [StreamFacts(0.05, 0.5), StreamFacts(0.5, 0.5), StreamFacts()]
    stream = torch.tensor([x.inputs() for x in facts])
    with torch.no_grad():
        sums, weights = (x.reshape(2, 3, -1) for x in third.look(clips, None, HEIGHT).alone)
        answers = third.alone_answers(sums, weights, HEIGHT, stream)
        for i, one in enumerate(facts):
            own = third.alone_answers(sums[1, i], weights[1, i], HEIGHT, one.inputs())
            torch.testing.assert_close(answers[1, i], own)
            for other in facts[i + 1 :]:
                found = third.alone_answers(sums[1, i], weights[1, i], HEIGHT, other.inputs())
                assert not torch.allclose(found, own), "they decide the score"


def test_heads_without_facts_are_as_they_were() -> None:
    """One layer alone is wider; without it, facts that are given change no bit."""
    second, third = made(SECOND), made(THIRD)
    shapes = [{k: v.shape for k, v in x.state_dict().items()} for x in (second, third)]
    wider = {k for k, shape in shapes[0].items() if shapes[1][k] != shape}
    assert shapes[0].keys() == shapes[1].keys() and wider == {"alone.fuse.0.weight"}
    clips = noise(2, 3, 2, 28, 28)
    for student in (second, made()):
        with torch.no_grad():
            alone = student.look(clips, None, HEIGHT).alone
            one, other = (student.alone_answers(*alone, HEIGHT, x) for x in (None, STREAM))
        assert torch.equal(one, other)


def test_each_clip_has_the_canvas_it_is_cut_from(second: Student) -> None:
    clips, references = noise(2, 3, 2, 28, 28), noise(2, 3, 2, 28, 28, seed=2)
    heights = torch.tensor([270.0, 2160.0])
    with torch.no_grad():
        for reference in (None, references):
            own = None if reference is None else reference[1:]
            together = second(clips, reference, heights)
            torch.testing.assert_close(second(clips[1:], own, 2160.0), together[1:])
            assert not torch.allclose(second(clips[1:], own, 270.0), together[1:])
        sums, weights = second.compare(clips, second.anchor(references, heights))
        # of several encodes of each scene
        answers = second.anchored_answers(
            sums[:, None].expand(2, 3, -1), weights[:, None].expand(2, 3, -1), heights[:, None]
        )
        torch.testing.assert_close(
            answers[1, 2], second.anchored_answers(sums[1], weights[1], 2160.0)
        )


def test_flicker_that_leaves_each_frame_as_good_is_seen_as_change() -> None:
    """Errors of one size in every frame, of one sign or of alternating ones."""
    student = made(HeadConfig(change=True))
    frame, error = noise(1, 3, 1, 28, 28), 0.1 * noise(1, 3, 1, 28, 28, seed=2)
    source = frame.expand(-1, -1, 2, -1, -1)
    steady = source + error
    flicker = torch.cat([frame + error, frame - error], 2)
    head, energies = student.anchored, []
    assert head is not None
    head.compare_energy.register_forward_pre_hook(lambda _, args: energies.append(args[0]))
    with torch.no_grad():
        for clip in (steady, flicker):
            student.compare(clip, student.anchor(source))
    (_, _, error_of_still, *changes), (_, _, error_of_moving, *others) = (
        found.split(MINI.width, -1) for found in energies
    )
    torch.testing.assert_close(error_of_still, error_of_moving, rtol=1e-2, atol=1e-3)
    assert len(changes) == 2 and not any(found.any() for found in changes)
    assert all(found.median() > 0.1 for found in others)


def test_a_configuration_of_heads_needs_heads() -> None:
    with pytest.raises(InputError, match="without them"):
        Student(InternVideo2(MINI), heads=False, config=SECOND)
