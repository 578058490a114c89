"""Loads real scans into which PVS are inserted, with tissues by registration or from a file beside them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pvs_model.datasets.atlas_registration import Atlas, make_atlas, register
from pvs_model.datasets.insertion_sites import find_insertion_sites
from pvs_model.datasets.label_maps import find_label_maps
from pvs_model.errors import LayoutError, VolumeError
from pvs_model.files import write_tensors
from pvs_model.layouts import choose
from pvs_model.simulation.head import region_map, to_tissues
from pvs_model.simulation.insertion import RealScan
from pvs_model.types import SEQUENCES, Case, Grid, Triple, Volume

log = logging.getLogger(__name__)

#: Number of label maps, evenly spread over the folder, that are registered to each scan.
MAX_ATLASES = 3
#: Minimum correlation of a scan with the image made from its registered labels.
MIN_SIMILARITY = 0.4
#: Increased when the content of the cache changes.
CACHE_FORMAT = 1


def load_real_scans(folder: Path, anatomies: Path | None = None, cache: Path | None = None) -> list[RealScan]:
    """Loads every usable case of a folder, in any layout. Cases with a problem are logged and skipped.

    Args:
        folder: Skull-stripped T1w, T2w and FLAIR (some may be missing), co-registered.
        anatomies: Label maps with FreeSurfer ids, for cases without ``<case>_aseg.nii.gz`` beside the images.
        cache: Folder for tissue maps (registration takes a minute or two).

    Raises:
        LayoutError: There is no usable case.
        VolumeError: An image cannot be read, or no label map fits it.
    """
    scans = []
    for case in choose(folder).find_cases(folder):
        if case.problem is not None:
            log.warning("skipped: %s", case.problem)
            continue
        scans.append(load_real_scan(case, anatomies, cache))
    if not scans:
        raise LayoutError(f"{folder}: expected a case with T1w, T2w or FLAIR, got none that can be used")
    return scans


def load_real_scan(case: Case, anatomies: Path | None = None, cache: Path | None = None) -> RealScan:
    """Loads one case on the grid of its reference sequence, axes in RAS+ order.

    Raises:
        VolumeError: An image cannot be read, or no label map fits it.
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
    maps = _spread(find_label_maps(anatomies)) if aseg is None and anatomies is not None else []
    if aseg is None and not maps:
        raise VolumeError(f"{name}: expected {_beside(case)[0].name} beside the images, or a folder of label maps")
    tissue_map = _cached(images, present, reference.grid, name, aseg, maps, cache)
    return RealScan(name=name, images=images, present=present, affine=reference.affine, **tissue_map.__dict__)


def _beside(case: Case) -> list[Path]:
    """Possible paths of a segmentation of a case."""
    folder = next(iter(case.images.values())).parent
    return [folder / f"{stem}_aseg{end}" for stem in (folder.name, case.name) for end in (".nii.gz", ".mgz")]


def _spread(paths: Sequence[Path]) -> list[Path]:
    """Selects up to ``MAX_ATLASES`` paths, evenly spread."""
    count = min(MAX_ATLASES, len(paths))
    return [paths[k * len(paths) // count] for k in range(count)]


@dataclass(frozen=True)
class _TissueMap:
    """Fields of ``RealScan`` other than the images."""

    tissues: npt.NDArray[np.uint8]
    regions: npt.NDArray[np.uint8]
    insertion_sites: npt.NDArray[np.bool_]
    csf_intensity: Triple


def _cached(images: npt.NDArray[np.float32], present: tuple[bool, bool, bool], grid: Grid, name: str, aseg: Path | None,
          maps: Sequence[Path], cache: Path | None) -> _TissueMap:  # fmt: skip
    """Reads a tissue map from the cache, or makes it and caches it."""
    from safetensors.numpy import load_file

    sha = hashlib.sha256(f"{CACHE_FORMAT} {images.shape} {grid.affine.tolist()}".encode())
    sha.update(np.ascontiguousarray(images).data)
    for source in [aseg] if aseg is not None else maps:
        sha.update(source.read_bytes())
    path = cache / f"background-{name}-{sha.hexdigest()[:12]}.safetensors" if cache is not None else None
    if path is not None and path.is_file():
        arrays = load_file(path)
        t1w, t2w, flair = (float(f) for f in arrays["fluid"])
        return _TissueMap(arrays["tissues"], arrays["regions"], arrays["hosts"] > 0, (t1w, t2w, flair))
    made = _make(images, present, grid, name, aseg, maps)
    if path is not None:
        arrays = {
            "tissues": made.tissues, "regions": made.regions, "hosts": made.insertion_sites.astype(np.uint8),
            "fluid": np.array(made.csf_intensity),
        }  # fmt: skip
        write_tensors(path, arrays)
    return made


def _make(images: npt.NDArray[np.float32], present: tuple[bool, bool, bool], grid: Grid, name: str, aseg: Path | None,
          maps: Sequence[Path]) -> _TissueMap:  # fmt: skip
    """Makes a tissue map: tissues (given or by registration), regions, insertion sites and the intensity of CSF."""
    from pvs_model.volume.geometry import to_ras
    from pvs_model.volume.intensity import correct_bias, foreground
    from pvs_model.volume.io import read

    best = next(c for c in range(3) if present[c])  # T1w separates tissues best, then T2w
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
        registered = register(corrected[best], grid, inside, SEQUENCES[best], atlases)
        log.info("%s: %s fits it best, correlation %.2f", name, registered.atlas, registered.similarity)
        if registered.similarity < MIN_SIMILARITY:
            raise VolumeError(
                f"{name}: expected a skull-stripped brain that one of {len(maps)} label maps fits, got a correlation "
                f"of {registered.similarity:.2f} with the best of them"
            )
        tissues = registered.tissues
    try:
        sites = find_insertion_sites(images, corrected, present, tissues, inside, grid.spacing_mm)
    except VolumeError as error:
        raise VolumeError(f"{name}: {error}") from error
    return _TissueMap(tissues, _regions(tissues, grid.spacing_mm), sites.mask, sites.csf_intensity)


def _tissues(labels: Volume, path: Path) -> Atlas:
    return make_atlas(path.name, to_tissues(np.rint(labels.data).astype(np.int32), path.name), labels.affine)


def _nearest(source: Atlas, grid: Grid) -> npt.NDArray[np.uint8]:
    """Resamples a tissue map onto a grid by nearest neighbour, air beyond it."""
    from scipy import ndimage

    index = np.linalg.inv(source.affine) @ grid.affine
    return np.asarray(
        ndimage.affine_transform(
            source.tissues, index[:3, :3], offset=index[:3, 3], output_shape=grid.shape, order=0, mode="constant"
        )
    )


def _regions(tissues: npt.NDArray[np.uint8], spacing_mm: Triple) -> npt.NDArray[np.uint8]:
    """Makes a region map from a tissue map, on voxels of about 1 mm, for which its rules are written."""
    size = [max(1, round(n * s)) for n, s in zip(tissues.shape, spacing_mm, strict=True)]
    coarse = [((np.arange(m) + 0.5) * n / m).astype(int) for m, n in zip(size, tissues.shape, strict=True)]
    repeat = [((np.arange(n) + 0.5) * m / n).astype(int) for m, n in zip(size, tissues.shape, strict=True)]
    return region_map(tissues[np.ix_(*coarse)])[np.ix_(*repeat)]
