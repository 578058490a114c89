"""Makes head phantoms from formulas, without data files; equal seeds give equal phantoms."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pvs_model.simulation.head import HeadModel, build_head_model

SHAPE = (176, 208, 176)  # voxels of 1 mm


def make_phantom(seed: int = 0) -> HeadModel:
    """Makes a head model from ``phantom_labels``."""
    return build_head_model(phantom_labels(seed), f"phantom-{seed}")


def phantom_labels(seed: int = 0) -> npt.NDArray[np.int32]:
    """Makes a label map with FreeSurfer ids, (176, 208, 176) at 1 mm, RAS+.

    It has scalp, skull, CSF, cortex, white matter, deep nuclei and ventricles. Waves over the sphere of directions
    fold the cortex into sulci up to 20 mm deep and about 2 mm wide.
    """
    rng = np.random.default_rng(seed)
    axes = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in SHAPE]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    z = z - 6
    scale = 1 + rng.normal(0, 0.03)
    half = np.array([66.0, 84.0, 62.0]) * scale * (1 + rng.normal(0, 0.02, 3))
    labels = np.zeros(SHAPE, np.int32)

    def ball(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> npt.NDArray[np.float32]:
        """Computes the normalised squared radius, below 1 inside."""
        return np.asarray(
            ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 + ((z - centre[2]) / radii[2]) ** 2,
            np.float32,
        )

    head = np.sqrt(ball((0, 0, 0), tuple(half)))
    neck = (x / 52) ** 2 + ((y + 8) / 60) ** 2 < 1
    for grow, label in ((1.30, 511), (1.27, 507), (1.20, 515), (1.13, 516), (1.10, 515), (1.065, 24)):
        labels[(head < grow) & (z > -88)] = label
    labels[(labels == 0) & neck & (z < -30) & (z > -88)] = 507

    # Two hemispheres with a fissure between them; sulci lie where a sum of waves over the directions is near 0.
    norm = np.maximum(head, 1e-3)
    waves = np.zeros(SHAPE, np.float32)
    for _ in range(6):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        phase, frequency = rng.uniform(0, 2 * np.pi), rng.uniform(15, 24)
        along = (direction[0] * x / half[0] + direction[1] * y / half[1] + direction[2] * z / half[2]) / norm
        waves += np.cos(frequency * along + phase + 0.8 * np.sin(3 * x / half[0] + phase)).astype(np.float32)
    ridge = np.abs(waves) / 1.73  # unit deviation
    surface = (1.0 - head) * float(half.mean())  # mm below the hull
    sulcus = (surface < 20 * np.clip(1 - ridge * 1.2, 0, 1)) & (ridge < 0.2)
    fissure = (np.abs(x) < 1.2) & ((z > 14) | (np.abs(y) > 45))
    fossa = ball((0, -52, -40), (58, 42, 31)) < 1  # below the tentorium
    cerebrum = (surface > 0) & ~sulcus & ~fissure & ~fossa & (z > -50 * scale)

    depth = ndimage.distance_transform_edt(cerebrum)
    left = np.broadcast_to(x < 0, SHAPE)
    labels[cerebrum] = np.where(left, 3, 42)[cerebrum]
    thickness = 2.6 + rng.normal(0, 0.15)
    white = cerebrum & (depth > thickness)
    labels[white] = np.where(left, 2, 41)[white]

    cerebellum = ball((0, -48, -40), (46, 28, 24)) < 1
    folia = np.sin((z + 0.3 * y) * 1.5) > 0.75
    labels[cerebellum & (surface > 1)] = 24
    body = cerebellum & (surface > 2) & ~folia
    labels[body] = np.where(left, 8, 47)[body]
    inner = ball((0, -46, -40), (30, 17, 13)) < 1
    labels[inner] = np.where(left, 7, 46)[inner]
    stem = ((x / 13) ** 2 + ((y + 17) / 13) ** 2 < 1) & (z < -8) & (z > -75)
    labels[stem] = 16
    labels[ball((0, -32, -36), (7, 4, 10)) < 1] = 15

    wide = 1 + max(0.0, rng.normal(0.1, 0.25))  # larger ventricles in some
    for side in (-1, 1):
        right = side > 0
        parts: tuple[tuple[int, tuple[float, float, float], tuple[float, float, float]], ...] = (
            (60 if right else 28, (9, -12, -9), (8, 9, 6)),
            (49 if right else 10, (12, -14, 3), (9, 14, 9)),
            (52 if right else 13, (18, 3, -1), (5, 9, 6)),
            (51 if right else 12, (25, 5, 1), (5.5, 15, 9)),
            (50 if right else 11, (13, 16, 8), (5, 11, 10)),
            (53 if right else 17, (26, -18, -17), (6, 16, 5)),
            (54 if right else 18, (24, 2, -18), (6, 6, 5)),
            (43 if right else 4, (7 * wide, 2, 16), (4.5 * wide, 30, 6 * wide)),
            (43 if right else 4, (17, -32, 12), (5 * wide, 14, 6 * wide)),
            (44 if right else 5, (32, -14, -13), (2.5 * wide, 12, 3)),
            (163 if right else 136, (15, -24, 12), (1.8, 6, 1.8)),
        )
        for label, (cx, cy, cz), radii in parts:
            labels[ball((side * cx, cy, cz), radii) < 1] = label
    labels[(np.abs(x) < 2 * wide) & (np.abs(y + 10) < 12) & (np.abs(z - 2) < 8)] = 14
    return labels
