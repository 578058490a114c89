"""Draws the signal of each tissue in T1w, T2w and FLAIR: tissue priors with jitter, or random contrasts."""

from __future__ import annotations

import torch
from torch import Tensor

from pvs_model.simulation.head import INDEX, TISSUES

#: Structures drawn over the tissues, in order of priority, each with its own signal.
STRUCTURES = ("pvs", "csf_pocket", "lacune", "flow_void", "grey_matter_bridge", "lesion")

#: Typical signals at 3 T on a common scale (T1w, T2w, FLAIR), with the ratios of real scans
#: (``benchmarks.simulator signal``). Cortex is a tenth of the way to CSF in T2w and little above white matter in FLAIR.
TISSUE_SIGNALS = {
    "air": (0.0, 0.0, 0.0),
    "ventricle": (0.22, 1.00, 0.12),
    "csf": (0.25, 0.95, 0.15),
    "cortex": (0.66, 0.39, 0.59),
    "white_matter": (1.00, 0.30, 0.54),
    "caudate": (0.72, 0.36, 0.58),
    "putamen": (0.79, 0.33, 0.55),
    "pallidum": (0.93, 0.26, 0.50),
    "thalamus": (0.86, 0.34, 0.55),
    "hippocampus": (0.68, 0.40, 0.61),
    "ventral_dc": (0.92, 0.31, 0.53),
    "brainstem": (0.92, 0.33, 0.55),
    "cerebellum_gm": (0.67, 0.37, 0.56),
    "cerebellum_wm": (0.97, 0.31, 0.54),
    "choroid": (0.50, 0.75, 0.65),
    "vessel": (0.60, 0.15, 0.25),
    "wmh": (0.72, 0.55, 0.95),
    "soft_tissue": (0.75, 0.35, 0.40),
    "skin": (0.90, 0.55, 0.55),
    "bone": (0.12, 0.10, 0.08),
    "marrow": (0.55, 0.35, 0.30),
    "other": (0.60, 0.45, 0.40),
}


def draw_signals(generator: torch.Generator, random_share: float = 0.4) -> Tensor:
    """Draws the signals (3 sequences, tissues + structures) of one subject, about 0 to 1.2.

    With random contrasts, cortex may look like white matter. CSF always stays darker than white matter in T1w and FLAIR
    and brighter in T2w: the sequences are known, and PVS without contrast cannot be learnt.

    Args:
        generator: Random generator on the CPU.
        random_share: Fraction of draws in which sequences may have random contrasts instead of the tissue priors.
    """

    def uniform(low: float, high: float, size: tuple[int, ...] = ()) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    table = torch.tensor([TISSUE_SIGNALS[name] for name in TISSUES]).T.clone()
    brain = slice(1, INDEX["soft_tissue"])
    outside = slice(INDEX["soft_tissue"], len(TISSUES))
    wm, csf = INDEX["white_matter"], INDEX["ventricle"]
    is_random = float(uniform(0, 1)) < random_share
    for channel in range(3):
        if is_random and float(uniform(0, 1)) < 0.6:
            low, high = (table[channel, csf], table[channel, wm]) if channel != 1 else (table[1, wm], table[1, csf])
            span = float(high - low)
            draw = uniform(0, 1, (len(TISSUES),))
            # Grey matter and nuclei lie between slightly beyond white matter and most of the way to CSF.
            toward = table[channel, wm] + (table[channel, csf] - table[channel, wm]) * (draw * 0.9 - 0.25)
            keep = torch.zeros(len(TISSUES), dtype=torch.bool)
            keep[[wm, csf, INDEX["csf"], INDEX["air"], INDEX["wmh"]]] = True
            keep[outside] = True
            table[channel] = torch.where(keep, table[channel], toward)
            table[channel, csf] += float(uniform(-0.15, 0.15)) * span
        else:
            # Scales the contrast about white matter, as field strength and timing do.
            gain = float(torch.exp(torch.randn((), generator=generator) * 0.18))
            table[channel, brain] = table[channel, wm] + (table[channel, brain] - table[channel, wm]) * gain
            jitter = torch.randn(len(TISSUES), generator=generator) * 0.03
            table[channel, brain] += jitter[brain]
    table[:, INDEX["csf"]] = table[:, csf] + (table[:, INDEX["csf"]] - table[:, csf]) * uniform(0, 2, (3,))
    table[:, outside] *= uniform(0.3, 2.2, (3, len(TISSUES) - INDEX["soft_tissue"]))
    table[:, INDEX["vessel"]] = uniform(0.0, 1.1, (3,))
    table = table.clamp(0.0, 1.6)

    white, fluid = table[:, wm], table[:, csf]
    lesion_t1 = white[0] + (fluid[0] - white[0]) * uniform(0.15, 0.6)
    lesion_t2 = white[1] + (fluid[1] - white[1]) * uniform(0.15, 0.65)
    lesion_flair = white[2] + uniform(0.12, 0.55)
    structures = {
        "pvs": white + (fluid - white) * uniform(0.75, 1.0, (3,)),
        "csf_pocket": white + (fluid - white) * uniform(0.4, 1.05, (3,)),
        "lacune": white + (fluid - white) * uniform(0.7, 1.0, (3,)),
        "flow_void": torch.stack([uniform(0.1, 1.2), uniform(0.0, 0.9) * white[1], uniform(0.1, 1.2) * white[2]]),
        "grey_matter_bridge": table[:, INDEX["putamen"]],
        "lesion": torch.stack([lesion_t1, lesion_t2, lesion_flair]),
    }
    table[:, INDEX["wmh"]] = structures["lesion"]
    return torch.cat([table, torch.stack([structures[name] for name in STRUCTURES], 1)], 1)
