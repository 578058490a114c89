"""Networks that MONAI has, behind the forward that training and inference know."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import UNETR, AttentionUnet, BasicUNet, BasicUNetPlusPlus, MedNeXt, SegResNet, SwinUNETR
from torch import Tensor, nn

from pvs_model.config import NetworkConfig
from pvs_model.nets.model import RARE_LOGIT, SegmentationNet


class LibraryNet(SegmentationNet):
    """A network of MONAI's as a ``SegmentationNet``."""

    def __init__(self, config: NetworkConfig, net: nn.Module, multiple: int, any_size: bool = True) -> None:
        """
        Args:
            config: what ``net`` was made from.
            net: from (B, input_channels, *spatial) to logits, or to a list of them, full resolution first.
            multiple: that sides must have.
            any_size: as ``SegmentationNet.any_size``.
        """
        super().__init__()
        self.config, self.net = config, net
        self.multiple, self.any_size = multiple, any_size
        self.least = multiple
        with_instance_norms(net)

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """As ``SegmentationNet.segment``."""
        answer = self.net(image)
        scales: list[Tensor] = [answer] if isinstance(answer, Tensor) else list(answer)
        return scales if self.training else scales[0]


class ViT(LibraryNet):
    """UNETR, whose positions are interpolated where a window has another size than it was built for."""

    net: UNETR

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """As ``SegmentationNet.segment``."""
        embedding = self.net.vit.patch_embedding
        grid = [int(side) // self.multiple for side in image.shape[2:]]
        built, positions = list(self.net.feat_size), embedding.position_embeddings
        if grid == built:
            return super().segment(image, text, text_mask)
        # (1, tokens, hidden) -> (1, hidden, *grid), as an image that is made larger or smaller, and back
        as_image = positions.transpose(1, 2).unflatten(2, built)
        mode = "trilinear" if self.config.dimensions == 3 else "bilinear"
        fitted = nn.functional.interpolate(as_image.float(), size=grid, mode=mode).flatten(2).transpose(1, 2)
        shape = self.net.proj_view_shape
        try:
            del embedding.position_embeddings
            embedding.position_embeddings = fitted
            self.net.proj_view_shape = [*grid, shape[-1]]
            return super().segment(image, text, text_mask)
        finally:
            del embedding.position_embeddings
            embedding.position_embeddings = positions
            self.net.proj_view_shape = shape


class PatientNorm2d(nn.InstanceNorm2d):
    """Instance normalisation that takes a single voxel, too: what is left of it is the bias."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.InstanceNorm2d``."""
        return _of_one_voxel(input, self) if input[0, 0].numel() == 1 else super().forward(input)


class PatientNorm3d(nn.InstanceNorm3d):
    """As ``PatientNorm2d``, in 3D."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.InstanceNorm3d``."""
        return _of_one_voxel(input, self) if input[0, 0].numel() == 1 else super().forward(input)


def _of_one_voxel(feature: Tensor, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> Tensor:
    silent = feature - feature
    if norm.weight is None or norm.bias is None:
        return silent
    shape = (1, -1, *[1] * (feature.ndim - 2))
    return (silent * norm.weight.view(shape) + norm.bias.view(shape)).to(feature.dtype)


def with_instance_norms(net: nn.Module) -> None:
    """Put instance normalisation in the place of every batch normalisation.

    And let it take one voxel, which is all that the lowest level of a deep network has of a small patch: PyTorch
    refuses that, nnU-Net avoids it by larger patches.
    """
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            flat = isinstance(child, (nn.BatchNorm2d, nn.InstanceNorm2d))
            kind = PatientNorm2d if flat else PatientNorm3d
            if isinstance(child, (nn.BatchNorm2d, nn.BatchNorm3d)):
                setattr(parent, name, kind(child.num_features, affine=True))
            elif isinstance(child, (nn.InstanceNorm2d, nn.InstanceNorm3d)):
                child.__class__ = kind


def starting_rare(heads: Sequence[nn.Module]) -> None:
    """Start the biases of the last convolution of each head at the share of PVS."""
    for head in heads:
        last = [module for module in head.modules() if isinstance(module, nn.modules.conv._ConvNd)][-1]
        assert last.bias is not None
        nn.init.constant_(last.bias, RARE_LOGIT)


def unet(config: NetworkConfig) -> SegmentationNet:
    """The U-Net of Table 2 of mfns_de_t2_2024 (Falk et al. 2019): two convolutions per level, five levels."""
    net = BasicUNet(config.dimensions, config.input_channels, 1, features=(*config.widths, config.widths[0]))
    starting_rare([net.final_conv])
    return LibraryNet(config, net, 16)


def unet_plus_plus(config: NetworkConfig) -> SegmentationNet:
    """U-Net++ (Zhou et al. 2018) as MONAI has it: five levels, all nodes of equal rank, one head."""
    net = BasicUNetPlusPlus(config.dimensions, config.input_channels, 1, features=(*config.widths, config.widths[0]))
    # Without deep supervision three of its four heads are never asked.
    for unused in ("final_conv_0_1", "final_conv_0_2", "final_conv_0_3"):
        setattr(net, unused, nn.Identity())
    starting_rare([net.final_conv_0_4])
    return _PlusPlus(config, net, 16)


class _PlusPlus(LibraryNet):
    """MONAI's network returns a list at all times; with the unused heads gone, only its last node is an answer."""

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """As ``SegmentationNet.segment``."""
        answer: Tensor = self.net(image)[-1]
        return [answer] if self.training else answer


def attention_unet(config: NetworkConfig) -> SegmentationNet:
    """Attention U-Net (Oktay et al. 2018)."""
    levels = len(config.widths)
    net = AttentionUnet(config.dimensions, config.input_channels, 1, config.widths, [2] * (levels - 1))
    starting_rare([net.model[-1]])
    return LibraryNet(config, net, 2 ** (levels - 1))


def segresnet(config: NetworkConfig) -> SegmentationNet:
    """SHIVA's residual U-Net as far as epvs_challenge_2024 describes it: nine stages of two convolutions, Swish.

    Widths are left open there.
    """
    levels = len(config.widths)
    net = SegResNet(
        config.dimensions, config.widths[0], config.input_channels, 1, act="swish",
        blocks_down=(1,) * levels, blocks_up=(1,) * (levels - 1),
    )  # fmt: skip
    starting_rare([net.conv_final])
    return LibraryNet(config, net, 2 ** (levels - 1))


def unetr(config: NetworkConfig) -> SegmentationNet:
    """UNETR (Hatamizadeh et al. 2022). ``widths``: of the convolutions at full resolution, and of the tokens.

    Of the transformer cross_modal_graph_learning_2025 says nothing; half of the original's width trains on a CPU.
    """
    first, hidden = config.widths[0], config.widths[-1]
    net = UNETR(
        config.input_channels, 1, img_size=64, feature_size=first, hidden_size=hidden, mlp_dim=4 * hidden,
        num_heads=hidden // 64, spatial_dims=config.dimensions,
    )  # fmt: skip
    for block in net.vit.blocks:
        block.norm_cross_attn = nn.Identity()  # never used: there is no second modality
    starting_rare([net.out])
    return ViT(config, net, 16, any_size=False)


def swin_unetr(config: NetworkConfig) -> SegmentationNet:
    """Swin UNETR (Hatamizadeh et al. 2022), of HufsAIM and of the comparison in cross_modal_graph_learning_2025."""
    net = SwinUNETR(config.input_channels, 1, feature_size=config.widths[0], spatial_dims=config.dimensions)
    starting_rare([net.out])
    return LibraryNet(config, net, 32, any_size=False)


def mednext(config: NetworkConfig) -> SegmentationNet:
    """MedNeXt (Roy et al. 2023), size S with kernels of 3, deeply supervised: of BIG_AEHRC, the challenge's winner.

    Its size and final kernel are left open in epvs_challenge_2024. UpKern, which grows trained kernels from 3 to 5,
    is not done here.
    """
    net = MedNeXt(
        config.dimensions, config.widths[0], config.input_channels, 1, kernel_size=3, deep_supervision=True
    )
    starting_rare([net.out_0, *net.out_blocks])
    made = LibraryNet(config, net, 16)
    made.least = 32  # its group norms take no single voxel
    return made


