"""Lists scanner protocols by name: those of Table 2 of the challenge's paper, and one of 1 mm.

Source: the MICCAI 2024 EPVS challenge paper, Table 2 (voxel sizes) and section 2.2.2 (which sequence the
others were co-registered to: T1w in the two Singapore cohorts, T2w in Edinburgh and Shanghai).
"""

from __future__ import annotations

from dataclasses import dataclass

from pvs_model.config import is_thick
from pvs_model.errors import PVSError
from pvs_model.types import Triple


@dataclass(frozen=True)
class Protocol:
    """Acquisition of the three sequences at a site; voxel sizes in mm, slices along the last axis.

    Attributes:
        name: Name of the protocol.
        site: Name of the site.
        grid_mm: Voxel size of the reference sequence, onto whose grid the others were resampled.
        t1w_mm, t2w_mm, flair_mm: Acquired voxel size of each sequence.
    """

    name: str
    site: str
    grid_mm: Triple
    t1w_mm: Triple
    t2w_mm: Triple
    flair_mm: Triple

    @property
    def dimensions(self) -> int:
        """Spatial dimensions of the network for this protocol: 2 for slices of at least 2.5 mm, else 3."""
        return 2 if is_thick(max(self.grid_mm)) else 3

    def acquired(self) -> tuple[Triple, Triple, Triple]:
        """Returns the acquired voxel size relative to the grid per sequence and axis, at least 1.

        A sequence that is finer than the grid was averaged onto it, as the renderer does.
        """

        def ratio(voxel_mm: Triple) -> Triple:
            x, y, z = (max(1.0, v / g) for v, g in zip(voxel_mm, self.grid_mm, strict=True))
            return (x, y, z)

        return ratio(self.t1w_mm), ratio(self.t2w_mm), ratio(self.flair_mm)


def _edinburgh(name: str, t1w: Triple, t2w: Triple, flair: Triple) -> Protocol:
    return Protocol(name, "University of Edinburgh", t2w, t1w, t2w, flair)


def _singapore(name: str, site: str, t1w: Triple, t2w: Triple, flair: Triple) -> Protocol:
    return Protocol(name, site, t1w, t1w, t2w, flair)


def _shanghai(name: str, t1w: tuple[float, float], t2w: tuple[float, float], flair: tuple[float, float]) -> Protocol:
    """Makes a protocol from voxel sizes (in plane, through plane)."""
    t1, t2, fl = ((side, side, thick) for side, thick in (t1w, t2w, flair))
    return Protocol(name, "Shanghai TCM", t2, t1, t2, fl)


_MM = (1.0, 1.0, 1.0)

#: The rows of Table 2, in its order.
TABLE_2 = (
    _edinburgh("edinburgh_ge_1x1x2", (1.0, 1.0, 1.3), (1.0, 1.0, 2.0), (1.0, 1.0, 4.0)),
    _edinburgh("edinburgh_prisma_0.9", _MM, (0.9, 0.9, 0.9), _MM),
    _edinburgh("edinburgh_philips_0.5", _MM, (0.5, 0.5, 0.5), (0.94, 0.94, 1.0)),
    _edinburgh("edinburgh_prisma_0.5", _MM, (0.5, 0.5, 0.5), _MM),
    _singapore("sg70", "NUS-SG70", _MM, (1.0, 1.0, 3.0), _MM),
    _singapore("macc", "NUS-MACC", _MM, (1.0, 1.0, 3.0), (1.0, 1.0, 3.0)),
    _shanghai("shanghai_aera", (0.45, 7.8), (0.72, 7.2), (0.9, 7.8)),
    _shanghai("shanghai_avanto", (0.9, 7.5), (0.36, 7.5), (0.45, 7.5)),
    _shanghai("shanghai_skyra", (0.72, 6.0), (0.72, 6.0), (0.9, 6.0)),
    _shanghai("shanghai_ge", (0.47, 6.5), (0.47, 6.5), (0.47, 6.5)),
    _shanghai("shanghai_philips", (0.53, 6.0), (0.36, 6.0), (0.6, 6.0)),
)

PROTOCOLS = {protocol.name: protocol for protocol in TABLE_2} | {"1mm": Protocol("1mm", "none", _MM, _MM, _MM, _MM)}


def on_grid(voxel_mm: Triple) -> Protocol:
    """Makes a protocol with the same voxel size for all sequences, in mm."""
    name = " x ".join(f"{v:g}" for v in voxel_mm) + " mm"
    return Protocol(name, "none", voxel_mm, voxel_mm, voxel_mm, voxel_mm)


def protocol_named(name: str) -> Protocol:
    """Returns a protocol by name.

    Raises:
        PVSError: No protocol has that name; the message lists all names.
    """
    if name not in PROTOCOLS:
        raise PVSError(f"protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
