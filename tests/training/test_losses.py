"""The loss by hand: voxels that are ignored, labels and masks of coarser scales, and the PVS fraction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pvs_model.training.batch import UNKNOWN
from pvs_model.training.config import LOSSES
from pvs_model.training.losses import ENTROPIES, PVS_FRACTION_WEIGHT, DeepSupervision


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(logit: float, label: float) -> float:
    return -label * math.log(sigmoid(logit)) - (1 - label) * math.log(1 - sigmoid(logit))


def dice_ce(logits: list[float], labels: list[float]) -> float:
    """Dice (smoothed by 1) + mean cross-entropy of the voxels that are looked at."""
    p = [sigmoid(x) for x in logits]
    dice = 1 - (2 * sum(a * y for a, y in zip(p, labels, strict=True)) + 1) / (sum(p) + sum(labels) + 1)
    return dice + sum(map(cross_entropy, logits, labels)) / max(1, len(logits))


def target_of(label: Tensor, ignore: Tensor | None = None, pvs_fraction: Tensor | None = None) -> Tensor:
    """Target (B, 3, *spatial) from maps (B, 1, *spatial)."""
    ignore = torch.zeros_like(label) if ignore is None else ignore
    pvs_fraction = torch.full_like(label, UNKNOWN) if pvs_fraction is None else pvs_fraction
    return torch.cat([label, ignore, pvs_fraction], 1)


def line(*values: float) -> Tensor:
    return torch.tensor(values).reshape(1, 1, 1, -1)


# ---- Dice and cross-entropy -------------------------------------------------------------------


def test_top_k_takes_the_hardest_tenth_by_hand() -> None:
    # 20 voxels: the mean of the two largest entropies, found voxel by voxel, in place of the mean of all.
    logits = [2.0, -1.0, 0.5, -3.0] + [-4.0] * 16
    labels = [1.0, 0.0, 0.0, 1.0] + [0.0] * 16
    entropy = sorted(math.log(1 + math.exp(-x if y else x)) for x, y in zip(logits, labels, strict=True))
    expected = dice_ce(logits, labels) - sum(entropy) / 20 + (entropy[-1] + entropy[-2]) / 2
    shape = (2, 1, 2, 5)  # over the batch, as nnU-Net does
    loss = DeepSupervision("dice-topk")
    value = loss([torch.tensor(logits).reshape(shape)], torch.tensor(labels).reshape(shape))
    assert float(value) == pytest.approx(expected, abs=1e-6)
    one = loss([torch.tensor([2.0]).reshape(1, 1, 1, 1)], torch.ones(1, 1, 1, 1))
    assert float(one) == pytest.approx(dice_ce([2.0], [1.0]), abs=1e-6), "at least one voxel is taken"


def test_there_is_no_other_loss() -> None:
    with pytest.raises(ValueError, match="dice-topk"):
        DeepSupervision("focal")


def test_the_loss_of_one_scale_by_hand() -> None:
    logits, labels = [2.0, -1.0, 0.5, -3.0], [1.0, 0.0, 0.0, 1.0]
    value = DeepSupervision()([torch.tensor(logits).reshape(1, 1, 2, 2)], torch.tensor(labels).reshape(1, 1, 2, 2))
    assert float(value) == pytest.approx(dice_ce(logits, labels), abs=1e-6)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_coarser_scales_weigh_half_and_keep_a_single_voxel(dimensions: int) -> None:
    label = torch.zeros(1, 1, *[4] * dimensions)
    label[(0, 0, *[3] * dimensions)] = 1.0
    logits = [torch.full((1, 1, *[4 // 2**s] * dimensions), 0.3 * (s + 1)) for s in range(3)]
    expected = 0.0
    for scale, weight in enumerate((1.0, 0.5, 0.25)):
        count = (4 // 2**scale) ** dimensions
        # One voxel of the label at every scale: of 4^d, of 2^d and of 1.
        expected += weight * dice_ce([0.3 * (scale + 1)] * count, [1.0] + [0.0] * (count - 1))
    assert float(DeepSupervision()(logits, label)) == pytest.approx(expected / 1.75, abs=1e-6)


def test_dice_is_taken_over_the_batch() -> None:
    logits = torch.tensor([[4.0, 4.0], [-4.0, -4.0]]).reshape(2, 1, 1, 2)
    labels = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).reshape(2, 1, 1, 2)
    assert float(DeepSupervision()([logits], labels)) == pytest.approx(dice_ce([4, 4, -4, -4], [1, 1, 0, 0]), abs=1e-6)


def test_a_sample_of_weight_2_counts_as_two_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, 4, generator=generator)
    target = (torch.rand(2, 3, 4, 4, 4, generator=generator) > 0.7).float()
    target[:, 1] *= 1 - target[:, 0]
    coarse = torch.randn(2, 1, 2, 2, 2, generator=generator)
    twice = [0, 0, 1]
    loss = DeepSupervision()
    weighted = loss([logits, coarse], target, torch.tensor([2.0, 1.0]))
    assert float(weighted) == pytest.approx(float(loss([logits[twice], coarse[twice]], target[twice])), rel=1e-5)
    assert float(loss([logits, coarse], target)) != pytest.approx(float(weighted), rel=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_float32_and_its_gradient_points_to_the_label(name: str) -> None:
    logits = [torch.zeros(1, 1, 4, 4, 4, dtype=torch.bfloat16, requires_grad=True)]
    label = (torch.arange(64).reshape(1, 1, 4, 4, 4) < 9).float()
    loss = DeepSupervision(name)(logits, label)
    loss.backward()
    assert loss.dtype == torch.float32 and logits[0].grad is not None
    assert (logits[0].grad[label > 0] < 0).all() and (logits[0].grad[label == 0] > 0).all()


# ---- voxels that are ignored ---------------------------------------------------------------------------------------


def test_ignored_voxels_count_neither_as_background_nor_as_pvs() -> None:
    logits = [2.0, -1.0, 0.5, -3.0, 1.5, -0.2]
    labels = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    ignore = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    kept = [k for k in range(6) if not ignore[k]]
    expected = dice_ce([logits[k] for k in kept], [labels[k] for k in kept])
    value = DeepSupervision()([line(*logits)], target_of(line(*labels), line(*ignore)))
    assert float(value) == pytest.approx(expected, abs=1e-6)


def test_a_label_alone_and_an_empty_mask_are_the_same() -> None:
    logits, label = torch.randn(2, 1, 8, 8), (torch.rand(2, 1, 8, 8) < 0.2).float()
    for name in LOSSES:
        loss = DeepSupervision(name)
        assert float(loss([logits], label)) == float(loss([logits], target_of(label)))


@pytest.mark.parametrize("name", LOSSES)
def test_there_is_no_gradient_where_voxels_are_ignored(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(2, 1, 4, 4, 4, generator=generator) < 0.2).float()
    ignore = (torch.rand(2, 1, 4, 4, 4, generator=generator) < 0.4).float() * (1 - label)
    first = torch.randn(2, 1, 4, 4, 4, generator=generator)
    logits = [first.clone().requires_grad_(), torch.zeros(2, 1, 2, 2, 2)]
    value = DeepSupervision(name)(logits, target_of(label, ignore))
    value.backward()
    gradient = logits[0].grad
    assert gradient is not None and not gradient[ignore > 0].any()
    if name == "dice-ce":
        assert gradient[ignore == 0].all()
    # What is predicted there makes no difference.
    other = [torch.where(ignore > 0, first + 9, first), logits[1]]
    again = DeepSupervision(name)(other, target_of(label, ignore))
    assert float(again) == pytest.approx(float(value.detach()), abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_where_everything_is_ignored_there_is_no_loss(name: str) -> None:
    logits = torch.randn(1, 1, 4, 4, requires_grad=True)
    nothing, everything = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    value = DeepSupervision(name)([logits], target_of(nothing, everything))
    value.backward()
    # As of a batch without any voxel: nothing to find, nothing found.
    assert float(value.detach()) == pytest.approx(dice_ce([], []), abs=1e-6) == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None and not logits.grad.any()


# ---- coarser scales ------------------------------------------------------------------------------------------------


def test_coarser_scales_ignore_what_holds_an_ignored_voxel_and_no_label() -> None:
    # Four pairs: a label, a label beside an ignored voxel, an ignored voxel, nothing.
    label, ignore = (torch.zeros(1, 1, 2, 8) for _ in range(2))
    label[..., 0, 0] = label[..., 1, 3] = 1.0
    ignore[..., 0, 2] = ignore[..., 1, 5] = 1.0
    fine = torch.linspace(-2.0, 2.0, 16).reshape(1, 1, 2, 8)
    coarse = [0.7, -0.4, 3.0, -1.1]
    kept = ignore.flatten() == 0
    full = dice_ce(fine.flatten()[kept].tolist(), label.flatten()[kept].tolist())
    half = dice_ce([coarse[0], coarse[1], coarse[3]], [1.0, 1.0, 0.0])
    value = DeepSupervision()([fine, torch.tensor(coarse).reshape(1, 1, 1, 4)], target_of(label, ignore))
    assert float(value) == pytest.approx((full + half / 2) / 1.5, abs=1e-6)


# ---- PVS fraction ------------------------------------------------------------------------------------------------


def with_fluid(pvs: Tensor, pvs_fraction: Tensor) -> Tensor:
    return torch.cat([pvs, pvs_fraction], 1)


def test_the_fluid_fraction_by_hand() -> None:
    pvs, pvs_fraction = [2.0, -1.0, 0.5, -3.0], [-0.5, 1.0, -2.0, 0.3]
    labels, shares = [1.0, 0.0, 0.0, 1.0], [0.8, 0.1, UNKNOWN, 0.0]
    target = target_of(line(*labels), line(0, 1, 0, 0), line(*shares))
    kept = [0, 2, 3]  # pvs_fraction is known where labels are ignored, and the other way round
    expected = dice_ce([pvs[k] for k in kept], [labels[k] for k in kept])
    expected += PVS_FRACTION_WEIGHT * sum(cross_entropy(pvs_fraction[k], shares[k]) for k in (0, 1, 3)) / 3
    value = DeepSupervision()([with_fluid(line(*pvs), line(*pvs_fraction))], target)
    assert float(value) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.38, 0.9])
def test_the_loss_is_least_at_the_true_fraction(share: float) -> None:
    target = target_of(line(0.0, 0.0), pvs_fraction=line(share, share))

    def at(p: float) -> float:
        logit = math.log(p / (1 - p))
        return float(DeepSupervision()([with_fluid(line(0.0, 0.0), line(logit, logit))], target))

    grid = [k / 100 for k in range(1, 100)]
    assert min(grid, key=at) == pytest.approx(share, abs=0.006)
    # Also in expectation: a voxel that is 0 in two cases and 1 in the third is a third.
    thirds = target_of(line(0.0, 0.0, 0.0), pvs_fraction=line(0.0, 0.0, 1.0))

    def expected(p: float) -> float:
        logit = math.log(p / (1 - p))
        return float(DeepSupervision()([with_fluid(line(0, 0, 0), line(logit, logit, logit))], thirds))

    assert min(grid, key=expected) == pytest.approx(1 / 3, abs=0.006)


def test_voxels_of_unknown_fluid_have_no_gradient() -> None:
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    pvs_fraction = torch.rand(2, 1, 4, 4)
    pvs_fraction[1] = UNKNOWN  # a labelled case beside a simulated one
    DeepSupervision()([logits], target_of(torch.zeros(2, 1, 4, 4), pvs_fraction=pvs_fraction)).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].all() and not logits.grad[1, 1].any()
    assert logits.grad[:, 0].all(), "labels are known in both"
    # No voxel is known: the loss is that of the labels.
    nowhere = target_of(torch.zeros(2, 1, 4, 4))
    alone = DeepSupervision()([logits[:, :1]], nowhere)
    assert float(DeepSupervision()([logits], nowhere).detach()) == float(alone.detach())


def test_networks_of_one_output_do_not_look_at_the_fluid() -> None:
    logits = [torch.randn(1, 1, 8, 8), torch.randn(1, 1, 4, 4)]
    label = (torch.rand(1, 1, 8, 8) < 0.2).float()
    values = [
        DeepSupervision()(logits, target_of(label, pvs_fraction=torch.full_like(label, f))) for f in (0.0, 0.7, UNKNOWN)
    ]
    assert float(values[0]) == float(values[1]) == float(values[2]) == float(DeepSupervision()(logits, label))


def test_a_label_alone_teaches_nothing_about_the_fluid() -> None:
    logits = torch.randn(1, 2, 8, 8, requires_grad=True)
    DeepSupervision()([logits], torch.ones(1, 1, 8, 8)).backward()
    assert logits.grad is not None and logits.grad[:, 0].all() and not logits.grad[:, 1].any()


def test_every_loss_has_its_term() -> None:
    assert set(ENTROPIES) == set(LOSSES)
