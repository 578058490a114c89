"""All networks that can be trained by name: the graph-fusion network, its ablations, and the baselines.

``train --network`` and ``benchmarks.networks --networks`` take these names. A name ends with ``-3d``, ``-2d`` (slices
as acquired, with their neighbours), or a view (slices of volumes with thin slices along that view).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pvs_model.config import NETWORK_2D, NETWORK_3D, VIEWS, NetworkConfig

#: Papers, as ``docs/method.md`` cites them.
CROSS_MODAL = "Chen et al., MICCAI 2025"
CHALLENGE = "EPVS challenge, MICCAI 2024"
MFNS_DE = "Cai et al., Front. Aging Neurosci. 2024"


@dataclass(frozen=True)
class ModelSpec:
    """A network that can be trained by name.

    Attributes:
        name: Name of the model.
        config: Configuration of the network.
        description: System that the network is, or is part of.
        source: Paper that proposes the network or compares with it.
        training: Settings of ``training.config.TrainingConfig`` that differ from the defaults.
        ablation: Whether this is the graph-fusion network with one change.
    """

    name: str
    config: NetworkConfig
    description: str
    source: str
    training: Mapping[str, str | float] = field(default_factory=dict)
    ablation: bool = False

    @property
    def form(self) -> str:
        """The last part of the name: "3d", "2d" or a view."""
        return self.config.view or f"{self.config.dimensions}d"

    @property
    def configuration(self) -> str:
        """Scans that the network segments: "2d" for thick slices as acquired, else "3d"."""
        return "2d" if self.form == "2d" else "3d"


#: SegResNet does not learn at the default of 1.5e-3: Dice 0 on patches of held-out heads, 0.29 at this rate.
_LOWER_RATE: Mapping[str, str | float] = {"learning_rate": 4e-4}
_NO_TEXT = {"text": False, "graph": False, "cross_attention": False, "fusion": False}


def _baseline(architecture: str, widths: tuple[int, ...], form: str, **changes: object) -> NetworkConfig:
    """Configures a baseline: input of three sequences and, in 2D, three neighbouring slices, as in our networks."""
    base = replace(NETWORK_3D if form == "3d" else NETWORK_2D, nested_from=0, fluid=False)
    view = form if form in VIEWS else ""
    config = replace(base, architecture=architecture, widths=widths, view=view, **_NO_TEXT)  # type: ignore[arg-type]
    return replace(config, **changes)  # type: ignore[arg-type]


def _baselines() -> list[ModelSpec]:
    """Lists the networks of other groups."""
    specs: list[ModelSpec] = []

    def add(stem: str, architecture: str, widths: tuple[int, ...], description: str, source: str,
            forms: tuple[str, ...] = ("3d", "2d"), **changes: object) -> None:  # fmt: skip
        training = _LOWER_RATE if architecture == "segresnet" else {}
        for form in forms:
            config = _baseline(architecture, widths, form, **changes)
            specs.append(ModelSpec(f"{stem}-{form}", config, description, source, training))

    five = (32, 64, 128, 256, 320)
    add("dynunet", "dynunet", five, "nnU-Net; bear_walker; PINGU's base", f"{CHALLENGE}; {CROSS_MODAL}", ("3d",))
    add("dynunet", "dynunet", (32, 64, 128, 256, 512, 512), "nnU-Net", f"{CHALLENGE}; {MFNS_DE}", ("2d",))
    add("unet", "unet", (32, 32, 64, 128, 256), "U-Net; one of CCNU_CS_24's three", f"{MFNS_DE}; {CHALLENGE}")
    add("unet++", "unet++", (32, 32, 64, 128, 256), "U-Net++ as MONAI has it", "the backbone's origin, for scale")
    add("attention_unet", "attention_unet", (16, 32, 64, 128, 256), "Attention U-Net", f"{CHALLENGE} (gates)")
    add("segresnet", "segresnet", (16, 32, 64, 128, 256), "SHIVA's residual U-Net", f"{CHALLENGE}; {CROSS_MODAL}")
    add("unetr", "unetr", (16, 384), "UNETR", CROSS_MODAL)
    add("swin_unetr", "swin_unetr", (24,), "Swin UNETR; HufsAIM", f"{CROSS_MODAL}; {CHALLENGE}", ("3d", "2d", *VIEWS))
    add("mednext", "mednext", (32,), "MedNeXt; BIG_AEHRC", CHALLENGE)
    add("mfns_de", "mfns_de", (32, 64, 128, 256, 512), "MfNS_De", MFNS_DE, ("2d",), neighbour_slices=1)
    add("cs2net", "cs2net", (16, 32, 64, 128, 256), "CS2-Net", CROSS_MODAL)
    add("separate", "separate_encoders", (16, 32, 64, 128, 256), "one of CCNU_CS_24's three", CHALLENGE)
    add("multiscale", "multiscale_kernels", (16, 32, 64, 128, 256), "one of CCNU_CS_24's three", CHALLENGE)
    add("gated", "gated_residual", (32, 64, 128, 256, 320, 320), "nic-vicorob", CHALLENGE, ("3d",), regions=True)
    for name, sequence in (("t1", "T1w"), ("t2", "-T2w")):
        add(f"shiva_{name}", "segresnet", (16, 32, 64, 128, 256), f"SHIVA's network of {sequence}", CHALLENGE, ("3d",),
            inputs=(sequence,))  # fmt: skip

    return specs


#: Changes of each ablation of the graph-fusion network, and its description.
_ABLATIONS: tuple[tuple[str, str, Mapping[str, object]], ...] = (
    ("backbone", "Table 2: backbone", _NO_TEXT),
    ("text", "Table 2: + text", {**_NO_TEXT, "text": True}),
    ("graph", "Table 2: + graph interaction", {"cross_attention": False, "fusion": False}),
    ("attention", "Table 2: + cross-attention", {"fusion": False}),
    ("constant", "one prompt for all", {}),
    ("whole", "prompts vary, but none asks for a region", {}),
    ("printed", "equation (3) with V_T as printed", {"graph_values": "own"}),
    ("level2", "modules at a quarter of the resolution", {"guided_level": 2}),
    ("nested", "nested at full resolution, too", {"nested_from": 0}),
    ("coverage20", "labels from a coverage of 0.2", {}),
    ("coverage60", "labels from a coverage of 0.6", {}),
)
#: Training settings of the ablations that change those.
_ABLATION_TRAINING: Mapping[str, Mapping[str, str | float]] = {
    "constant": {"prompts": "constant"},
    "whole": {"region_share": 0.0},
    "coverage20": {"labels": "coverage", "coverage": 0.2},
    "coverage60": {"labels": "coverage", "coverage": 0.6},
}


def _graph_fusion_networks() -> list[ModelSpec]:
    """Lists the graph-fusion network and its ablations in 3D and in 2D."""
    specs = []
    for form, config in (("3d", NETWORK_3D), ("2d", NETWORK_2D)):
        specs.append(ModelSpec(form, config, "the graph-fusion network", CROSS_MODAL))
        wide = replace(config, widths=tuple(3 * width // 2 for width in config.widths))
        specs.append(ModelSpec(f"wide-{form}", wide, "with half as many channels more", CROSS_MODAL))
        for stem, description, changes in _ABLATIONS:
            changed = replace(config, **changes)  # type: ignore[arg-type]
            training = _ABLATION_TRAINING.get(stem, {})
            specs.append(ModelSpec(f"{stem}-{form}", changed, description, CROSS_MODAL, training, ablation=True))
    return specs


#: All models by name.
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in (*_baselines(), *_graph_fusion_networks())}
