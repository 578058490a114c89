"""Baseline networks of other groups, trained and run by the same code as the graph-fusion network.

They read the images only; text is ignored. Each follows its paper; what the paper leaves open is stated in the
docstring and filled with the standard choice of the field. All use instance normalisation (``norms``) and heads
whose bias starts at the prevalence of PVS.
"""

from __future__ import annotations

from collections.abc import Callable

from pvs_model.config import NetworkConfig
from pvs_model.nets.base import SegmentationNet
from pvs_model.nets.baselines.ccnu import MultiscaleKernels, SeparateEncoders
from pvs_model.nets.baselines.cs2net import CS2Net
from pvs_model.nets.baselines.dynunet import NNUNet
from pvs_model.nets.baselines.gated_residual import GatedResidualUNet
from pvs_model.nets.baselines.mfns_de import MfNSDe
from pvs_model.nets.baselines.monai_nets import (
    attention_unet,
    mednext,
    segresnet,
    swin_unetr,
    unet,
    unet_plus_plus,
    unetr,
)

#: Builder of each architecture, except "graph_fusion".
BASELINES: dict[str, Callable[[NetworkConfig], SegmentationNet]] = {
    "dynunet": NNUNet,
    "unet": unet,
    "unet++": unet_plus_plus,
    "attention_unet": attention_unet,
    "segresnet": segresnet,
    "unetr": unetr,
    "swin_unetr": swin_unetr,
    "mednext": mednext,
    "mfns_de": MfNSDe,
    "cs2net": CS2Net,
    "separate_encoders": SeparateEncoders,
    "multiscale_kernels": MultiscaleKernels,
    "gated_residual": GatedResidualUNet,
}
