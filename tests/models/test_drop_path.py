"""Stochastic depth, and activations computed again, in both families."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.nets import MINI, MINI_SWIN, noise, shaken
from vqaloop.models.drop_path import drop_path, set_drop_path
from vqaloop.models.fastvqa import Block, FastVQA
from vqaloop.models.internvideo2 import InternVideo2


def test_samples_are_dropped_whole_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    branch = noise(4000, 3, 2)
    found = drop_path(branch, 0.25, training=True)
    kept = (found != 0).flatten(1).all(1)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(found[kept], branch[kept] / 0.75)
    assert (found[~kept] == 0).all()
    assert drop_path(branch, 0.25, training=False) is branch
    assert drop_path(branch, 0.0, training=True) is branch


@pytest.mark.parametrize(
    ("make", "clips"),
    [
        (lambda: InternVideo2(MINI), (6, 3, 2, 28, 28)),
        (lambda: FastVQA(MINI_SWIN), (6, 3, 4, 32, 32)),
    ],
)
def test_blocks_drop_more_with_depth_and_only_in_training(
    make: Callable[[], InternVideo2 | FastVQA], clips: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = make()
    shaken(model)
    whole = model.eval()(noise(*clips))
    model.set_drop_path(0.5)
    torch.testing.assert_close(model(noise(*clips)), whole, rtol=0, atol=0)
    model.train()
    torch.manual_seed(1)
    one = model(noise(*clips))
    same = (one == whole).flatten()
    assert not same.all()
    torch.manual_seed(1)
    assert torch.equal(model(noise(*clips)), one)
    if isinstance(model, FastVQA):
        rates = [b.drop_path for b in model.modules() if isinstance(b, Block)]
    else:
        rates = [float(b.drop_path) for b in model.blocks]  # type: ignore[arg-type]
    assert rates == pytest.approx([0.5 * i / (len(rates) - 1) for i in range(len(rates))])


def test_a_single_block_drops_nothing() -> None:
    model = InternVideo2(MINI)
    set_drop_path([model.blocks[0]], 0.5)  # type: ignore[list-item]
    assert model.blocks[0].drop_path == 0


def test_what_is_computed_again_has_the_same_gradient() -> None:
    def gradients(again: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = InternVideo2(MINI).train()
        shaken(model)
        model.set_drop_path(0.5)
        model.recompute = again
        saved = 0

        def count(value: Tensor) -> Tensor:
            nonlocal saved
            saved += value.numel()
            return value

        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            model(noise(3, 3, 2, 28, 28)).square().sum().backward()
        kept.append(saved)
        return [p.grad for p in model.parameters() if p.grad is not None]

    kept: list[int] = []
    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other)
    assert kept[1] < kept[0] / 2
