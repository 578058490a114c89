"""Instance normalisation in place of the batch normalisation of published networks."""

from __future__ import annotations

from torch import Tensor, nn


class SingleVoxelInstanceNorm2d(nn.InstanceNorm2d):
    """Instance normalisation that accepts a single voxel: the result is the bias."""

    def forward(self, input: Tensor) -> Tensor:
        """See ``nn.InstanceNorm2d``."""
        return _normalise_one_voxel(input, self) if input[0, 0].numel() == 1 else super().forward(input)


class SingleVoxelInstanceNorm3d(nn.InstanceNorm3d):
    """Instance normalisation that accepts a single voxel: the result is the bias."""

    def forward(self, input: Tensor) -> Tensor:
        """See ``nn.InstanceNorm3d``."""
        return _normalise_one_voxel(input, self) if input[0, 0].numel() == 1 else super().forward(input)


def _normalise_one_voxel(feature: Tensor, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> Tensor:
    centred = feature - feature
    if norm.weight is None or norm.bias is None:
        return centred
    shape = (1, -1, *[1] * (feature.ndim - 2))
    return (centred * norm.weight.view(shape) + norm.bias.view(shape)).to(feature.dtype)


def use_instance_norms(net: nn.Module) -> None:
    """Replaces batch normalisation by instance normalisation, and makes all of it accept a single voxel.

    A batch of one or two windows is too small for batch normalisation. The lowest level of a deep network has one voxel
    in a small patch, which torch rejects; nnU-Net avoids this by larger patches.
    """
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            is_2d = isinstance(child, (nn.BatchNorm2d, nn.InstanceNorm2d))
            norm = SingleVoxelInstanceNorm2d if is_2d else SingleVoxelInstanceNorm3d
            if isinstance(child, (nn.BatchNorm2d, nn.BatchNorm3d)):
                setattr(parent, name, norm(child.num_features, affine=True))
            elif isinstance(child, (nn.InstanceNorm2d, nn.InstanceNorm3d)):
                child.__class__ = norm
