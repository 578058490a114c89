"""Size and direction of one perivascular space (PVS), from the voxels of its cluster.

PVS are one to three voxels thick, so what matters is how much of a voxel is added at each end and each side. Every
formula here was chosen among alternatives by its error on painted tubes (docs/burden.md, ``benchmarks/morphology.py``).
All of them work on positions in mm, so voxels may be of any shape; all scale with the voxel size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pvs_model.types import Affine, BoolArray, Float64Array, Triple

#: Smallest linearity of clusters with a direction: below it, the main axis of simulated tubes is not informative.
MIN_LINEARITY = 0.4
#: Standard deviation of the smoothing along a centre line, in voxels (cube root of their volume): with less, the
#: staircase of a slanting line adds to its length; with more, bends are cut.
SMOOTHING_VOXELS = 2.0
#: Points of the centre line from whose span the direction of its end is taken.
_END_POINTS = 3


@dataclass(frozen=True)
class Shape:
    """Size and direction of a cluster of N voxels.

    Attributes:
        voxels: N, at least 1.
        volume_mm3: N times the volume of a voxel.
        length_mm: Length from tip to tip along the centre line; at least about one voxel.
        width_mm: Diameter of the round-ended tube of this length and volume.
        linearity: 0 (round or flat) to nearly 1 (a long line), 1 - (second / first) spread of the voxels.
        direction: Unit vector in RAS, towards superior; None below ``MIN_LINEARITY``.
        centre_mm: Mean position in RAS mm.
    """

    voxels: int
    volume_mm3: float
    length_mm: float
    width_mm: float
    linearity: float
    direction: Triple | None
    centre_mm: Triple

    @property
    def elongation(self) -> float:
        """Length over width, above 0; 1 for a ball."""
        return self.length_mm / self.width_mm

    @property
    def angle_to_superior_degrees(self) -> float | None:
        """Angle between the direction and the inferior-superior axis, 0 to 90; None without a direction."""
        if self.direction is None:
            return None
        right, anterior, superior = self.direction
        return math.degrees(math.atan2(math.hypot(right, anterior), abs(superior)))


def shape_of(cluster: BoolArray, affine: Affine) -> Shape:
    """Measures one cluster.

    Args:
        cluster: bool (x, y, z), the voxels of one 26-connected cluster, best cut to its own box: cost grows with the
            box. To be the same for any storage of the same scan, the array's axes must be in RAS+ order.
        affine: (4, 4), voxel index of this array to RAS mm.

    Raises:
        ValueError: an empty cluster.
    """
    index = np.argwhere(cluster)
    if not len(index):
        raise ValueError("expected a cluster of one voxel or more, got an empty one")
    axes = affine[:3, :3].astype(np.float64)
    position = index @ axes.T
    centre = position.mean(0)
    spread = (position - centre).T @ (position - centre) / len(index)
    one_voxel = axes @ axes.T / 12
    volume = len(index) * voxel_volume_mm3(axes)
    length = _length(cluster, position, axes, spread + one_voxel)
    linearity, direction = _direction(spread, one_voxel)
    return Shape(
        voxels=len(index),
        volume_mm3=volume,
        length_mm=length,
        width_mm=tube_width(volume, length),
        linearity=linearity,
        direction=direction,
        centre_mm=_vector(centre + affine[:3, 3]),
    )


def voxel_volume_mm3(affine: Affine) -> float:
    """Returns the volume of a voxel, from an affine (4, 4) or its first three rows and columns."""
    first, second, third = affine[:3, :3].T
    # Not by LAPACK, which finds 0.12500000000000003 mm3 in a voxel of 0.5 mm.
    return abs(float(np.dot(first, np.cross(second, third))))


def tube_width(volume_mm3: float, length_mm: float) -> float:
    """Returns the diameter w in mm of the tube with round ends that has this volume V and length L from tip to tip.

    Solves V = pi/4 w^2 (L - w/3), a cylinder and two half balls; a ball's diameter where V is more than a ball of
    diameter L holds.
    """
    share = 6 * volume_mm3 / (math.pi * length_mm**3)
    if share >= 1:
        return math.cbrt(6 * volume_mm3 / math.pi)
    # w^3 - 3 L w^2 + 12 V / pi = 0 with w = L (1 + 2 cos t) is cos 3t = 1 - share; this is its root from 0 to L.
    return length_mm * (1 + 2 * math.cos((2 * math.pi - math.acos(1 - share)) / 3))


def centre_line(cluster: BoolArray, axes: Float64Array) -> Float64Array:
    """Returns the longest of the shortest paths through the skeleton (Lee 1994, scikit-image).

    Where the thinning leaves nothing, which happens to clusters of even thickness, it is a path through all voxels.

    Args:
        cluster: bool (x, y, z), one 26-connected cluster.
        axes: (3, 3), steps in mm from voxel to voxel as columns.

    Returns:
        (P, 3) positions in mm from the array's first voxel, from end to end, P at least 1.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra
    from scipy.spatial import KDTree
    from skimage.morphology import skeletonize

    # With a margin, as thinning extends the array beyond its edge.
    index = np.argwhere(skeletonize(np.pad(cluster, 1))) - 1
    if not len(index):
        index = np.argwhere(cluster)
    position = index @ axes.T
    if len(index) == 1:
        return position
    pairs = KDTree(index).query_pairs(1, p=np.inf, output_type="ndarray")
    start, end = np.concatenate([pairs, pairs[:, ::-1]]).T
    steps = np.sqrt(((position[start] - position[end]) ** 2).sum(1))
    graph = csr_array((steps, (start, end)), shape=(len(index), len(index)))
    # The point furthest from any point is one end of a tree's longest path.
    first = _furthest(dijkstra(graph, indices=0))
    distance, before = dijkstra(graph, indices=first, return_predecessors=True)
    path = [_furthest(distance)]
    while path[-1] != first:
        path.append(int(before[path[-1]]))
    return position[path]


def _furthest(distance: Float64Array) -> int:
    return int(np.argmax(np.where(np.isfinite(distance), distance, -1)))


def _length(cluster: BoolArray, position: Float64Array, axes: Float64Array, solid: Float64Array) -> float:
    """Returns the length of a cluster with voxels at ``position`` (N, 3) and second moments ``solid`` of boxes."""
    from scipy.spatial import KDTree

    line = centre_line(cluster, axes) if len(position) > 1 else position
    line = _smoothed(line, SMOOTHING_VOXELS * math.cbrt(voxel_volume_mm3(axes)))
    length = float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
    if length < (1 - 1e-9) * float(np.linalg.norm(axes, axis=0).max()):
        # No line to speak of: the edge of the box with the same spread, exact for a voxel and for any block of them.
        return math.sqrt(12 * float(np.linalg.eigvalsh(solid)[-1]))
    # Thinning eats the ends: go on straight to the last voxel, and through half of that.
    _, nearest = KDTree(line).query(position)
    for end, inner in ((0, min(_END_POINTS, len(line) - 1)), (len(line) - 1, max(0, len(line) - 1 - _END_POINTS))):
        outward = line[end] - line[inner]
        outward /= np.linalg.norm(outward)
        beyond = (position[nearest == end] - line[end]) @ outward
        length += max(0.0, float(beyond.max(initial=0.0))) + _through_voxel(outward, axes) / 2
    return length


def _smoothed(line: Float64Array, sigma_mm: float) -> Float64Array:
    """Smooths a line (P, 3) along its length by a Gaussian, with fixed ends."""
    points = len(line)
    if points < 3:
        return line
    # Mirrored through its ends, so that these do not draw in.
    longer = np.concatenate([2 * line[0] - line[:0:-1], line, 2 * line[-1] - line[-2::-1]])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(longer, axis=0), axis=1))])
    weight = np.exp(-0.5 * ((along[points - 1 : 2 * points - 1, None] - along) / sigma_mm) ** 2)
    return weight @ longer / weight.sum(1, keepdims=True)


def _through_voxel(direction: Float64Array, axes: Float64Array) -> float:
    """Returns the length in mm of the line through a voxel's middle in a direction (a unit vector)."""
    return 1 / float(np.abs(np.linalg.solve(axes, direction)).max())


def _direction(spread: Float64Array, one_voxel: Float64Array) -> tuple[float, Triple | None]:
    """Returns linearity, and the main axis where there is one, from second moments (3, 3) in mm2.

    A voxel is in the mask when a share of it is filled, so a cluster is the PVS widened by about a voxel: the voxel's
    own moments are taken off, which matters where voxels are longer than wide.
    """
    values, vectors = np.linalg.eigh(spread - one_voxel)
    _, second, first = np.maximum(values, 0)
    linearity = float((first - second) / (first + np.trace(one_voxel) / 3))
    if linearity < MIN_LINEARITY:
        return linearity, None
    axis = vectors[:, 2]
    # Of the two opposite vectors the one towards superior, else anterior, else right.
    leading = next(float(axis[k]) for k in (2, 1, 0) if abs(axis[k]) > 1e-9)
    return linearity, _vector(axis if leading > 0 else -axis)


def _vector(values: Float64Array) -> Triple:
    x, y, z = (float(value) + 0.0 for value in values)
    return x, y, z
