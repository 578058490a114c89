"""Labelled cases from files, read, aligned and prepared as for inference."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from pvs_model.anatomy.regions import Anatomy
from pvs_model.config import SLICES, TRAINED_RANGE, NetworkConfig, is_thick
from pvs_model.errors import VolumeError
from pvs_model.files import sha256_of, write_tensors
from pvs_model.inference.weights import ANATOMY, has_anatomy
from pvs_model.layouts import choose
from pvs_model.layouts.base import entries
from pvs_model.layouts.labels import bids_mask, front_of, subject_of
from pvs_model.layouts.names import front_and_rest, image_stem, sequence_of
from pvs_model.preprocessing.alignment import align
from pvs_model.preprocessing.network_grid import NetworkGrid, choose_configuration, network_image
from pvs_model.preprocessing.prepare import PreparedImages, estimate_anatomy, prepare, read
from pvs_model.simulation.head import BASAL_GANGLIA, CENTRUM_SEMIOVALE
from pvs_model.simulation.render import LABELLING_THRESHOLD, LABELLING_THRESHOLD_THICK
from pvs_model.types import Case, Mask, Volume
from pvs_model.volume import geometry
from pvs_model.volume.masks import aligned, read_region
from pvs_model.volume.masks import read_mask as read_stored

log = logging.getLogger(__name__)

#: Increased when the content of cached cases changes.
CACHE_FORMAT = 2
#: Values of the regions in ``LabelledCase.regions``.
REGION_VALUES = {"basal ganglia": BASAL_GANGLIA, "centrum semiovale": CENTRUM_SEMIOVALE}
#: Endings of the files of region masks.
REGION_FILES = {"basal ganglia": "BG", "centrum semiovale": "CSO"}
#: The arrays of a ``LabelledCase``.
TENSORS = ("image", "label", "inside", "regions", "points")


@dataclass(frozen=True)
class LabelledCase:
    """A case on the grid of the network, as at inference; for 2D networks slices lie along the last axis.

    Attributes:
        name: Name of the case.
        image: float16 (3, x, y, z), standardised, zeros for a missing sequence.
        label: uint8 (x, y, z), 1 = PVS.
        inside: uint8 (x, y, z), 1 = head, or brain for skull-stripped images.
        regions: uint8 (x, y, z), values of ``REGION_VALUES``; 0 elsewhere.
        present: Available sequences.
        asked: Regions with a mask.
        thickness_mm: Slice thickness as stored, for the prompt.
        points: int32 (n, 3), voxels of PVS.
    """

    name: str
    image: Tensor
    label: Tensor
    inside: Tensor
    regions: Tensor
    present: tuple[str, ...]
    asked: tuple[str, ...]
    thickness_mm: float
    points: Tensor


def load_cases(
    folder: Path, config: NetworkConfig, cache: Path | None = None, weights: Path | None = None
) -> list[LabelledCase]:
    """Loads the labelled cases of a folder that one network can be trained on, sorted by name.

    A label lies beside the images of its case as ``<case>_PVS.nii.gz``, ``PVS.nii.gz`` or, in BIDS,
    ``<case>_space-orig_label-PVS_mask.nii.gz``, on the grid of the reference image (T2w if available); so do optional
    ``BG`` and ``CSO`` masks. Empty labels are negative examples. Cases without a label, and those with the slice
    thickness of the other configuration, are logged and left out.

    Args:
        folder: Folder in any layout that inference reads.
        config: Configuration of the network.
        cache: Folder for prepared cases, which are then memory-mapped.
        weights: Weights folder with the anatomy network that strips the skull, as at inference; None for images as
            they are.

    Raises:
        PVSError: A case cannot be read, a label does not fit, or no case is left.
    """
    configuration = f"{config.dimensions}d"
    cases = choose(folder).find_cases(folder)
    labelled = []
    for case in cases:
        if case.problem is not None:
            raise VolumeError(case.problem)
        label = beside(case, "PVS")
        if label is not None:
            labelled.append((case, label))
        else:
            log.info("%s: left out, no %s_PVS beside its images", case.name, Path(case.name).name)
    if not labelled:
        raise VolumeError(
            f"{folder}: expected a label <case>_PVS.nii.gz or PVS.nii.gz (BIDS: <case>_label-PVS_mask.nii.gz) beside "
            f"the images, got none in {len(cases)} cases"
        )
    loaded = [_load(case, label, config, cache, weights) for case, label in labelled]
    usable = [case for case in loaded if case is not None]
    if not usable:
        raise VolumeError(
            f"{folder}: expected cases with slices {SLICES[configuration]} for the {configuration} network, got none "
            f"among {len(labelled)} labelled ones"
        )
    if not any(len(case.points) for case in usable):
        raise VolumeError(f"{folder}: expected a PVS in at least one label, got {len(usable)} empty ones")
    return usable


def beside(case: Case, name: str) -> Path | None:
    """Finds the mask of a name in the folders of a case's images.

    That is ``<case>_<name>``, BIDS's ``<case>_..._label-<name>_mask``, or else the only ``<anything>_<name>`` or
    ``<name>`` that does not belong to another case in the same folder.

    Returns:
        Its path; None if there is none.

    Raises:
        VolumeError: Several files match.
    """
    own_name = Path(case.name).name.lower()
    own, others = [], []
    for folder in sorted({path.parent for path in case.images.values()}):
        files = [(path, stem) for path in entries(folder) if (stem := image_stem(path.name)) is not None]
        other_cases = {
            front_and_rest(stem)[0].lower()
            for path, stem in files
            if path not in case.images.values() and sequence_of(path.name) is not None
        } - {own_name}
        for path, stem in files:
            front = front_of(stem, name)
            if front is None:
                continue
            if front.lower() == own_name or (bids_mask(stem) is not None and subject_of(front).lower() == own_name):
                own.append(path)
            elif front.lower() not in other_cases and not (front == "" and other_cases):
                others.append(path)
    masks = own or others
    if len(masks) > 1:
        raise VolumeError(
            f"{case.name}: expected one {name} mask beside its images, got {' and '.join(path.name for path in masks)}"
        )
    return masks[0] if masks else None


def _load(
    case: Case, label: Path, config: NetworkConfig, cache: Path | None, weights: Path | None
) -> LabelledCase | None:
    """The case on the network's grid, from the cache if it is there; None for the other configuration."""
    masks = {region: path for region, ending in REGION_FILES.items() if (path := beside(case, ending)) is not None}
    cached = cache / f"{_key(case, label, masks, config, weights)}.safetensors" if cache is not None else None
    if cached is None or not cached.is_file():
        prepared = _prepare(case, label, masks, config, weights)
        if prepared is None or cached is None:
            return prepared
        _save(cached, prepared)
    with safe_open(cached, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        tensors = {name: file.get_tensor(name) for name in TENSORS}
    return LabelledCase(
        name=case.name,
        present=tuple(facts["present"]),
        asked=tuple(facts["asked"]),
        thickness_mm=facts["thickness_mm"],
        **tensors,
    )


def _save(path: Path, case: LabelledCase) -> None:
    facts = {"present": case.present, "asked": case.asked, "thickness_mm": case.thickness_mm}
    tensors = {name: getattr(case, name) for name in TENSORS}
    write_tensors(path, tensors, {"facts": json.dumps(facts)})


def _key(case: Case, label: Path, masks: Mapping[str, Path], config: NetworkConfig, weights: Path | None) -> str:
    """A name in the cache that changes with the content of the files, the anatomy network and the network's grid."""
    configuration = f"{config.dimensions}d"
    anatomy = sha256_of(weights / ANATOMY) if weights is not None and has_anatomy(weights) else ""
    digest = hashlib.sha256(f"{CACHE_FORMAT} {configuration} {TRAINED_RANGE[configuration]} {anatomy}".encode())
    for role, path in [*sorted(case.images.items()), ("PVS", label), *sorted(masks.items())]:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise VolumeError(f"{path}: expected a file that can be read, got: {error.strerror}") from error
        digest.update(f" {role} {path.name} ".encode() + hashlib.sha256(content).digest())
    return f"{Path(case.name).name}-{digest.hexdigest()[:12]}"


def _prepare(
    case: Case, label: Path, masks: Mapping[str, Path], config: NetworkConfig, weights: Path | None
) -> LabelledCase | None:
    volumes = read(case)
    reference = volumes[geometry.choose_reference(volumes)]
    thickness_mm = max(reference.spacing_mm)
    configuration = choose_configuration(reference.grid)
    if configuration != f"{config.dimensions}d":
        log.info("%s: left out, its slices of %.2f mm are for the %s network", case.name, thickness_mm, configuration)
        return None
    pvs = read_mask(label, reference)
    volumes, warnings, _ = align(volumes)
    prepared = prepare(volumes, anatomy=_anatomy(case, volumes, weights))
    for warning in (*warnings, *prepared.warnings):
        log.warning("%s: %s", case.name, warning)
    affine = prepared.grid.affine
    grid = NetworkGrid.create(prepared.foreground, affine, config.dimensions, *TRAINED_RANGE[configuration])
    image = network_image(prepared, grid)
    inside = grid.apply_mask(prepared.foreground)
    coverage = LABELLING_THRESHOLD_THICK if is_thick(max(prepared.grid.spacing_mm)) else LABELLING_THRESHOLD
    marked = grid.apply_mask(pvs, coverage) * inside  # as at inference, which marks nothing outside the head
    if pvs.any() and not marked.any():
        raise VolumeError(f"{label}: expected PVS within the head that the images show, got none")
    return LabelledCase(
        name=case.name,
        image=torch.from_numpy(image).half().contiguous(),
        label=torch.from_numpy(marked).contiguous(),
        inside=torch.from_numpy(inside).contiguous(),
        regions=torch.from_numpy(_regions(masks, reference, prepared, grid)).contiguous(),
        present=prepared.sequences,
        asked=tuple(masks),
        thickness_mm=max(prepared.grid.spacing_mm),
        points=torch.from_numpy(np.argwhere(marked).astype(np.int32, order="C")),
    )


def _anatomy(case: Case, volumes: dict[str, Volume], weights: Path | None) -> Anatomy | None:
    """The anatomy of a case; None without an anatomy network, or if that detects no brain."""
    if weights is None or not has_anatomy(weights):
        return None
    try:
        return estimate_anatomy(volumes, weights, torch.device("cpu"))
    except VolumeError as error:
        log.warning("%s: no skull-stripping: %s", case.name, error)
        return None


def _regions(
    masks: Mapping[str, Path], reference: Volume, prepared: PreparedImages, grid: NetworkGrid
) -> npt.NDArray[np.uint8]:
    """Values of ``REGION_VALUES`` on the network's grid; where masks overlap, the last one counts."""
    labels = np.zeros(prepared.grid.shape, np.uint8)
    for region, path in masks.items():
        labels[aligned(read_region([path]), reference.grid, reference.source)] = REGION_VALUES[region]
    regions = np.zeros_like(grid.apply_mask(labels))
    for region in masks:
        regions[grid.apply_mask(labels == REGION_VALUES[region]) > 0] = REGION_VALUES[region]
    return regions


def read_labels(case: Case, like: Volume) -> dict[str, npt.NDArray[np.bool_]]:
    """Reads the masks of PVS and both regions beside a case's images.

    Returns:
        bool (x, y, z) in RAS+ by "PVS", "BG", "CSO" and "IGNORE", which scores leave out (empty if there is no such
        mask). Any of them may be empty.

    Raises:
        VolumeError: A mask is missing or lies on another grid than ``like``.
    """
    masks = {}
    for label in ("PVS", "BG", "CSO"):
        path = beside(case, label)
        if path is None:
            raise VolumeError(f"{case.name}: expected a mask <case>_{label}.nii.gz beside its images, got none")
        mask = read_stored(path) if label == "PVS" else read_region([path])
        masks[label] = aligned(mask, like.grid, like.source)
    ignore = beside(case, "IGNORE")
    masks["IGNORE"] = np.zeros_like(masks["PVS"])
    if ignore is not None:
        masks["IGNORE"] = aligned(read_stored(ignore), like.grid, like.source)
    return masks


def read_mask(path: Path, reference: Volume) -> Mask:
    """Reads a mask (x, y, z) in RAS+ orientation from a file on the grid of the reference.

    Raises:
        VolumeError: It is not a mask (``volume.masks.read_mask``), or lies on another grid.
    """
    return aligned(read_stored(path), reference.grid, reference.source).astype(np.uint8)
