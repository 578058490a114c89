"""A whole simulated subject: three sequences, the truth and the regions, on one grid in space."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from pvs_model.synth.anatomy import BASAL_GANGLIA, CENTRUM_SEMIOVALE, VOXEL_MM, Anatomy
from pvs_model.synth.engine import (
    DIAMETER_MM,
    PLANES,
    ScanParams,
    Scene,
    SceneParams,
    Triple,
    acquire,
    draw_scan,
    draw_scene,
    render,
)
from pvs_model.synth.visibility import label_visible
from pvs_model.types import Affine


@dataclass(frozen=True)
class PVSMaps:
    """What is known of the PVS of a simulated case. Arrays (x, y, z) in RAS+.

    Attributes:
        label: uint8, 1 = PVS that an annotator would see (``visibility``).
        ignore: uint8, 1 = barely visible, left out of losses and scores.
        fluid: float32, share of the voxel that PVS fill, 0 to 1.
        cnr: float32, the largest contrast-to-noise ratio of PVS over the channels present.
        diameter_mm: float32, of the widest tube that reaches the voxel; 0 where there is none.
    """

    label: npt.NDArray[np.uint8]
    ignore: npt.NDArray[np.uint8]
    fluid: npt.NDArray[np.float32]
    cnr: npt.NDArray[np.float32]
    diameter_mm: npt.NDArray[np.float32]


@dataclass(frozen=True)
class SimulatedCase:
    """Arrays (x, y, z) in RAS+ with one affine (4, 4).

    Attributes:
        images: float32 (3, x, y, z): T1w, T2w, FLAIR, about 0 to 1000, 0 where stripped.
        pvs: labels, and what else is known of the PVS.
        basal_ganglia, centrum_semiovale: uint8 (x, y, z).
        scene, scan: what it was made from; equal records give an equal case.
    """

    images: npt.NDArray[np.float32]
    pvs: PVSMaps
    basal_ganglia: npt.NDArray[np.uint8]
    centrum_semiovale: npt.NDArray[np.uint8]
    affine: Affine
    scene: SceneParams
    scan: ScanParams

    @property
    def truth(self) -> npt.NDArray[np.uint8]:
        """The label, uint8 (x, y, z)."""
        return self.pvs.label

    @property
    def present(self) -> tuple[bool, bool, bool]:
        """Which sequences there are."""
        return self.scan.present


def whole_scene(
    anatomy: Anatomy, seed: int, voxel_mm: Triple, plane: str = "axial", margin_mm: float = 6.0,
    subject: str | None = None,
) -> SceneParams:  # fmt: skip
    """Geometry that holds the whole brain, with PVS everywhere that they occur; ``subject`` as for ``draw_scene``."""
    params = draw_scene(seed, (8, 8, 8), voxel_mm, plane, target="whole", empty_share=0.0, subject=subject)
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
    return acquire_case(render(scene, anatomy), scene, scan)


def acquire_case(rendered: Scene, scene: SceneParams, scan: ScanParams) -> SimulatedCase:
    """A rendered scene as a case: acquired, labelled by what is visible, its axes in RAS+ order."""
    taken = acquire(rendered, scan)
    order = np.argsort(PLANES[scene.plane])  # back to (x, y, z)

    def ras(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
        return np.ascontiguousarray(tensor.cpu().numpy().transpose(order))

    images = np.stack([ras(channel) for channel in taken.images]).astype(np.float32) * 600
    spacing = np.array(rendered.voxel_mm)[order]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(images.shape[1:]) - 1) / 2
    regions = ras(rendered.regions)
    label, ignore = label_visible(taken.cnr, rendered.voxel_mm, rendered.coverage.float() / 255)
    return SimulatedCase(
        images=images,
        pvs=PVSMaps(
            label=ras(label).astype(np.uint8),
            ignore=ras(ignore).astype(np.uint8),
            fluid=ras(rendered.coverage).astype(np.float32) / np.float32(255),
            cnr=ras(taken.cnr).astype(np.float32),
            diameter_mm=ras(rendered.diameter).astype(np.float32) * DIAMETER_MM,
        ),
        basal_ganglia=(regions == BASAL_GANGLIA).astype(np.uint8),
        centrum_semiovale=(regions == CENTRUM_SEMIOVALE).astype(np.uint8),
        affine=affine,
        scene=scene,
        scan=scan,
    )
