"""Real scans as backgrounds for PVS: read, find their tissues by registration or from a file beside them, keep."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pvs_model.errors import LayoutError, VolumeError
from pvs_model.layouts import choose
from pvs_model.synth.anatomy import region_map, to_tissues
from pvs_model.synth.background import Background, MixedCase, MixParams, mix, mix_as
from pvs_model.synth.params import Triple
from pvs_model.training.data import label_maps
from pvs_model.training.hosts import find_hosts
from pvs_model.training.registration import Atlas, atlas, register
from pvs_model.types import SEQUENCES, Case, Grid, Volume

__all__ = ["Background", "MixParams", "MixedCase", "load_background", "load_backgrounds", "mix", "mix_as"]

log = logging.getLogger(__name__)

#: So many label maps, spread over the folder, are tried on each scan.
TRIED = 3
#: Correlation of a scan with the image made from its registered labels, below which they are not its own.
LEAST_SIMILARITY = 0.4
#: Kept with what was found; another number makes kept results void.
VERSION = 1


def load_backgrounds(folder: Path, anatomies: Path | None = None, cache: Path | None = None) -> list[Background]:
    """Every usable case of a folder, in any of the layouts. Cases with a problem are logged and left out.

    Args:
        folder: skull-stripped T1w, T2w and FLAIR (some may be missing), co-registered.
        anatomies: label maps with FreeSurfer ids, for the cases without ``<case>_aseg.nii.gz`` beside the images.
        cache: folder that keeps what was found in a scan (registration takes a minute or two).

    Raises:
        LayoutError: there is no usable case.
        VolumeError: an image cannot be read, or no label map fits it.
    """
    found = []
    for case in choose(folder).find_cases(folder):
        if case.problem is not None:
            log.warning("left out: %s", case.problem)
            continue
        found.append(load_background(case, anatomies, cache))
    if not found:
        raise LayoutError(f"{folder}: expected a case with T1w, T2w or FLAIR, found none that can be used")
    return found


def load_background(case: Case, anatomies: Path | None = None, cache: Path | None = None) -> Background:
    """One case on the grid of its reference sequence, axes in RAS+ order.

    Raises:
        VolumeError: an image cannot be read, or no label map fits it.
    """
    from pvs_model.volume.geometry import choose_reference, resample_onto, to_ras
    from pvs_model.volume.io import read

    volumes = {name: to_ras(read(case.images[name]))[0] for name in SEQUENCES if name in case.images}
    reference = volumes[choose_reference(volumes)]
    present = (SEQUENCES[0] in volumes, SEQUENCES[1] in volumes, SEQUENCES[2] in volumes)
    images = np.zeros((3, *reference.data.shape), np.float32)
    for channel, name in enumerate(SEQUENCES):
        if present[channel]:
            images[channel] = resample_onto(volumes[name], reference.grid).data
    name = case.name.replace("/", "_")
    aseg = next((p for p in _beside(case) if p.is_file()), None)
    maps = _spread(label_maps(anatomies)) if aseg is None and anatomies is not None else []
    if aseg is None and not maps:
        raise VolumeError(f"{name}: expected {_beside(case)[0].name} beside the images, or a folder of label maps")
    anatomy = _kept(images, present, reference.grid, name, aseg, maps, cache)
    return Background(name=name, images=images, present=present, affine=reference.affine, **anatomy.__dict__)


def _beside(case: Case) -> list[Path]:
    """Where a segmentation of a case would lie."""
    folder = next(iter(case.images.values())).parent
    return [folder / f"{stem}_aseg{end}" for stem in (folder.name, case.name) for end in (".nii.gz", ".mgz")]


def _spread(paths: Sequence[Path]) -> list[Path]:
    """``TRIED`` of some paths, evenly spread; all where there are fewer."""
    count = min(TRIED, len(paths))
    return [paths[k * len(paths) // count] for k in range(count)]


@dataclass(frozen=True)
class _Anatomy:
    """What is found in a scan: the fields of ``Background`` beyond its images."""

    tissues: npt.NDArray[np.uint8]
    regions: npt.NDArray[np.uint8]
    hosts: npt.NDArray[np.bool_]
    fluid: Triple


def _kept(images: npt.NDArray[np.float32], present: tuple[bool, bool, bool], grid: Grid, name: str, aseg: Path | None,
          maps: Sequence[Path], cache: Path | None) -> _Anatomy:  # fmt: skip
    """From the cache, else found now and put there."""
    from safetensors.numpy import load_file, save_file

    sha = hashlib.sha256(f"{VERSION} {images.shape} {grid.affine.tolist()}".encode())
    sha.update(np.ascontiguousarray(images).data)
    for path in [aseg] if aseg is not None else maps:
        sha.update(path.read_bytes())
    kept = cache / f"background-{name}-{sha.hexdigest()[:12]}.safetensors" if cache is not None else None
    if kept is not None and kept.is_file():
        arrays = load_file(kept)
        t1w, t2w, flair = (float(f) for f in arrays["fluid"])
        return _Anatomy(arrays["tissues"], arrays["regions"], arrays["hosts"] > 0, (t1w, t2w, flair))
    found = _find(images, present, grid, name, aseg, maps)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        arrays = {
            "tissues": found.tissues, "regions": found.regions, "hosts": found.hosts.astype(np.uint8),
            "fluid": np.array(found.fluid),
        }  # fmt: skip
        part = kept.with_suffix(".part")
        save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, part)
        part.replace(kept)
    return found


def _find(images: npt.NDArray[np.float32], present: tuple[bool, bool, bool], grid: Grid, name: str, aseg: Path | None,
          maps: Sequence[Path]) -> _Anatomy:  # fmt: skip
    """Tissues (given, or by registration), regions, hosts and the intensity of CSF."""
    from pvs_model.volume.geometry import to_ras
    from pvs_model.volume.intensity import correct_bias, foreground
    from pvs_model.volume.io import read

    best = next(c for c in range(3) if present[c])  # T1w tells tissues apart best, then T2w
    inside = foreground(images[best])
    corrected = images.copy()
    for channel in range(3):
        if present[channel]:
            corrected[channel] = correct_bias(Volume(images[channel], grid.affine), inside).data
    if aseg is not None:
        tissues = _nearest(_tissues(to_ras(read(aseg))[0], aseg), grid)
    else:
        atlases = []
        for path in maps:
            volume, _ = to_ras(read(path))
            atlases.append(_tissues(volume, path))
        fitted = register(corrected[best], grid, inside, SEQUENCES[best], atlases)
        log.info("%s: %s fits it best, correlation %.2f", name, fitted.atlas, fitted.similarity)
        if fitted.similarity < LEAST_SIMILARITY:
            raise VolumeError(
                f"{name}: expected a skull-stripped brain that one of {len(maps)} label maps fits, found a correlation "
                f"of {fitted.similarity:.2f} with the best of them"
            )
        tissues = fitted.tissues
    found = find_hosts(images, corrected, present, tissues, inside, grid.spacing_mm)
    return _Anatomy(tissues, _regions(tissues, grid.spacing_mm), found.hosts, found.fluid)


def _tissues(labels: Volume, path: Path) -> Atlas:
    return atlas(path.name, to_tissues(np.rint(labels.data).astype(np.int32), path.name), labels.affine)


def _nearest(source: Atlas, grid: Grid) -> npt.NDArray[np.uint8]:
    """A tissue map on a grid, nearest neighbour; air beyond it."""
    from scipy import ndimage

    index = np.linalg.inv(source.affine) @ grid.affine
    return np.asarray(
        ndimage.affine_transform(
            source.tissues, index[:3, :3], offset=index[:3, 3], output_shape=grid.shape, order=0, mode="constant"
        )
    )


def _regions(tissues: npt.NDArray[np.uint8], spacing_mm: Triple) -> npt.NDArray[np.uint8]:
    """Regions of a tissue map; their rules are in voxels of 1 mm."""
    size = [max(1, round(n * s)) for n, s in zip(tissues.shape, spacing_mm, strict=True)]
    coarse = [((np.arange(m) + 0.5) * n / m).astype(int) for m, n in zip(size, tissues.shape, strict=True)]
    back = [((np.arange(n) + 0.5) * m / n).astype(int) for m, n in zip(size, tissues.shape, strict=True)]
    return region_map(tissues[np.ix_(*coarse)])[np.ix_(*back)]
