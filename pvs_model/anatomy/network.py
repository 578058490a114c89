"""The network: MONAI's U-Net on a folded grid, one class per structure and one channel for the side; and its file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pvs_model.anatomy.regions import CLASSES
from pvs_model.errors import WeightsError

#: Working resolution in mm, isotropic.
SPACING_MM = 2.0

#: Side of the cells over which the signal of a class is local, voxels.
CELL = 16
#: Of the signal within a class, of a range of 1.
LEAST_VARIANCE = 0.03**2

CONFIG_KEY = "config"


@dataclass(frozen=True)
class AnatomyConfig:
    """Shape of the network.

    Attributes:
        widths: channels per level, the finest at twice ``SPACING_MM``.
        classes: structures and background.
        guides: channels that the U-Net hands to the borders besides the classes.
        border_width: channels of the convolution that draws borders.
    """

    widths: tuple[int, ...] = (32, 64, 112, 144)
    classes: int = CLASSES
    guides: int = 6
    border_width: int = 16

    @property
    def multiple(self) -> int:
        """What the sides of an input must be multiples of."""
        return 2 ** len(self.widths)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> AnatomyConfig:
        """Raises: TypeError, ValueError or KeyError for anything but what ``to_json`` wrote."""
        fields = json.loads(text)
        return AnatomyConfig(**{**fields, "widths": tuple(fields["widths"])})


class AnatomyNet(nn.Module):
    """An image (B, 1, x, y, z) -> logits (B, classes + 1, x, y, z): classes, then "right rather than left".

    A U-Net finds what lies where on a grid folded by two: every 2 x 2 x 2 voxels become 8 channels and every voxel
    is one of 8 channels again, so that its convolutions run on an eighth of the voxels. What it says is where classes
    may be; how bright each of them is in this very scan follows from it (``likelihoods``), and one convolution over
    both draws the borders. So no contrast has to be learnt by heart.
    """

    def __init__(self, config: AnatomyConfig) -> None:
        super().__init__()
        from monai.networks.nets import DynUNet

        self.config = config
        levels = len(config.widths)
        self.core = DynUNet(
            spatial_dims=3,
            in_channels=8,
            out_channels=8 * (config.classes + 1 + config.guides),
            kernel_size=[3] * levels,
            strides=[1] + [2] * (levels - 1),
            upsample_kernel_size=[2] * (levels - 1),
            filters=config.widths,
            norm_name=("INSTANCE", {"affine": True}),
        )
        self.borders = nn.Sequential(
            nn.Conv3d(1 + 2 * config.classes + 1 + config.guides, config.border_width, 3, padding=1),
            nn.InstanceNorm3d(config.border_width, affine=True),
            nn.LeakyReLU(0.01),
            nn.Conv3d(config.border_width, config.classes + 1, 1),
        )
        self.trust = nn.Parameter(torch.full((config.classes, 1, 1, 1), 0.7))

    def forward(self, image: Tensor) -> Tensor:
        cells = rearrange(image, "b c (x i) (y j) (z k) -> b (c i j k) x y z", i=2, j=2, k=2)
        coarse = rearrange(self.core(cells), "b (c i j k) x y z -> b c (x i) (y j) (z k)", i=2, j=2, k=2)
        classes = self.config.classes
        likelihood = likelihoods(image, coarse[:, :classes])
        fine: Tensor = self.borders(torch.cat([image.to(coarse.dtype), coarse, likelihood.to(coarse.dtype)], 1))
        logits = coarse[:, : classes + 1].float() + fine.float()
        return torch.cat([logits[:, :classes] + self.trust * likelihood, logits[:, classes:]], 1)


@torch.no_grad()
def likelihoods(image: Tensor, logits: Tensor, rounds: int = 2) -> Tensor:
    """Log-likelihood of each voxel's signal under each class, as a mixture of Gaussians fitted to this image.

    Expectation and maximisation (Ashburner and Friston 2005, doi:10.1016/j.neuroimage.2005.02.018) with the softmax of
    ``logits`` as prior. In the last round the means follow the coil's field: they are local, over ``CELL`` voxels.

    Args:
        image: (B, 1, x, y, z), 0 to 1.
        logits: (B, classes, x, y, z).
        rounds: of the fit.

    Returns:
        float32 (B, classes, x, y, z), in -6 to 6. No gradient passes.
    """
    signal, prior = image.float(), logits.float()
    volume = signal[0].numel()
    out = torch.zeros_like(prior)
    for turn in range(rounds):
        share = (prior + out).softmax(1)
        total = share.sum((2, 3, 4), keepdim=True) + 1e-4 * volume
        mean = ((share * signal).sum((2, 3, 4), keepdim=True) + 5e-5 * volume) / total
        local = mean
        if turn == rounds - 1:
            weight = F.avg_pool3d(share, CELL, ceil_mode=True)
            nearby = (F.avg_pool3d(share * signal, CELL, ceil_mode=True) + 0.02 * mean) / (weight + 0.02)
            local = F.interpolate(nearby, size=signal.shape[2:], mode="trilinear")
        off = (signal - local).square_()
        variance = ((share * off).sum((2, 3, 4), keepdim=True) + 1e-4 * volume * 0.01) / total + LEAST_VARIANCE
        out = (off.div_(-2 * variance) - 0.5 * (variance / 0.01).log()).clamp_(-6, 6)
    return out


def fill(network: AnatomyNet, tensors: Mapping[str, Tensor]) -> None:
    """Sets the parameters by their names.

    Raises:
        ValueError: when the names or the shapes are not exactly those of the network.
    """
    own = dict(network.named_parameters())
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in tensors.items()}:
        raise ValueError(f"{len(tensors)} parameters that are not those of {network.config}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def save(path: Path, network: AnatomyNet, metadata: Mapping[str, str] | None = None) -> None:
    """Writes parameters as float16 with the config in the metadata, beside the place first, then moved.

    Raises:
        WeightsError: for a parameter that is not finite in float16.
    """
    tensors = {
        name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in network.named_parameters()
    }  # not the state_dict: MONAI's network lists its blocks twice
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"{path}: expected finite parameters, found {broken[0]} (of {len(broken)}) not finite")
    partial = path.with_name(f"{path.name}.partial")
    save_file(tensors, partial, metadata={**(metadata or {}), CONFIG_KEY: network.config.to_json()})
    partial.chmod(0o644)  # safetensors leaves it to the owner alone; the container runs as another user
    os.replace(partial, path)


def load(path: Path, sha256: str | None = None, device: torch.device | str = "cpu") -> AnatomyNet:
    """Builds the network that a file describes and fills it; float32, in eval mode.

    Raises:
        WeightsError: for a file that is missing, damaged, has another checksum or is of another network.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: expected the weights of the anatomy network, found none")
    if sha256 is not None:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != sha256.lower():
            raise WeightsError(f"{path}: expected sha256 {sha256}, found {found}")
    try:
        with safe_open(path, framework="pt") as file:
            network = AnatomyNet(AnatomyConfig.from_json((file.metadata() or {})[CONFIG_KEY]))
            fill(network, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: expected the weights of an anatomy network, found {first}") from error
    return network.to(device).eval()
