"""Draws what label maps of whole heads leave out: orbits, contents of eyes and sinuses, fat between muscles, necks.

Public label maps have one label for all soft tissue and one for the eyes, and some end at the foramen magnum. Without
more, orbit, face and neck have no texture in training, and real ones are taken for brain. ``add_face`` prepares a head
once; each scan draws its own face (``draw_face``, ``paint_face``), signals (``face_signals``) and fat (``add_fat``).
Soft tissue, mucosa and air behind other tissue are painted over, and nothing else: neither the skull nor what is in it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from pvs_model.errors import VolumeError
from pvs_model.simulation.artefacts import smooth_noise
from pvs_model.simulation.head import INDEX
from pvs_model.training.anatomy.label_maps import EXTRA_CEREBRAL, SIGNALS, LabelMap
from pvs_model.types import SEQUENCES, BoolArray, FloatArray, Triple

#: Typical signals (T1w, T2w, FLAIR) as in ``TISSUE_SIGNALS``; muscle and fat were measured in a raw T1w and T2w.
FACE_SIGNALS = {
    "soft_tissue": (0.52, 0.17, 0.26),  # muscle; ``add_fat`` adds the fat between
    "under_skin": (0.52, 0.17, 0.26),  # the same, with more fat
    "muscle": (0.52, 0.17, 0.26),
    "fat": (1.50, 0.80, 0.65),
    "vitreous": (0.22, 1.00, 0.12),
    "lens": (0.60, 0.15, 0.35),
    "nerve": (0.90, 0.33, 0.52),
    "sheath": (0.25, 0.95, 0.15),
    "mucosa": (0.55, 0.80, 0.70),
    "secretion": (0.40, 0.95, 0.60),
    "vertebra": (0.65, 0.35, 0.35),
}
#: Signal of each structure, after those of the label maps, and what their labels become.
FACE = {name: SIGNALS + k for k, name in enumerate(FACE_SIGNALS)}
BECOMES = {506: "fat", 507: "soft_tissue", 508: "muscle", 509: "mucosa", 512: "nerve", 530: "nerve"}

#: Centre and half axes of the cavities of the right side in mm: right, forward and up from the point between the eyes.
SINUSES = {
    "ethmoid": ((8.0, -18.0, -3.0), (7.0, 19.0, 13.0)),
    "maxillary": ((27.0, -14.0, -33.0), (15.0, 17.0, 17.0)),
    "nasal": ((7.0, -20.0, -33.0), (7.0, 28.0, 18.0)),
    "sphenoid": ((8.0, -54.0, -6.0), (9.0, 12.0, 10.0)),
    "frontal": ((11.0, 8.0, 28.0), (14.0, 10.0, 16.0)),
}
#: Apex of the right orbit, in the same axes.
APEX = (11.0, -42.0, 0.0)
#: Depth to which there is more fat under the skin, and rate at which a neck narrows per mm.
UNDER_SKIN_MM, NARROWING = 4, 0.004


@dataclass(frozen=True)
class FaceParams:
    """Parameters of one face. Lengths in mm.

    Attributes:
        globe_mm: Radius of the eyeballs, 11 to 13.5.
        distance: Distance of the eyes relative to that in the label map, 0.93 to 1.07.
        forward_mm, up_mm: Displacement of the eyes, up to 3 each.
        muscle_mm, nerve_mm: Half the thickness of the rectus muscles, and radius of the optic nerves, 1.2 to 2.6.
        sinus_scale: Size of the sinuses, 0.8 to 1.15.
        lining_mm: Thickness of the mucosa, 0.5 to 5.
        cell_mm, cell_angle: Distance (5 to 10) and direction of septa and conchae.
        filling: Fraction of each sinus with secretions, left and right of each in ``SINUSES``; 0 in two of three.
        end_mm: Lowest plane of the head below the centre of the brain, 72 to 130 in a third of the heads.
    """

    globe_mm: float
    distance: float
    forward_mm: float
    up_mm: float
    muscle_mm: float
    nerve_mm: float
    sinus_scale: float
    lining_mm: float
    cell_mm: float
    cell_angle: float
    filling: tuple[float, ...]
    end_mm: float


def draw_face(seed: int) -> FaceParams:
    """Draws the parameters of one face."""
    rng = random.Random(seed)
    return FaceParams(
        globe_mm=rng.uniform(11.0, 13.5),
        distance=rng.uniform(0.93, 1.07),
        forward_mm=rng.uniform(-3, 3),
        up_mm=rng.uniform(-3, 3),
        muscle_mm=rng.uniform(1.2, 2.6),
        nerve_mm=rng.uniform(1.2, 2.2),
        sinus_scale=rng.uniform(0.8, 1.15),
        lining_mm=rng.choice((rng.uniform(0.5, 2.0), rng.uniform(0.5, 5.0))),
        cell_mm=rng.uniform(5, 10),
        cell_angle=rng.uniform(0, math.pi),
        filling=tuple(rng.choice((0.0, 0.0, rng.uniform(0.1, 1.1))) for _ in range(2 * len(SINUSES))),
        end_mm=rng.choice((math.inf, math.inf, rng.uniform(72, 130))),
    )


def add_face(head: LabelMap) -> LabelMap:
    """Prepares a head: finds its eyes, separates soft tissue under the skin, and continues a neck that is cut off.

    Heads without a skull are returned as they are.

    Raises:
        VolumeError: The label map has too many kinds of voxels.
    """
    if not head.whole_head:
        return head
    kinds = len(head.signal)
    if kinds + len(FACE) > 256:
        raise VolumeError(f"{head.name}: expected at most {256 - len(FACE)} kinds of voxels, got {kinds}")
    codes = head.codes.numpy().copy()
    frame = _frame(head)
    signal = head.signal.clone()
    for label, name in BECOMES.items():
        signal[head.signal == signal_of(label)] = FACE[name]
    none = torch.zeros(len(FACE), dtype=torch.uint8)
    head = replace(
        head,
        codes=torch.from_numpy(codes),
        signal=torch.cat([signal, torch.tensor(list(FACE.values()))]),
        target=torch.cat([head.target, none]),
        side=torch.cat([head.side, none]),
        frame=torch.from_numpy(frame.astype(np.float32)),
    )
    _continue_neck(head, codes)
    near_skin = ndimage.maximum_filter(_is(head, signal_of(511))[codes], 2 * UNDER_SKIN_MM + 1)
    codes[near_skin & _is(head, FACE["soft_tissue"])[codes]] = _code(head, "under_skin")
    return head


def paint_face(head: LabelMap, params: FaceParams) -> LabelMap:
    """Paints a face into a head from ``add_face``; others are returned as they are."""
    if head.frame is None:
        return head
    head = replace(head, codes=head.codes.clone())
    head.codes[:, :, : int(max(0.0, float(head.centre[2]) - params.end_mm))] = 0
    filling = iter(params.filling)
    for name in SINUSES:
        for side in (-1, 1):
            _paint_sinus(head, params, name, side, next(filling))
    for side in (-1, 1):
        _paint_orbit(head, params, side)
    return head


def face_signals(mean: Tensor, spread: Tensor, seed: int, sequence: str) -> tuple[Tensor, Tensor]:
    """Adds mean and deviation of the signals ``FACE`` to those of the label maps."""
    g = torch.Generator().manual_seed(seed + 1)
    n = len(FACE)
    chance = torch.rand(4, generator=g)
    random_signals = 1.3 * torch.rand(n, generator=g)
    if sequence in SEQUENCES:
        prior = torch.tensor([values[SEQUENCES.index(sequence)] for values in FACE_SIGNALS.values()])
        usual = prior * (0.6 + 0.8 * torch.rand(n, generator=g))
        face = torch.where(torch.rand(n, generator=g) < 0.2, random_signals, usual)
    else:
        face = random_signals
    place = {name: index - SIGNALS for name, index in FACE.items()}
    face[place["under_skin"]] = face[place["soft_tissue"]]
    if chance[0] < 0.7:
        face[place["muscle"]] = face[place["soft_tissue"]]
    if chance[1] < 0.25:  # fat saturation
        face[place["fat"]] *= 0.2
    alike = {"vitreous": "ventricle", "sheath": "csf", "nerve": "white_matter"}
    for name, tissue in alike.items():
        if float(torch.rand((), generator=g)) < 0.8:
            face[place[name]] = mean[INDEX[tissue]] * (0.85 + 0.25 * torch.rand((), generator=g))
    return torch.cat([mean, face.clamp(0, 1.6)]), torch.cat([spread, 0.08 * torch.rand(n, generator=g)])


def add_fat(image: Tensor, signal: Tensor, mean: Tensor, seed: int, spacing_mm: float) -> Tensor:
    """Mixes fat into the soft tissue of an image, in layers and lobules of 5 to 20 mm.

    Args:
        image: (x, y, z), with the signals of muscle.
        signal: Signal of each voxel.
        mean: Signal means with those of ``face_signals``.
        seed: Seed of the texture.
        spacing_mm: Spacing of the image.
    """
    g = torch.Generator().manual_seed(seed + 2)
    cell, level, under_skin, contrast = torch.rand(4, generator=g).tolist()
    shape = image.shape
    field = torch.zeros(shape)
    for size in (5 + 5 * cell, 10 + 10 * cell):
        x, y, z = (max(2, int(n * spacing_mm / size)) for n in shape)
        field += smooth_noise((1, *shape), (x, y, z), g)[0]
    offset = torch.zeros(len(mean))
    offset[FACE["soft_tissue"]] = 0.8 * level - 0.3
    offset[FACE["under_skin"]] = 0.3 + 0.9 * under_skin
    share = (offset[signal] + (0.2 + 0.5 * contrast) * field).clamp(0, 1)
    mixed = (signal == FACE["soft_tissue"]) | (signal == FACE["under_skin"])
    return torch.where(mixed, image + share * (mean[FACE["fat"]] - mean[FACE["soft_tissue"]]), image)


def signal_of(label: int) -> int:
    """Returns the index of the signal of a label outside the brain."""
    return len(INDEX) + EXTRA_CEREBRAL.index(label)


def _code(head: LabelMap, name: str) -> int:
    return len(head.signal) - len(FACE) + FACE[name] - SIGNALS


def _is(head: LabelMap, *signals: int) -> BoolArray:
    """Whether a code has one of the signals."""
    return np.isin(head.signal.numpy(), signals)


def _frame(head: LabelMap) -> npt.NDArray[np.float64]:
    """Returns the rows of ``LabelMap.frame``.

    Without eyes in the map, they are 60 mm apart, 8 mm behind the front of the brain, at a third of its height.
    """
    codes = head.codes.numpy()
    eyes = np.argwhere(_is(head, signal_of(506))[codes])
    orbit = np.argwhere(_is(head, signal_of(508), signal_of(530))[codes])
    if len(eyes) < 500:
        brain = np.argwhere((head.target > 0).numpy()[codes])
        low, high = brain.min(0), brain.max(0)
        middle = ((low[0] + high[0]) / 2, high[1] - 8, low[2] + 0.33 * (high[2] - low[2]))
        return np.array([middle, (30, 0, 0), (0, 1, 0), (0, 0, 1)])
    right = eyes[:, 0] > (eyes[:, 0].min() + eyes[:, 0].max()) / 2
    left_eye, right_eye = eyes[~right].mean(0), eyes[right].mean(0)
    middle, across = (left_eye + right_eye) / 2, (right_eye - left_eye) / 2
    forward = np.array([0.0, 1.0, 0.0])
    if len(orbit) > 100:  # its rear end shows the pitch of the head
        forward = middle - orbit[orbit[:, 1] < np.percentile(orbit[:, 1], 15)].mean(0)
    axis = across / np.linalg.norm(across)
    forward -= (forward @ axis) * axis
    forward /= np.linalg.norm(forward)
    return np.array([middle, across, forward, np.cross(axis, forward)])


def _continue_neck(head: LabelMap, codes: npt.NDArray[np.uint8]) -> None:
    """Continues the lowest slice, if it shows the spinal canal, to the edge of the map, with vertebrae and pharynx."""
    first = int(np.flatnonzero(codes.any((0, 1)))[0])
    lowest = codes[:, :, first]
    canal = _is(head, INDEX["csf"], INDEX["brainstem"], FACE["nerve"])[lowest]
    if first < 10 or not canal.any():
        return
    below = np.where(_is(head, FACE["mucosa"])[lowest], _code(head, "soft_tissue"), lowest)
    below[(lowest == 0) & ndimage.binary_fill_holes(lowest > 0)] = _code(head, "soft_tissue")
    below[(head.target > 0).numpy()[lowest]] = _code(head, "nerve")
    below[_is(head, INDEX["csf"])[lowest]] = _code(head, "sheath")
    centre = np.argwhere(canal).mean(0)
    x, y = np.arange(below.shape[0])[:, None] - centre[0], np.arange(below.shape[1]) - centre[1]
    vertebra = ((x / 14) ** 2 + ((y - 20) / 9) ** 2 < 1) & (below > 0)
    pharynx = (x / 11) ** 2 + ((y - 38) / 7) ** 2
    below[(pharynx < 1) & (below > 0)] = _code(head, "mucosa")
    below[pharynx < 0.5] = 0
    for z in range(first):
        disc = (first - z) % 18 < 4
        below[vertebra] = _code(head, "muscle" if disc else "vertebra")
        scale = 1 + NARROWING * (first - z)
        codes[:, :, z] = ndimage.affine_transform(below, [scale, scale], centre * (1 - scale), order=0)


def _around(head: LabelMap, centre: FloatArray, reach: Triple) -> tuple[tuple[slice, ...], FloatArray]:
    """Box of voxels around a point, and their position from it: (3, x, y, z) mm, right, forward, up like the point."""
    assert head.frame is not None
    frame = head.frame.numpy()
    axes = frame[1:] / np.linalg.norm(frame[1:], axis=1, keepdims=True)
    place = frame[0] + centre @ axes
    low, high = (
        [int(np.clip(c + s * r, 0, n)) for c, r, n in zip(place, reach, head.codes.shape, strict=True)] for s in (-1, 1)
    )
    offsets = np.meshgrid(
        *(np.arange(a, b) - c for a, b, c in zip(low, high, place, strict=True)), indexing="ij", sparse=True
    )
    position = np.stack([sum(a * o for a, o in zip(axis, offsets, strict=True)) for axis in axes])
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True)), position.astype(np.float32)


def _air_inside(codes: npt.NDArray[np.uint8], box: tuple[slice, ...]) -> BoolArray:
    """Air in a box with tissue in front of it."""
    tissue = codes[box[0], box[1].start :, box[2]] > 0
    covered = np.logical_or.accumulate(tissue[:, ::-1], axis=1)[:, ::-1]
    return np.asarray((covered & ~tissue)[:, : box[1].stop - box[1].start])


def _paint_sinus(head: LabelMap, params: FaceParams, name: str, side: int, filling: float) -> None:
    """Paints air, mucosa and, at the back, secretions: over mucosa, deep soft tissue, and air behind other tissue."""
    centre, radii = (np.array(values, np.float32) for values in SINUSES[name])
    centre[0] *= side
    radii *= params.sinus_scale
    box, position = _around(head, centre, (float(radii.max()),) * 3)
    codes = head.codes.numpy()
    view = codes[box]
    scaled = position / radii[:, None, None, None]
    distance = np.sqrt((scaled**2).sum(0))
    mucosa = distance > 1 - params.lining_mm / radii.min()
    if name in ("ethmoid", "nasal"):
        along = math.cos(params.cell_angle) * position[1] + math.sin(params.cell_angle) * position[2]
        mucosa |= np.cos(2 * math.pi / params.cell_mm * along) > 0.6
    content = np.where(mucosa, _code(head, "mucosa"), 0).astype(np.uint8)
    content[scaled[1] < 2 * filling - 1] = _code(head, "secretion")
    where = (distance < 1) & (_is(head, FACE["mucosa"], FACE["soft_tissue"])[view] | _air_inside(codes, box))
    view[where] = content[where]


def _paint_orbit(head: LabelMap, params: FaceParams, side: int) -> None:
    """Paints a cone of fat, four muscles, the optic nerve in its sheath, the globe and its lens: over soft tissue."""
    assert head.frame is not None
    half = side * params.distance * float(head.frame[1].norm())
    eye = np.array([half, params.forward_mm, params.up_mm], np.float32)
    box, position = _around(head, eye, (28.0, 64.0, 32.0))
    codes = head.codes.numpy()
    view = codes[box]
    soft = _is(head, *(FACE[name] for name in ("soft_tissue", "under_skin", "muscle", "fat", "nerve")))[view]
    axis = eye - np.array([side * APEX[0], *APEX[1:]], np.float32)
    length = float(np.linalg.norm(axis))
    axis /= length
    sideways = np.cross(axis, (0, 0, 1)) / np.hypot(*axis[:2])
    along, a, b = (np.tensordot(v.astype(np.float32), position, 1) for v in (axis, sideways, np.cross(sideways, axis)))
    along = along / length + 1  # 0 at the apex, 1 at the centre of the eye
    radial, beside = np.hypot(a, b), np.minimum(np.abs(a), np.abs(b))
    globe = np.sqrt((position**2).sum(0))
    soft |= _air_inside(codes, box) & (globe < params.globe_mm)  # holes in the eyes of label maps
    lens = np.sqrt(position[0] ** 2 + position[2] ** 2 + (2 * (position[1] - params.globe_mm + 4)) ** 2)
    behind = (along > -0.1) & (along < 1)
    muscle = np.abs(radial - 2 - (params.globe_mm - 1) * along.clip(0, 1)) < params.muscle_mm
    for name, where in (
        ("fat", (along > -0.1) & (along < 1.25) & (radial < 5 + (params.globe_mm + 3) * along)),
        ("muscle", behind & muscle & (beside < 2.2 * params.muscle_mm)),
        ("sheath", behind & (radial < 1.6 * params.nerve_mm)),
        ("nerve", behind & (radial < params.nerve_mm)),
        ("muscle", globe < params.globe_mm),  # the sclera is as dark
        ("vitreous", globe < params.globe_mm - 1),
        ("lens", lens < 4.5),
    ):
        view[where & soft] = _code(head, name)
