"""The ensembles of the challenge's teams and ours, and the systems that cannot be reproduced."""

from __future__ import annotations

from dataclasses import dataclass

from pvs_model.config import VIEWS
from pvs_model.nets.zoo import CHALLENGE, CROSS_MODAL, MFNS_DE


@dataclass(frozen=True)
class EnsembleSpec:
    """An ensemble as its team describes it.

    Attributes:
        name: Name of the system.
        configuration: "3d" or "2d": scans with slices below 2.5 mm, or of 2.5 mm and more.
        members: (model, group) pairs; probabilities are averaged within a group.
        combine: "mean" or "maximum" over groups.
        threshold: Threshold of the team; None where it is calibrated.
        every_seed: Whether all seeds of a model are members (as folds), or only the first.
        source: Paper that describes the ensemble.
        deviations: What the source leaves open, and what is done instead.
    """

    name: str
    configuration: str
    members: tuple[tuple[str, str], ...]
    combine: str
    threshold: float | None
    every_seed: bool
    source: str
    deviations: str = ""


def _separate(*names: str) -> tuple[tuple[str, str], ...]:
    """Makes each model a separate group."""
    return tuple((name, name) for name in names)


_HUFS = _separate("swin_unetr-3d", *(f"swin_unetr-{view}" for view in VIEWS))
#: Ensembles of the teams, and ours, for scans with thin and with thick slices.
ENSEMBLES: tuple[EnsembleSpec, ...] = (
    EnsembleSpec("BIG_AEHRC", "3d", (("mednext-3d", ""),), "mean", 0.3, True, CHALLENGE, "size and UpKern are open"),
    EnsembleSpec("BIG_AEHRC", "2d", (("mednext-2d", ""),), "mean", 0.35, True, CHALLENGE, "size and UpKern are open"),
    EnsembleSpec("HufsAIM", "3d", _HUFS, "mean", 0.5, False, CHALLENGE),
    EnsembleSpec("HufsAIM", "2d", _HUFS, "mean", 0.5, False, CHALLENGE),
    EnsembleSpec(
        "CCNU_CS_24",
        "3d",
        _separate("unet-3d", "separate-3d", "multiscale-3d"),
        "maximum",
        0.5,
        False,
        CHALLENGE,
        "the threshold before OR is open: 0.5",
    ),
    EnsembleSpec(
        "SHIVA",
        "3d",
        (("shiva_t1-3d", "T1w"), ("shiva_t2-3d", "T2w")),
        "maximum",
        0.5,
        True,
        CHALLENGE,
        "pretraining and loss are open",
    ),
    EnsembleSpec(
        "nic-vicorob", "3d", (("gated-3d", ""),), "mean", 0.3, True, CHALLENGE, "resampling to 0.5 mm is not done"
    ),
    EnsembleSpec(
        "bear_walker", "3d", (("dynunet-3d", ""),), "mean", 0.5, True, CHALLENGE, "the threshold is open: 0.5"
    ),
    EnsembleSpec(
        "MfNS_De", "2d", (("mfns_de-2d", ""),), "mean", 0.5, False, MFNS_DE, "three sequences instead of T2w alone"
    ),
    EnsembleSpec("ours", "3d", (("3d", ""),), "mean", None, True, CROSS_MODAL),
    EnsembleSpec("ours", "2d", (("2d", ""),), "mean", None, True, CROSS_MODAL),
)

#: Systems that are not reproduced, and why.
NOT_REPRODUCED: dict[str, str] = {
    "IAANet": f"{MFNS_DE} compares with it and does not describe it",
    "TriSegNet": f"{MFNS_DE} compares with it and does not describe it",
    "PINGU": f"{CROSS_MODAL} used its released weights; it is built upon nnU-Net: see dynunet-3d",
    "SHIVA v1, v2": f"{CROSS_MODAL} used the released weights; see segresnet-3d for the residual U-Net",
    "mcPVS-Net": "Huang et al. 2024 trained nnU-Net as it is: see dynunet-3d",
}
