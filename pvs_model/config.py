"""Configuration of the networks, the ranges they were trained on, and where weights are."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from pvs_model.types import PLANES, SEQUENCES

#: Slice thickness (largest voxel spacing, mm) from which the 2D network is used.
THICK_SLICE_MM = 2.5
#: Slices of each configuration, for messages.
SLICES = {"3d": f"below {THICK_SLICE_MM:g} mm", "2d": f"of {THICK_SLICE_MM:g} mm or more"}
#: Spacings in mm that training covers by configuration: (lowest, highest) in plane and through plane
#: (``simulation.parameters.draw_voxel``).
TRAINED_RANGE = {"3d": ((0.45, 1.25), (0.45, THICK_SLICE_MM)), "2d": ((0.34, 1.1), (THICK_SLICE_MM, 8.0))}

#: Range of standardised intensities. It includes CSF in T2w, at the upper end.
STANDARD_RANGE = (-4.0, 8.0)

#: File that lists the contents of a weights folder.
MANIFEST = "MANIFEST.json"
#: File that may be in a model uploaded to grand-challenge.org (``layouts.grand_challenge.read_sockets``).
SOCKETS = "sockets.json"
#: Where grand-challenge.org unpacks a model of its own.
MOUNTED_WEIGHTS = Path("/opt/ml/model")

#: Architectures that ``nets.model.build`` knows: ours, and those of ``nets.baselines``.
ARCHITECTURES = (
    "graph_fusion", "dynunet", "unet", "unet++", "attention_unet", "segresnet", "unetr", "swin_unetr", "mednext",
    "mfns_de", "cs2net", "separate_encoders", "multiscale_kernels", "gated_residual",
)  # fmt: skip
#: Simulated subjects: many thin PVS, or few wide ones.
SUBJECTS = ("thin", "wide")
VIEWS = tuple(PLANES)


def is_thick(spacing_mm: float) -> bool:
    """Whether slices of this thickness are for the 2D network.

    Stored affines are float32, and oblique ones are rounded, so 2.49995 mm counts as 2.5 mm.
    """
    return spacing_mm >= THICK_SLICE_MM - 1e-4


@dataclass(frozen=True)
class InferenceConfig:
    """Options of a segmentation.

    Attributes:
        weights: Weights folder.
        device: "auto", "cuda" or "cpu".
        backend: What runs the networks on a CPU: "auto", "torch" or "openvino".
        n4: Whether to correct the bias field first.
        mirror: Whether to average over mirrored windows.
        fast: Whether to run one network of each group, with windows that barely overlap: for a quick look.
        prompt: A prompt to use instead of the standard one.
        anatomy: Whether to estimate brain and regions.
        register: Whether to register sequences that do not fit the reference.
    """

    weights: Path
    device: str = "auto"
    backend: str = "auto"
    n4: bool = False
    mirror: bool = False
    fast: bool = False
    prompt: str | None = None
    anatomy: bool = True
    register: bool = False


@dataclass(frozen=True)
class BatchConfig(InferenceConfig):
    """Options of a run over a folder of cases.

    Attributes:
        resume: Whether to skip cases that an earlier run has finished.
        workers: Cases preprocessed ahead of the network, and written behind it; None to choose by device.
    """

    resume: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture of a network (docs/method.md).

    The switches build the ablation of Table 2 of the paper: backbone, + text, + graph, + cross-attention, + fusion.
    The last three need ``text``.
    """

    architecture: str = "graph_fusion"  # or one of the others in ARCHITECTURES (nets/baselines)
    dimensions: int = 3  # 2 or 3
    sequences: int = 3  # T1w, T2w, FLAIR
    neighbour_slices: int = 1  # 2D only: slices stacked per sequence (3: one on each side)
    inputs: tuple[str, ...] = SEQUENCES  # sequences that the network uses; "-T2w": with inverted intensities
    regions: bool = False  # an additional channel: 1 in basal ganglia and centrum semiovale
    view: str = ""  # 2D only: planes of thin-sliced volumes along this view; "": slices as acquired
    widths: tuple[int, ...] = (16, 32, 64, 128)  # channels per level, full resolution first
    nested_from: int = 1  # first level with a nested row; rows above have two nodes
    residual: bool = False  # shortcuts around the encoder's stages below the first
    fluid: bool = True  # a second output: the PVS fraction of each voxel
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
        known = {*SEQUENCES, *(f"-{name}" for name in SEQUENCES)}
        if not self.inputs or not known.issuperset(self.inputs):
            raise ValueError(f"inputs must be of {sorted(known)}, got {self.inputs}")
        if self.view and (self.view not in VIEWS or self.dimensions == 3):
            raise ValueError(f"view must be one of {VIEWS} and belongs to 2D networks, got {self.view!r}")
        if not 0 <= self.nested_from < max(2, len(self.widths) - 1):
            raise ValueError(f"nested_from must be a level above the lowest of {self.widths}, got {self.nested_from}")
        if self.fluid and self.architecture != "graph_fusion":
            raise ValueError(f"{self.architecture} has no output for the PVS fraction")
        if not 0 <= self.guided_level < max(2, len(self.widths) - 1):
            raise ValueError(f"guided_level must be one above the lowest of {self.widths}, got {self.guided_level}")
        if self.graph_values not in ("other", "own"):
            raise ValueError(f"graph_values must be 'other' or 'own', got {self.graph_values!r}")
        if not self.text and (self.graph or self.cross_attention or self.fusion):
            raise ValueError("graph, cross_attention and fusion need text")

    @property
    def in_channels(self) -> int:
        """Channels of the image passed to the network."""
        return (self.sequences + self.regions) * self.neighbour_slices

    @property
    def input_channels(self) -> int:
        """Channels that the first layer reads: those of ``inputs``, and the regions."""
        return (len(self.inputs) + self.regions) * self.neighbour_slices

    @property
    def outputs(self) -> int:
        """Channels of the output: PVS and, with ``fluid``, the PVS fraction."""
        return 2 if self.fluid else 1

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> NetworkConfig:
        values = {"nested_from": 0, "fluid": False} | json.loads(text)  # absent from the files first released
        for name in ("widths", "inputs"):
            if name in values:  # absent from files older than "inputs"
                values[name] = tuple(values[name])
        return NetworkConfig(**values)


NETWORK_3D = NetworkConfig()
NETWORK_2D = NetworkConfig(dimensions=2, neighbour_slices=3, widths=(32, 64, 128, 256))


def shipped_weights() -> Path:
    """The folder of the shipped weights: in an installed package, or beside the package in a checkout or the image."""
    package = Path(__file__).resolve().parent
    inside = package / "weights"
    return inside if inside.is_dir() else package.parent / "weights"


def default_weights() -> Path:
    """The folder of the weights to use by default: those mounted by grand-challenge.org, else the shipped ones."""
    return MOUNTED_WEIGHTS if (MOUNTED_WEIGHTS / MANIFEST).is_file() else shipped_weights()


def default_sockets() -> Path | None:
    """The file that names sockets of grand-challenge.org by default: that in a model of its own, if it has one."""
    path = MOUNTED_WEIGHTS / SOCKETS
    return path if path.is_file() else None
