"""Simulates a whole subject: three sequences, reference labels and regions on one grid."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from pvs_model.config import is_thick
from pvs_model.simulation.acquisition import acquire
from pvs_model.simulation.head import BASAL_GANGLIA, CENTRUM_SEMIOVALE, VOXEL_MM, HeadModel
from pvs_model.simulation.parameters import ScanParams, SceneParams, draw_scan, draw_scene
from pvs_model.simulation.render import DIAMETER_UNIT_MM, Scene, render
from pvs_model.simulation.visibility import label_visible
from pvs_model.types import PLANES, Affine, Triple


@dataclass(frozen=True)
class PVSMaps:
    """Maps of the PVS of a simulated case, arrays (x, y, z) in RAS+ order.

    Attributes:
        label: uint8, 1 = PVS that an annotator would mark (``visibility``).
        ignore: uint8, 1 = barely visible, ignored by losses and scores.
        pvs_fraction: float32, partial-volume fraction of PVS, 0 to 1.
        cnr: float32, largest contrast-to-noise ratio of PVS over the channels present.
        diameter_mm: float32, diameter of the widest tube in the voxel, 0 without PVS.
    """

    label: npt.NDArray[np.uint8]
    ignore: npt.NDArray[np.uint8]
    pvs_fraction: npt.NDArray[np.float32]
    cnr: npt.NDArray[np.float32]
    diameter_mm: npt.NDArray[np.float32]


@dataclass(frozen=True)
class SimulatedCase:
    """A simulated subject, arrays (x, y, z) in RAS+ order.

    Attributes:
        images: float32 (3, x, y, z): T1w, T2w, FLAIR, about 0 to 1000, 0 outside the foreground.
        pvs: Label and further maps of the PVS.
        basal_ganglia, centrum_semiovale: uint8 (x, y, z).
        affine: (4, 4), voxel to RAS+ mm.
        scene, scan: Parameters; equal ones give an equal case.
    """

    images: npt.NDArray[np.float32]
    pvs: PVSMaps
    basal_ganglia: npt.NDArray[np.uint8]
    centrum_semiovale: npt.NDArray[np.uint8]
    affine: Affine
    scene: SceneParams
    scan: ScanParams

    @property
    def reference(self) -> npt.NDArray[np.uint8]:
        """Reference label, uint8 (x, y, z)."""
        return self.pvs.label

    @property
    def present(self) -> tuple[bool, bool, bool]:
        """Whether each sequence is present."""
        return self.scan.present


def whole_scene(
    head: HeadModel, seed: int, voxel_mm: Triple, plane: str = "axial", margin_mm: float = 6.0,
    subject: str | None = None,
) -> SceneParams:  # fmt: skip
    """Draws a scene of the whole brain with PVS in all regions; ``subject`` as for ``draw_scene``."""
    params = draw_scene(seed, (8, 8, 8), voxel_mm, plane, target="whole", empty_share=0.0, subject=subject)
    where = torch.nonzero(head.regions[::4, ::4, ::4]).cpu()
    extent = (where.amax(0) - where.amin(0) + 1) * 4 * VOXEL_MM * torch.tensor(params.scale)
    axes = PLANES[plane]
    shape = [int((float(extent[a]) + 2 * margin_mm) / v) for a, v in zip(axes, voxel_mm, strict=True)]
    return replace(params, shape=(shape[0], shape[1], shape[2]))


def simulate(
    head: HeadModel, seed: int, voxel_mm: Triple, plane: str = "axial", scene: SceneParams | None = None,
    scan: ScanParams | None = None,
) -> SimulatedCase:  # fmt: skip
    """Simulates one subject.

    Args:
        head: Head model.
        seed: Seed of the parameters that are not given.
        voxel_mm: Voxel size of the acquired grid, slices along its last axis.
        plane: "axial", "coronal" or "sagittal".
        scene, scan: Parameters, to replay or change a draw.

    Example:
        >>> from pvs_model.simulation.phantom import make_phantom
        >>> case = simulate(make_phantom(0), seed=1, voxel_mm=(1.0, 1.0, 3.0))  # doctest: +SKIP
    """
    scene = scene or whole_scene(head, seed, voxel_mm, plane)
    scan = scan or draw_scan(seed, 2 if is_thick(max(voxel_mm)) else 3, complete=True)
    return acquire_case(render(scene, head), scene, scan)


def acquire_case(rendered: Scene, scene: SceneParams, scan: ScanParams) -> SimulatedCase:
    """Acquires a rendered scene, labels visible PVS and brings the axes into RAS+ order."""
    acquired = acquire(rendered, scan)
    order = np.argsort(PLANES[scene.plane])

    def ras(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
        return np.ascontiguousarray(tensor.cpu().numpy().transpose(order))

    images = np.stack([ras(channel) for channel in acquired.images]).astype(np.float32) * 600
    spacing = np.array(rendered.voxel_mm)[order]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(images.shape[1:]) - 1) / 2
    regions = ras(rendered.regions)
    label, ignore = label_visible(acquired.cnr, rendered.voxel_mm, rendered.pvs_fraction.float() / 255)
    return SimulatedCase(
        images=images,
        pvs=PVSMaps(
            label=ras(label).astype(np.uint8),
            ignore=ras(ignore).astype(np.uint8),
            pvs_fraction=ras(rendered.pvs_fraction).astype(np.float32) / np.float32(255),
            cnr=ras(acquired.cnr).astype(np.float32),
            diameter_mm=ras(rendered.diameter).astype(np.float32) * DIAMETER_UNIT_MM,
        ),
        basal_ganglia=(regions == BASAL_GANGLIA).astype(np.uint8),
        centrum_semiovale=(regions == CENTRUM_SEMIOVALE).astype(np.uint8),
        affine=affine,
        scene=scene,
        scan=scan,
    )
