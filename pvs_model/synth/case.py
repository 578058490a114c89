"""A whole simulated subject: three sequences, the truth and the regions, on one grid in space."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from pvs_model.synth.anatomy import BASAL_GANGLIA, CENTRUM_SEMIOVALE, VOXEL_MM, Anatomy
from pvs_model.synth.engine import PLANES, ScanParams, SceneParams, Triple, acquire, draw_scan, draw_scene, render
from pvs_model.types import Affine


@dataclass(frozen=True)
class SimulatedCase:
    """Arrays (x, y, z) in RAS+ with one affine (4, 4).

    Attributes:
        images: float32 (3, x, y, z): T1w, T2w, FLAIR, about 0 to 1000, 0 where stripped.
        truth: uint8 (x, y, z), 1 = PVS.
        basal_ganglia, centrum_semiovale: uint8 (x, y, z).
        scene, scan: what it was made from; equal records give an equal case.
    """

    images: npt.NDArray[np.float32]
    truth: npt.NDArray[np.uint8]
    basal_ganglia: npt.NDArray[np.uint8]
    centrum_semiovale: npt.NDArray[np.uint8]
    affine: Affine
    scene: SceneParams
    scan: ScanParams

    @property
    def present(self) -> tuple[bool, bool, bool]:
        """Which sequences there are."""
        return self.scan.present


def whole_scene(
    anatomy: Anatomy, seed: int, voxel_mm: Triple, plane: str = "axial", margin_mm: float = 6.0
) -> SceneParams:
    """Geometry that holds the whole brain, with PVS everywhere that they occur."""
    params = draw_scene(seed, (8, 8, 8), voxel_mm, plane, target="whole", empty_share=0.0)
    where = torch.nonzero(anatomy.regions[::4, ::4, ::4]).cpu()
    extent = (where.amax(0) - where.amin(0) + 1) * 4 * VOXEL_MM * torch.tensor(params.scale)[list(PLANES["axial"])]
    axes = PLANES[plane]
    shape = [int((float(extent[a]) + 2 * margin_mm) / v) for a, v in zip(axes, voxel_mm, strict=True)]
    return replace(params, shape=(shape[0], shape[1], shape[2]))


def simulate(
    anatomy: Anatomy, seed: int, voxel_mm: Triple, plane: str = "axial", scene: SceneParams | None = None,
    scan: ScanParams | None = None,
) -> SimulatedCase:  # fmt: skip
    """Simulate one subject.

    Args:
        anatomy: the head.
        seed: of everything that is not given.
        voxel_mm: spacing of the acquired grid, slices along its last axis.
        plane: "axial", "coronal" or "sagittal".
        scene, scan: to replay or change a draw.
    """
    scene = scene or whole_scene(anatomy, seed, voxel_mm, plane)
    scan = scan or draw_scan(seed, 2 if max(voxel_mm) >= 2.5 else 3, complete=True)
    rendered = render(scene, anatomy)
    taken = acquire(rendered, scan)
    order = np.argsort(PLANES[plane])  # back to (x, y, z)

    def upright(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
        return np.ascontiguousarray(tensor.cpu().numpy().transpose(order))

    images = np.stack([upright(channel) for channel in taken.images]).astype(np.float32) * 600
    spacing = np.array(voxel_mm)[order]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(images.shape[1:]) - 1) / 2
    regions = upright(rendered.regions)
    return SimulatedCase(
        images=images,
        truth=upright(rendered.label).astype(np.uint8),
        basal_ganglia=(regions == BASAL_GANGLIA).astype(np.uint8),
        centrum_semiovale=(regions == CENTRUM_SEMIOVALE).astype(np.uint8),
        affine=affine,
        scene=scene,
        scan=scan,
    )
