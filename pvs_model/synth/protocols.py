"""Acquisitions by name: every scanner protocol of Table 2 of the challenge's paper, and a plain one.

Source: the MICCAI 2024 EPVS challenge paper, Table 2 (voxel sizes) and section 2.2.2 (which sequence the
others were co-registered to: T1w in the two Singapore cohorts, T2w in Edinburgh and Shanghai).
"""

from __future__ import annotations

from dataclasses import dataclass

from pvs_model.errors import PVSError
from pvs_model.synth.params import Triple

#: Grids with slices of this thickness and above are for the 2D network.
THICK_SLICE_MM = 2.5


@dataclass(frozen=True)
class Protocol:
    """How the three sequences of a site were acquired; voxel sizes in mm, slices along the last axis.

    Attributes:
        grid_mm: voxel of the reference sequence, onto whose grid the others were brought.
    """

    name: str
    site: str
    scanner: str
    grid_mm: Triple
    t1w_mm: Triple
    t2w_mm: Triple
    flair_mm: Triple

    @property
    def dimensions(self) -> int:
        """Of the network that segments it: 2 where slices are 2.5 mm or thicker, else 3."""
        return 2 if max(self.grid_mm) >= THICK_SLICE_MM else 3

    def acquired(self) -> tuple[Triple, Triple, Triple]:
        """Acquired voxel over grid voxel, per sequence and axis, for ``draw_scan``.

        At least 1: a sequence finer than the grid was averaged onto it, as the renderer does with everything.
        """

        def ratio(voxel_mm: Triple) -> Triple:
            x, y, z = (max(1.0, v / g) for v, g in zip(voxel_mm, self.grid_mm, strict=True))
            return (x, y, z)

        return ratio(self.t1w_mm), ratio(self.t2w_mm), ratio(self.flair_mm)


def _edinburgh(name: str, scanner: str, t1w: Triple, t2w: Triple, flair: Triple) -> Protocol:
    return Protocol(name, "University of Edinburgh", scanner, t2w, t1w, t2w, flair)


def _singapore(name: str, site: str, t1w: Triple, t2w: Triple, flair: Triple) -> Protocol:
    return Protocol(name, site, "3T Siemens Prisma", t1w, t1w, t2w, flair)


def _shanghai(name: str, scanner: str, t1w: tuple[float, float], t2w: tuple[float, float],
              flair: tuple[float, float]) -> Protocol:  # fmt: skip
    """Voxels as (side within the slice, thickness)."""
    t1, t2, fl = ((side, side, thick) for side, thick in (t1w, t2w, flair))
    return Protocol(name, "Shanghai TCM", scanner, t2, t1, t2, fl)


_MM = (1.0, 1.0, 1.0)

#: The rows of Table 2, in its order.
TABLE_2 = (
    _edinburgh("edinburgh_ge_1x1x2", "1.5T GE Signa Horizon", (1.0, 1.0, 1.3), (1.0, 1.0, 2.0), (1.0, 1.0, 4.0)),
    _edinburgh("edinburgh_prisma_0.9", "3T Siemens Prisma", _MM, (0.9, 0.9, 0.9), _MM),
    _edinburgh("edinburgh_philips_0.5", "3T Philips Achieva", _MM, (0.5, 0.5, 0.5), (0.94, 0.94, 1.0)),
    _edinburgh("edinburgh_prisma_0.5", "3T Siemens Prisma", _MM, (0.5, 0.5, 0.5), _MM),
    _singapore("sg70", "NUS-SG70", _MM, (1.0, 1.0, 3.0), _MM),
    _singapore("macc", "NUS-MACC", _MM, (1.0, 1.0, 3.0), (1.0, 1.0, 3.0)),
    _shanghai("shanghai_aera", "1.5T Siemens Aera", (0.45, 7.8), (0.72, 7.2), (0.9, 7.8)),
    _shanghai("shanghai_avanto", "1.5T Siemens Avanto", (0.9, 7.5), (0.36, 7.5), (0.45, 7.5)),
    _shanghai("shanghai_skyra", "3T Siemens Skyra", (0.72, 6.0), (0.72, 6.0), (0.9, 6.0)),
    _shanghai("shanghai_ge", "3T GE Signa Pioneer", (0.47, 6.5), (0.47, 6.5), (0.47, 6.5)),
    _shanghai("shanghai_philips", "3T Philips Ingenia", (0.53, 6.0), (0.36, 6.0), (0.6, 6.0)),
)

PROTOCOLS = {protocol.name: protocol for protocol in TABLE_2} | {
    "1mm": Protocol("1mm", "none", "plain", _MM, _MM, _MM, _MM)
}


def on_grid(voxel_mm: Triple) -> Protocol:
    """All sequences with the same voxels, in mm."""
    name = " x ".join(f"{v:g}" for v in voxel_mm) + " mm"
    return Protocol(name, "none", "plain", voxel_mm, voxel_mm, voxel_mm, voxel_mm)


def protocol_named(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        PVSError: there is none of that name; the message lists those that there are.
    """
    if name not in PROTOCOLS:
        raise PVSError(f"protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
