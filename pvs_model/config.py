"""Settings, as frozen records: what a network is made of, and how it is run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

#: From this slice thickness (the largest voxel spacing, mm) on, the 2D network is used.
THICK_SLICE_MM = 2.5


ARCHITECTURES = ("graph_fusion", "dynunet")


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that decides the shape of the graph-fusion network (docs/method.md).

    The switches build the ablation of Table 2 of the paper: backbone, + text, + graph,
    + cross-attention, + fusion. Without ``text`` the three others cannot be on.
    """

    architecture: str = "graph_fusion"  # or "dynunet", nnU-Net's network (nets/peers.py)
    dimensions: int = 3  # 2 or 3
    sequences: int = 3  # T1w, T2w, FLAIR
    neighbour_slices: int = 1  # 2D only: slices stacked per sequence (3: one on each side)
    widths: tuple[int, ...] = (16, 48, 96, 192)  # channels per level of the nested U-Net
    text_width: int = 384  # width of the text encoder's token embeddings
    nodes: int = 10  # K of equations (1, 2)
    neighbours: int = 5  # nearest nodes joined to each feature, equation (6)
    heads: int = 4  # of the multimodal cross-attention
    text: bool = True
    graph: bool = True
    cross_attention: bool = True
    fusion: bool = True
    graph_values: str = "other"  # equation (3): "other" = values of the other modality; "own" = as printed

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {ARCHITECTURES}, got {self.architecture!r}")
        if self.architecture != "graph_fusion" and self.text:
            raise ValueError(f"{self.architecture} takes no text")
        if self.dimensions not in (2, 3):
            raise ValueError(f"dimensions must be 2 or 3, got {self.dimensions}")
        if self.neighbour_slices != 1 and self.dimensions == 3:
            raise ValueError("neighbour_slices belongs to the 2D network")
        if self.neighbour_slices % 2 == 0:
            raise ValueError(f"neighbour_slices must be odd, got {self.neighbour_slices}")
        if self.graph_values not in ("other", "own"):
            raise ValueError(f"graph_values must be 'other' or 'own', got {self.graph_values!r}")
        if not self.text and (self.graph or self.cross_attention or self.fusion):
            raise ValueError("graph, cross_attention and fusion need text")

    @property
    def in_channels(self) -> int:
        return self.sequences * self.neighbour_slices

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> NetworkConfig:
        values = json.loads(text)
        values["widths"] = tuple(values["widths"])
        return NetworkConfig(**values)


NETWORK_3D = NetworkConfig()
NETWORK_2D = NetworkConfig(dimensions=2, neighbour_slices=3, widths=(32, 64, 128, 256))
#: nnU-Net's network as a peer, with as many levels as patches of 48 voxels allow.
DYNUNET_3D = NetworkConfig(
    architecture="dynunet", widths=(32, 64, 128, 256, 320), text=False, graph=False, cross_attention=False, fusion=False
)
DYNUNET_2D = dataclasses.replace(DYNUNET_3D, dimensions=2, neighbour_slices=3, widths=(32, 64, 128, 256, 512, 512))

#: What ``train --network`` offers.
NETWORKS = {"3d": NETWORK_3D, "2d": NETWORK_2D, "dynunet-3d": DYNUNET_3D, "dynunet-2d": DYNUNET_2D}
