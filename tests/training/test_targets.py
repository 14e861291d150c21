"""Labels of regions as a student learns them: measured, fused, and of its auxiliary outputs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.lessons import pixels
from vqaloop.errors import InputError
from vqaloop.training.shards import Shard
from vqaloop.training.targets import Label, label_of, label_of_weights, with_targets

NAMES = ("v1", "v0.6.1", "xpsnr", "fdim")
PLAIN, DAMAGED, REGIONS = 30, 2, 4


def measured(seed: int) -> Shard:
    """A scene whose plain encodes the judges agree on, and two that one of them alone sees."""
    rng = np.random.default_rng(seed)
    v1 = np.repeat(np.linspace(30, 96, PLAIN), REGIONS).reshape(PLAIN, REGIONS)
    v1 = np.concatenate([v1, np.full((DAMAGED, REGIONS), 95.0)]) + rng.normal(0, 0.3, (32, 4))
    labels = np.stack([v1, v1 - 3, v1 / 3 + 15, v1 / 25 + 1], -1)
    labels[PLAIN, :, 2] = 35.0  # v1 of 60
    labels[PLAIN + 1, :, 3] = 3.0  # v1 of 50
    regions = torch.from_numpy(labels.astype(np.float32))
    frames = regions.clone()
    frames[..., 3] = torch.nan  # of regions alone
    rows = [{"score": 50.0} for _ in range(PLAIN)]
    damage = {"name": "flicker", "strength": 0.5}
    rows += [{"score": 95.0, "attack": damage} for _ in range(DAMAGED)]  # type: ignore[dict-item]
    return Shard(
        f"s{seed}", f"s{seed}", "VMAF v1.0.16", rows, pixels(rng, 32, REGIONS),
        reference=pixels(rng, REGIONS), region_labels=regions, frame_labels=frames, labels=NAMES,
        canvas=(1920, 1080), distances=(1,) * REGIONS, places=(0, 0, 9, 9),
    )  # fmt: skip


SHARDS = [measured(1), measured(2)]
FUSED = label_of("panel", ("xpsnr", "fdim"), SHARDS)


def test_a_measured_label_is_its_column() -> None:
    label, whole = label_of("v0.6.1", (), SHARDS), SHARDS[0]
    assert whole.region_labels is not None and whole.frame_labels is not None
    assert torch.equal(label.values(whole.region_labels, NAMES), whole.region_labels[..., 1])
    assert torch.equal(label.of_frames(whole), whole.frame_labels[..., 1])
    assert label.text == "VMAF v0.6.1" and label.judges == ["v0.6.1"]
    with pytest.raises(InputError, match="no label 'neg', only v1, v0.6.1, xpsnr, fdim; make"):
        Label("neg").of_frames(whole)
    with pytest.raises(InputError, match="no label 'cvvdp'"):
        label_of("panel", ("cvvdp",), SHARDS)


def test_a_fused_label_is_lower_where_one_judge_sees_damage() -> None:
    for whole in SHARDS:
        assert whole.region_labels is not None
        fused, v1 = FUSED.values(whole.region_labels, NAMES), whole.region_labels[..., 0]
        assert fused.dtype == torch.float32
        assert (v1 - fused)[:PLAIN].mean() < 1 and (fused <= v1 + 1e-4).all()
        assert 50 < fused[PLAIN].mean() < 70 and 40 < fused[PLAIN + 1].mean() < 60


def test_what_judges_of_regions_see_lowers_the_label_of_frames() -> None:
    whole = SHARDS[0]
    assert whole.frame_labels is not None
    fused, v1 = FUSED.of_frames(whole), whole.frame_labels[..., 0]
    assert (v1 - fused)[:PLAIN].mean() < 1
    # that of whole frames sees the first, that of regions the second
    assert 50 < fused[PLAIN].mean() < 70 and 40 < fused[PLAIN + 1].mean() < 60
    without = replace(whole, labels=(*NAMES[:3], "cvvdp"))
    assert FUSED.of_frames(without)[PLAIN + 1].mean() > 90


def test_targets_are_of_about_one_unit() -> None:
    whole = SHARDS[0]
    found = with_targets(whole, Label("v1"), ("xpsnr", "fdim"))
    assert found.labels == ("v1", "xpsnr", "fdim")
    assert whole.region_labels is not None and found.region_labels is not None
    expected = (whole.region_labels[..., [0, 2, 3]] - torch.tensor([0, 20, 1])) / torch.tensor(
        [100, 30, 4]
    )
    torch.testing.assert_close(found.region_labels, expected)
    assert found.frame_labels is not None and found.frame_labels[..., 2].isnan().all()
    torch.testing.assert_close(found.frame_labels[..., :2], expected[..., :2])
    fused = with_targets(whole, FUSED, ())
    assert fused.frame_labels is not None and fused.frame_labels.shape == (32, 4, 1)
    torch.testing.assert_close(fused.frame_labels[..., 0], FUSED.of_frames(whole) / 100)
    with pytest.raises(InputError, match="no label 'cambi'"):
        with_targets(whole, Label("v1"), ("cambi",))


def test_weights_say_what_their_label_is() -> None:
    assert FUSED.text == "VMAF v1, lowered by XPSNR, FDIM"
    assert FUSED.judges == ["v1", "xpsnr", "fdim"] and FUSED.panel is not None
    about = {"label": FUSED.text, "panel": FUSED.panel.to_json()}
    assert label_of_weights(about, "w") == FUSED
    assert label_of_weights({"label": "VMAF v0.6.1"}, "w") == Label("v0.6.1")
    assert label_of_weights({"label": "MOS of people"}, "w") is None
    with pytest.raises(InputError, match="the panel of w is no JSON"):
        label_of_weights({"panel": "{"}, "w")
