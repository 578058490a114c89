"""Every network that can be trained by name: ours, each switch of its ablation, and the systems of the papers.

``train --network`` and ``benchmark --networks`` take these names. A name ends with the form of the network: ``-3d``,
``-2d`` (slices as acquired, with their neighbours), or a view (planes of volumes with thin slices). What a paper
leaves open is said with each system, here and in ``nets.peers``.
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
class Entry:
    """A network to be trained.

    Attributes:
        name: of the entry.
        config: of the network.
        of: which system it is, or part of.
        source: paper that proposes it or compares with it.
        training: settings of ``training.settings.TrainingConfig`` that differ from everybody's.
        ablation: whether it is our network with something changed.
    """

    name: str
    config: NetworkConfig
    of: str
    source: str
    training: Mapping[str, str | float] = field(default_factory=dict)
    ablation: bool = False

    @property
    def form(self) -> str:
        """ "3d", "2d" or a view."""
        return self.config.view or f"{self.config.dimensions}d"


@dataclass(frozen=True)
class Recipe:
    """An ensemble as a team describes it: which networks, and how their probabilities are joined.

    Attributes:
        name: of the system.
        kind: "3d" or "2d": scans below 2.5 mm slice thickness, or from there on.
        members: (entry, group) pairs; probabilities are averaged within a group.
        combine: "mean" or "maximum" over groups.
        threshold: of the team; None where it is calibrated or left open.
        every_seed: whether all seeds of an entry join (for folds), or the first alone.
        says: what the source leaves open, and what is done instead.
    """

    name: str
    kind: str
    members: tuple[tuple[str, str], ...]
    combine: str
    threshold: float | None
    every_seed: bool
    source: str
    says: str = ""


#: SegResNet does not begin to learn at everybody's 1.5e-3: Dice 0 on patches of held-out heads, 0.29 with this.
_SLOWER: Mapping[str, str | float] = {"learning_rate": 4e-4}
_NO_TEXT = {"text": False, "graph": False, "cross_attention": False, "fusion": False}


def _peer(architecture: str, widths: tuple[int, ...], form: str, **changes: object) -> NetworkConfig:
    """Three sequences in; in 2D three neighbouring slices of each, as ours."""
    base = replace(NETWORK_3D if form == "3d" else NETWORK_2D, nested_from=0, fluid=False)
    view = form if form in VIEWS else ""
    made = replace(base, architecture=architecture, widths=widths, view=view, **_NO_TEXT)  # type: ignore[arg-type]
    return replace(made, **changes)  # type: ignore[arg-type]


def _entries() -> list[Entry]:
    found: list[Entry] = []

    def add(stem: str, architecture: str, widths: tuple[int, ...], of: str, source: str,
            forms: tuple[str, ...] = ("3d", "2d"), **changes: object) -> None:  # fmt: skip
        training = _SLOWER if architecture == "segresnet" else {}
        for form in forms:
            found.append(Entry(f"{stem}-{form}", _peer(architecture, widths, form, **changes), of, source, training))

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

    for form, full in (("3d", NETWORK_3D), ("2d", NETWORK_2D)):

        def ours(
            stem: str,
            of: str,
            training: Mapping[str, str | float] | None = None,
            changes: Mapping[str, object] | None = None,
            form: str = form,
            full: NetworkConfig = full,
        ) -> None:
            name, changed = f"{stem}-{form}" if stem else form, replace(full, **(changes or {}))  # type: ignore[arg-type]
            found.append(Entry(name, changed, of, CROSS_MODAL, training or {}, ablation=bool(stem)))

        ours("", "the graph-fusion network")
        ours("backbone", "Table 2: backbone", changes=_NO_TEXT)
        ours("text", "Table 2: + text", changes={**_NO_TEXT, "text": True})
        ours("graph", "Table 2: + graph interaction", changes={"cross_attention": False, "fusion": False})
        ours("attention", "Table 2: + cross-attention", changes={"fusion": False})
        ours("constant", "one prompt for all", {"prompts": "constant"})
        ours("whole", "prompts vary, but none asks for a region", {"region_share": 0.0})
        ours("printed", "equation (3) with V_T as printed", changes={"graph_values": "own"})
        ours("level2", "modules at a quarter of the resolution", changes={"guided_level": 2})
        ours("nested", "nested at full resolution, too", changes={"nested_from": 0})
        ours("coverage20", "labels from a coverage of 0.2", {"labels": "coverage", "coverage": 0.2})
        ours("coverage60", "labels from a coverage of 0.6", {"labels": "coverage", "coverage": 0.6})
    return found


#: By name.
ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _entries()}


def _alone(*names: str) -> tuple[tuple[str, str], ...]:
    """Each network a group of its own."""
    return tuple((name, name) for name in names)


_HUFS = _alone("swin_unetr-3d", *(f"swin_unetr-{view}" for view in VIEWS))
#: The teams' ensembles, and ours, for scans with thin and with thick slices.
RECIPES: tuple[Recipe, ...] = (
    Recipe("BIG_AEHRC", "3d", (("mednext-3d", ""),), "mean", 0.3, True, CHALLENGE, "size and UpKern are open"),
    Recipe("BIG_AEHRC", "2d", (("mednext-2d", ""),), "mean", 0.35, True, CHALLENGE, "size and UpKern are open"),
    Recipe("HufsAIM", "3d", _HUFS, "mean", 0.5, False, CHALLENGE),
    Recipe("HufsAIM", "2d", _HUFS, "mean", 0.5, False, CHALLENGE),
    Recipe("CCNU_CS_24", "3d", _alone("unet-3d", "separate-3d", "multiscale-3d"), "maximum", 0.5, False, CHALLENGE,
           "the threshold before OR is open: 0.5"),
    Recipe("SHIVA", "3d", (("shiva_t1-3d", "T1w"), ("shiva_t2-3d", "T2w")), "maximum", 0.5, True, CHALLENGE,
           "pretraining and loss are open"),
    Recipe("nic-vicorob", "3d", (("gated-3d", ""),), "mean", 0.3, True, CHALLENGE, "resampling to 0.5 mm is not done"),
    Recipe("bear_walker", "3d", (("dynunet-3d", ""),), "mean", 0.5, True, CHALLENGE, "the threshold is open: 0.5"),
    Recipe("MfNS_De", "2d", (("mfns_de-2d", ""),), "mean", 0.5, False, MFNS_DE, "three sequences instead of T2w alone"),
    Recipe("ours", "3d", (("3d", ""),), "mean", None, True, CROSS_MODAL),
    Recipe("ours", "2d", (("2d", ""),), "mean", None, True, CROSS_MODAL),
)  # fmt: skip

#: Systems that a paper only names, and why there is nothing to build.
ONLY_NAMED: dict[str, str] = {
    "IAANet": f"{MFNS_DE} compares with it and does not describe it",
    "TriSegNet": f"{MFNS_DE} compares with it and does not describe it",
    "PINGU": f"{CROSS_MODAL} used its released weights; it is built upon nnU-Net: see dynunet-3d",
    "SHIVA v1, v2": f"{CROSS_MODAL} used the released weights; see segresnet-3d for the residual U-Net",
    "mcPVS-Net": "Huang et al. 2024 trained nnU-Net as it is: see dynunet-3d",
}
