"""A user's own labelled cases from files, read and prepared exactly as at run time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pvs_model.config import NetworkConfig
from pvs_model.errors import VolumeError
from pvs_model.layouts import choose
from pvs_model.layouts.base import entries
from pvs_model.layouts.labels import bids_mask, front_of, subject_of
from pvs_model.layouts.names import front_and_rest, image_stem, sequence_of
from pvs_model.synth.engine import LABEL_COVERAGE, LABEL_COVERAGE_THICK
from pvs_model.training.data import REGION_VALUES
from pvs_model.training.labelled import LabelledCase
from pvs_model.training.release import TRAINED_RANGE
from pvs_model.types import SEQUENCES, Case, Grid, Mask, Volume
from pvs_model.volume import geometry
from pvs_model.volume.masks import aligned, read_region
from pvs_model.volume.masks import read_mask as read_stored

log = logging.getLogger(__name__)

#: Raised whenever what is cached would differ.
CACHE_FORMAT = 1
#: What the files of region masks end in.
REGION_FILES = {"basal ganglia": "BG", "centrum semiovale": "CSO"}
#: Voxels kept around the head, as at run time.
CROP_MARGIN = 4
#: The arrays of a ``LabelledCase``.
TENSORS = ("image", "label", "inside", "regions", "points")


class Pipeline(Protocol):
    """What ``pvs_model.pipeline`` does with a case before the network sees it.

    The module itself is handed in by the command line: training lies below it in the house.
    """

    def read(self, case: Case) -> dict[str, Volume]:
        """The sequences of a case."""

    def prepare(self, volumes: dict[str, Volume]) -> Any:
        """A ``pipeline.Prepared``."""

    def network_kind(self, grid: Grid) -> str:
        """ "3d" or "2d"."""

    def target_spacing(self, spacing_mm: tuple[float, float, float], ensemble: Any) -> tuple[float, float, float]:
        """The spacing that the network is run at."""

    def slices_last(self, spacing_mm: tuple[float, float, float], dimensions: int) -> tuple[int, int, int]:
        """Order of the axes for the network."""


@dataclass(frozen=True)
class _Trained:
    """What ``target_spacing`` asks of an ensemble, for networks that are still to be trained."""

    dimensions: int
    spacing_mm: tuple[float, float]
    thickness_mm: tuple[float, float]


def load_cases(
    folder: Path, config: NetworkConfig, pipeline: Pipeline, cache: Path | None = None
) -> list[LabelledCase]:
    """The labelled cases of a folder that are for one network, sorted by name.

    A label lies beside the images of its case as ``<case>_PVS.nii.gz``, ``PVS.nii.gz`` or, as a run writes it in BIDS,
    ``<case>_space-orig_label-PVS_mask.nii.gz``, on the grid of the reference image (T2w where there is one); so do
    ``BG`` and ``CSO`` masks, if any. A label may mark nothing: such a case teaches what is no PVS. Cases without a
    label, and those whose slices are for the other network, are logged and left out.

    Args:
        folder: in any layout that is read at run time.
        config: of the network.
        pipeline: ``pvs_model.pipeline``.
        cache: folder that keeps prepared cases; they are then read from there piece by piece and take up
            next to no memory.

    Raises:
        PVSError: for a case that cannot be read, a label that does not fit, or when no case is left.
    """
    kind = f"{config.dimensions}d"
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
            f"the images, found none in {len(cases)} cases"
        )
    loaded = [_load(case, label, config, pipeline, cache) for case, label in labelled]
    kept = [case for case in loaded if case is not None]
    if not kept:
        wanted = "below 2.5 mm" if kind == "3d" else "of 2.5 mm or more"
        raise VolumeError(
            f"{folder}: expected cases with slices {wanted} for the {kind} network, found none among "
            f"{len(labelled)} labelled ones"
        )
    if not any(len(case.points) for case in kept):
        raise VolumeError(f"{folder}: expected a PVS in at least one label, found {len(kept)} that mark nothing")
    return kept


def beside(case: Case, name: str) -> Path | None:
    """The mask of a name in the folders of a case's images, if any.

    ``<case>_<name>``, BIDS's ``<case>_..._label-<name>_mask``, or else the only ``<anything>_<name>`` or ``<name>``
    that is not of another case in the same folder.

    Raises:
        VolumeError: when there are several, and it cannot be told which of them counts.
    """
    own_name = Path(case.name).name.lower()
    own, others = [], []
    for folder in sorted({path.parent for path in case.images.values()}):
        files = [(path, stem) for path in entries(folder) if (stem := image_stem(path.name)) is not None]
        strangers = {
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
            elif front.lower() not in strangers and not (front == "" and strangers):
                others.append(path)
    found = own or others
    if len(found) > 1:
        raise VolumeError(
            f"{case.name}: expected one {name} mask beside its images, found "
            f"{' and '.join(path.name for path in found)}"
        )
    return found[0] if found else None


def _load(
    case: Case, label: Path, config: NetworkConfig, pipeline: Pipeline, cache: Path | None
) -> LabelledCase | None:
    """The case as the network would see it; None when it is for the other network."""
    masks = {region: path for region, ending in REGION_FILES.items() if (path := beside(case, ending)) is not None}
    kept = cache / f"{_key(case, label, masks, config)}.safetensors" if cache is not None else None
    if kept is None or not kept.is_file():
        seen = _see(case, label, masks, config, pipeline)
        if seen is None or kept is None:
            return seen
        kept.parent.mkdir(parents=True, exist_ok=True)
        facts = {"present": seen.present, "asked": seen.asked, "thickness_mm": seen.thickness_mm}
        tensors = {name: getattr(seen, name) for name in TENSORS}
        part = kept.with_suffix(f".{os.getpid()}.part")  # the processes of one run may share a cache
        save_file(tensors, part, metadata={"facts": json.dumps(facts)})
        part.replace(kept)
    with safe_open(kept, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        tensors = {name: file.get_tensor(name) for name in TENSORS}
    return LabelledCase(
        name=case.name,
        present=tuple(facts["present"]),
        asked=tuple(facts["asked"]),
        thickness_mm=facts["thickness_mm"],
        **tensors,
    )


def _key(case: Case, label: Path, masks: Mapping[str, Path], config: NetworkConfig) -> str:
    """A name for the cache that changes with what any of the files holds, and with what the network can see."""
    kind = f"{config.dimensions}d"
    digest = hashlib.sha256(f"{CACHE_FORMAT} {kind} {TRAINED_RANGE[kind]}".encode())
    for role, path in [*sorted(case.images.items()), ("PVS", label), *sorted(masks.items())]:
        try:
            held = path.read_bytes()
        except OSError as error:
            raise VolumeError(f"{path}: expected a file that can be read, found: {error.strerror}") from error
        digest.update(f" {role} {path.name} ".encode() + hashlib.sha256(held).digest())
    return f"{Path(case.name).name}-{digest.hexdigest()[:12]}"


def _see(
    case: Case, label: Path, masks: Mapping[str, Path], config: NetworkConfig, pipeline: Pipeline
) -> LabelledCase | None:
    volumes = pipeline.read(case)
    reference = volumes[geometry.choose_reference(volumes)]
    kind = pipeline.network_kind(reference.grid)
    if kind != f"{config.dimensions}d":
        thickness = max(reference.spacing_mm)
        log.info("%s: left out, its slices of %.2f mm are for the %s network", case.name, thickness, kind)
        return None
    pvs = read_mask(label, reference)
    regions = np.zeros(pvs.shape, np.uint8)
    for region, path in masks.items():
        regions[aligned(read_region([path]), reference.grid, reference.source)] = REGION_VALUES[region]
    prepared = pipeline.prepare(volumes)
    for warning in prepared.warnings:
        log.warning("%s: %s", case.name, warning)

    # From here on as ``pipeline.predict`` does: crop, respace outside the trained range, slices last.
    crop = geometry.crop_to(prepared.inside, CROP_MARGIN)
    affine = crop.affine(prepared.grid.affine)
    spacing = prepared.grid.spacing_mm
    wanted = pipeline.target_spacing(spacing, _Trained(config.dimensions, *TRAINED_RANGE[kind]))

    def seen(array: Any, least: float | None = None) -> Any:
        data = crop.apply(array).astype(np.float32)
        if wanted != spacing:
            volume, _ = geometry.resample_to_spacing(Volume(data, affine), wanted)
            data = volume.data
        data = data.transpose(pipeline.slices_last(wanted, config.dimensions))
        return data if least is None else (data >= least).astype(np.uint8)

    coverage = LABEL_COVERAGE_THICK if max(spacing) >= 2.5 else LABEL_COVERAGE
    image = np.stack([seen(channel) for channel in prepared.image])
    inside = seen(prepared.inside, 0.5)
    marked = seen(pvs, coverage) * inside  # as at run time: nothing is found outside the head
    if pvs.any() and not marked.any():
        raise VolumeError(f"{label}: expected PVS within the head that the images show, found none")
    by_region = np.zeros(marked.shape, np.uint8)
    for region in masks:
        value = REGION_VALUES[region]
        by_region[seen(regions == value, 0.5) > 0] = value
    return LabelledCase(
        name=case.name,
        image=torch.from_numpy(image).half().contiguous(),
        label=torch.from_numpy(marked).contiguous(),
        inside=torch.from_numpy(inside).contiguous(),
        regions=torch.from_numpy(by_region).contiguous(),
        present=tuple(name for name, channel in zip(SEQUENCES, image, strict=True) if channel.any()),
        asked=tuple(masks),
        thickness_mm=max(spacing),
        points=torch.from_numpy(np.argwhere(marked).astype(np.int32, order="C")),
    )


def read_labels(case: Case, like: Volume) -> dict[str, npt.NDArray[np.bool_]]:
    """The masks of PVS and both regions beside a case's images: bool (x, y, z) by "PVS", "BG" and "CSO".

    And "IGNORE", what scores leave out: nothing, but where a simulated case has such a mask.

    Raises:
        VolumeError: when one is missing or lies on another grid than ``like``. Any of them may mark nothing.
    """
    found = {}
    for label in ("PVS", "BG", "CSO"):
        path = beside(case, label)
        if path is None:
            raise VolumeError(f"{case.name}: expected a mask <case>_{label}.nii.gz beside its images, found none")
        mask = read_stored(path) if label == "PVS" else read_region([path])
        found[label] = aligned(mask, like.grid, like.source)
    ignore = beside(case, "IGNORE")
    found["IGNORE"] = np.zeros_like(found["PVS"])
    if ignore is not None:
        found["IGNORE"] = aligned(read_stored(ignore), like.grid, like.source)
    return found


def read_mask(path: Path, reference: Volume) -> Mask:
    """A mask (x, y, z) in RAS+ order from a file on the reference's grid, in any order of its axes.

    Raises:
        VolumeError: when it is no mask (``volume.masks.read_mask``), or lies on another grid.
    """
    return aligned(read_stored(path), reference.grid, reference.source).astype(np.uint8)
