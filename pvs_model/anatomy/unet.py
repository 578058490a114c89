"""A U-Net with the parameters of MONAI's DynUNet, without MONAI, whose import takes longer than the network."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn


def _convolution(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=layer))  # named as in MONAI, so that weights fit both


class _Block(nn.Module):
    """Two convolutions, each with instance normalisation and LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(nn.Conv3d(in_channels, out_channels, 3, stride, padding=1, bias=False))
        self.conv2 = _convolution(nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False))
        self.norm1 = nn.InstanceNorm3d(out_channels, affine=True)
        self.norm2 = nn.InstanceNorm3d(out_channels, affine=True)
        self.lrelu = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, feature: Tensor) -> Tensor:
        feature = self.lrelu(self.norm1(self.conv1(feature)))
        out: Tensor = self.lrelu(self.norm2(self.conv2(feature)))
        return out


class _Upsampling(nn.Module):
    """Transposed convolution, concatenation with the encoder's feature, and a block."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.transp_conv = _convolution(nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2, bias=False))
        self.conv_block = _Block(2 * out_channels, out_channels, 1)

    def forward(self, feature: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.conv_block(torch.cat([self.transp_conv(feature), skip], 1))
        return out


class UNet(nn.Module):
    """Maps (B, in_channels, x, y, z) to (B, out_channels, x, y, z); sides are multiples of 2 ** (len(widths) - 1).

    The same function as ``monai.networks.nets.DynUNet`` with kernels of 3, strides of 2, affine instance normalisation
    and no deep supervision, with the same names of parameters and the same initialisation.

    Example:
        >>> UNet(1, 3, (4, 8))(torch.zeros(1, 1, 8, 8, 8)).shape
        torch.Size([1, 3, 8, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.input_block = _Block(in_channels, widths[0], 1)
        self.downsamples = nn.ModuleList(_Block(a, b, 2) for a, b in pairwise(widths[:-1]))
        self.bottleneck = _Block(widths[-2], widths[-1], 2)
        self.upsamples = nn.ModuleList(_Upsampling(b, a) for b, a in pairwise(widths[::-1]))
        self.output_block = nn.Sequential(OrderedDict(conv=_convolution(nn.Conv3d(widths[0], out_channels, 1))))
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        features = [self.input_block(image)]
        for block in self.downsamples:
            features.append(block(features[-1]))
        feature = self.bottleneck(features[-1])
        for block, skip in zip(self.upsamples, reversed(features), strict=True):
            feature = block(feature, skip)
        out: Tensor = self.output_block(feature)
        return out
