"""Networks of others, trained and run by the same code as ours, so that they can be compared.

Each reads the images alone: text is ignored. What a paper says of its network is built; what it leaves open is said
in the docstring, and filled with the standard choice of the field. All of them get instance normalisation where they
have batch normalisation, which a batch of one or two windows spoils, and heads that start at the share of PVS.
"""

from __future__ import annotations

from collections.abc import Callable

from pvs_model.config import NetworkConfig
from pvs_model.nets.model import SegmentationNet
from pvs_model.nets.peers.curvilinear import CS2Net
from pvs_model.nets.peers.dynunet import DynUNetPeer
from pvs_model.nets.peers.gated import GatedResidualUNet
from pvs_model.nets.peers.highlighted import MfNSDe
from pvs_model.nets.peers.library import attention_unet, mednext, segresnet, swin_unetr, unet, unet_plus_plus, unetr
from pvs_model.nets.peers.multiscale import MultiscaleKernels, SeparateEncoders

#: How each architecture is made from a config.
PEERS: dict[str, Callable[[NetworkConfig], SegmentationNet]] = {
    "dynunet": DynUNetPeer,
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
