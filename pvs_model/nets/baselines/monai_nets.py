"""Networks of MONAI behind the interface ``SegmentationNet``."""

from __future__ import annotations

from monai.networks.nets import UNETR, AttentionUnet, BasicUNet, BasicUNetPlusPlus, MedNeXt, SegResNet, SwinUNETR
from torch import Tensor, nn

from pvs_model.config import NetworkConfig
from pvs_model.nets.base import SegmentationNet, init_bias_to_prior
from pvs_model.nets.baselines.norms import use_instance_norms


class MonaiNet(SegmentationNet):
    """A network of MONAI as a ``SegmentationNet``."""

    def __init__(
        self, config: NetworkConfig, net: nn.Module, size_divisor: int, supports_dynamic_shape: bool = True
    ) -> None:
        """
        Args:
            config: Configuration that ``net`` was built from.
            net: Network from (B, input_channels, *spatial) to logits, or to a list of them, full resolution first.
            size_divisor: See ``SegmentationNet``.
            supports_dynamic_shape: See ``SegmentationNet``.
        """
        super().__init__()
        self.config, self.net = config, net
        self.size_divisor, self.supports_dynamic_shape = size_divisor, supports_dynamic_shape
        self.min_size = size_divisor
        use_instance_norms(net)

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """See ``SegmentationNet.segment``."""
        logits = self.net(image)
        scales: list[Tensor] = [logits] if isinstance(logits, Tensor) else list(logits)
        return scales if self.training else scales[0]


class InterpolatedUNETR(MonaiNet):
    """UNETR whose position embeddings are interpolated for windows of another size than it was built for."""

    net: UNETR

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """See ``SegmentationNet.segment``."""
        embedding = self.net.vit.patch_embedding
        grid = [int(size) // self.size_divisor for size in image.shape[2:]]
        built_grid, positions = list(self.net.feat_size), embedding.position_embeddings
        if grid == built_grid:
            return super().segment(image, text, text_mask)
        # (1, tokens, hidden) -> (1, hidden, *grid), interpolated like an image, and back
        as_image = positions.transpose(1, 2).unflatten(2, built_grid)
        mode = "trilinear" if self.config.dimensions == 3 else "bilinear"
        resized = nn.functional.interpolate(as_image.float(), size=grid, mode=mode).flatten(2).transpose(1, 2)
        shape = self.net.proj_view_shape
        try:
            del embedding.position_embeddings
            embedding.position_embeddings = resized
            self.net.proj_view_shape = [*grid, shape[-1]]
            return super().segment(image, text, text_mask)
        finally:
            del embedding.position_embeddings
            embedding.position_embeddings = positions
            self.net.proj_view_shape = shape


def unet(config: NetworkConfig) -> SegmentationNet:
    """Builds the U-Net of Table 2 of Cai et al. 2024 (Falk et al. 2019): two convolutions per level, five levels."""
    net = BasicUNet(config.dimensions, config.input_channels, 1, features=(*config.widths, config.widths[0]))
    init_bias_to_prior(net.final_conv)
    return MonaiNet(config, net, 16)


def unet_plus_plus(config: NetworkConfig) -> SegmentationNet:
    """Builds U-Net++ (Zhou et al. 2018) in MONAI's version: five levels, one head."""
    net = BasicUNetPlusPlus(config.dimensions, config.input_channels, 1, features=(*config.widths, config.widths[0]))
    # Without deep supervision three of its four heads are unused.
    for unused in ("final_conv_0_1", "final_conv_0_2", "final_conv_0_3"):
        setattr(net, unused, nn.Identity())
    init_bias_to_prior(net.final_conv_0_4)
    return _UNetPlusPlus(config, net, 16)


class _UNetPlusPlus(MonaiNet):
    """MONAI's U-Net++, which always returns a list; without the unused heads only its last element are logits."""

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """See ``SegmentationNet.segment``."""
        logits: Tensor = self.net(image)[-1]
        return [logits] if self.training else logits


def attention_unet(config: NetworkConfig) -> SegmentationNet:
    """Builds Attention U-Net (Oktay et al. 2018)."""
    levels = len(config.widths)
    net = AttentionUnet(config.dimensions, config.input_channels, 1, config.widths, [2] * (levels - 1))
    init_bias_to_prior(net.model[-1])
    return MonaiNet(config, net, 2 ** (levels - 1))


def segresnet(config: NetworkConfig) -> SegmentationNet:
    """Builds SHIVA's residual U-Net as the challenge paper describes it: nine stages of two convolutions, Swish.

    The paper leaves the widths open.
    """
    levels = len(config.widths)
    net = SegResNet(
        config.dimensions, config.widths[0], config.input_channels, 1, act="swish",
        blocks_down=(1,) * levels, blocks_up=(1,) * (levels - 1),
    )  # fmt: skip
    init_bias_to_prior(net.conv_final)
    return MonaiNet(config, net, 2 ** (levels - 1))


def unetr(config: NetworkConfig) -> SegmentationNet:
    """Builds UNETR (Hatamizadeh et al. 2022). ``widths``: channels at full resolution, and of the tokens.

    Chen et al. 2025 do not describe the transformer; half of the original width can be trained on a CPU.
    """
    first, hidden = config.widths[0], config.widths[-1]
    net = UNETR(
        config.input_channels, 1, img_size=64, feature_size=first, hidden_size=hidden, mlp_dim=4 * hidden,
        num_heads=hidden // 64, spatial_dims=config.dimensions,
    )  # fmt: skip
    for block in net.vit.blocks:
        block.norm_cross_attn = nn.Identity()  # unused: there is no second modality
    init_bias_to_prior(net.out)
    return InterpolatedUNETR(config, net, 16, supports_dynamic_shape=False)


def swin_unetr(config: NetworkConfig) -> SegmentationNet:
    """Builds Swin UNETR (Hatamizadeh et al. 2022), as in HufsAIM and in the comparison of Chen et al. 2025."""
    net = SwinUNETR(config.input_channels, 1, feature_size=config.widths[0], spatial_dims=config.dimensions)
    init_bias_to_prior(net.out)
    return MonaiNet(config, net, 32, supports_dynamic_shape=False)


def mednext(config: NetworkConfig) -> SegmentationNet:
    """Builds MedNeXt (Roy et al. 2023), size S, kernel 3, deeply supervised, as in BIG_AEHRC, the challenge's winner.

    The challenge paper leaves size and final kernel open. UpKern, which enlarges trained kernels from 3 to 5, is not
    done.
    """
    net = MedNeXt(config.dimensions, config.widths[0], config.input_channels, 1, kernel_size=3, deep_supervision=True)
    for head in (net.out_0, *net.out_blocks):
        init_bias_to_prior(head)
    network = MonaiNet(config, net, 16)
    network.min_size = 32  # group normalisation rejects a single voxel
    return network
