"""Settings, as frozen records: what a network is made of, and how it is run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

#: From this slice thickness (the largest voxel spacing, mm) on, the 2D network is used.
THICK_SLICE_MM = 2.5
#: What each configuration is for, in words.
SLICES = {"3d": "below 2.5 mm", "2d": "of 2.5 mm or more"}


#: What ``nets.model.build`` makes: ours, and those of ``nets.peers``.
ARCHITECTURES = (
    "graph_fusion", "dynunet", "unet", "unet++", "attention_unet", "segresnet", "unetr", "swin_unetr", "mednext",
    "mfns_de", "cs2net", "separate_encoders", "multiscale_kernels", "gated_residual",
)  # fmt: skip
#: Order of an image's channels; the same names as in ``types.SEQUENCES``.
INPUTS = ("T1w", "T2w", "FLAIR")
#: Simulated subjects: many thin PVS, or few wide ones.
SUBJECTS = ("thin", "wide")
VIEWS = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that decides the shape of the graph-fusion network (docs/method.md).

    The switches build the ablation of Table 2 of the paper: backbone, + text, + graph,
    + cross-attention, + fusion. Without ``text`` the three others cannot be on.
    """

    architecture: str = "graph_fusion"  # or one of the others in ARCHITECTURES (nets/peers)
    dimensions: int = 3  # 2 or 3
    sequences: int = 3  # T1w, T2w, FLAIR
    neighbour_slices: int = 1  # 2D only: slices stacked per sequence (3: one on each side)
    inputs: tuple[str, ...] = INPUTS  # sequences that the network looks at; "-T2w": with inverted intensities
    regions: bool = False  # a further channel: 1 in basal ganglia and centrum semiovale
    view: str = ""  # 2D only: planes of thin-sliced volumes along this view; "": slices as acquired
    widths: tuple[int, ...] = (16, 48, 96, 192)  # channels per level, full resolution first
    nested_from: int = 0  # level from which rows of the encoder are nested; those above have two nodes
    fluid: bool = False  # a second output: the share of each voxel that PVS fill
    text_width: int = 384  # width of the text encoder's token embeddings
    nodes: int = 10  # K of equations (1, 2)
    neighbours: int = 5  # nearest nodes joined to each feature, equation (6)
    heads: int = 4  # of the multimodal cross-attention
    text: bool = True
    graph: bool = True
    cross_attention: bool = True
    fusion: bool = True
    guided_level: int = 1  # of the graph, attention and fusion modules: 1 = half resolution
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
        known = {*INPUTS, *(f"-{name}" for name in INPUTS)}
        if not self.inputs or not known.issuperset(self.inputs):
            raise ValueError(f"inputs must be of {sorted(known)}, got {self.inputs}")
        if self.view and (self.view not in VIEWS or self.dimensions == 3):
            raise ValueError(f"view must be one of {VIEWS} and belongs to 2D networks, got {self.view!r}")
        if not 0 <= self.nested_from < max(2, len(self.widths) - 1):
            raise ValueError(f"nested_from must be a level above the lowest of {self.widths}, got {self.nested_from}")
        if self.fluid and self.architecture != "graph_fusion":
            raise ValueError(f"{self.architecture} has no output for the fluid fraction")
        if not 0 <= self.guided_level < max(2, len(self.widths) - 1):
            raise ValueError(f"guided_level must be one above the lowest of {self.widths}, got {self.guided_level}")
        if self.graph_values not in ("other", "own"):
            raise ValueError(f"graph_values must be 'other' or 'own', got {self.graph_values!r}")
        if not self.text and (self.graph or self.cross_attention or self.fusion):
            raise ValueError("graph, cross_attention and fusion need text")

    @property
    def in_channels(self) -> int:
        """Channels of the image that the network is given."""
        return (self.sequences + self.regions) * self.neighbour_slices

    @property
    def seen_channels(self) -> int:
        """Channels that its first layer reads: those of ``inputs``, and the regions."""
        return (len(self.inputs) + self.regions) * self.neighbour_slices

    @property
    def outputs(self) -> int:
        """Channels of the network's output: PVS, and the fluid fraction where it is predicted."""
        return 2 if self.fluid else 1

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> NetworkConfig:
        values = json.loads(text)
        for name in ("widths", "inputs"):
            if name in values:  # files from before there were inputs have none
                values[name] = tuple(values[name])
        return NetworkConfig(**values)


NETWORK_3D = NetworkConfig(widths=(16, 32, 64, 128), nested_from=1, fluid=True)
NETWORK_2D = NetworkConfig(dimensions=2, neighbour_slices=3, widths=(32, 64, 128, 256), nested_from=1, fluid=True)
