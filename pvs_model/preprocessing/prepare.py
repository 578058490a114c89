"""Brings the sequences of a case onto one grid, orientation and intensity scale, skull-stripped where necessary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pvs_model.errors import VolumeError
from pvs_model.preprocessing.alignment import MIN_OVERLAP
from pvs_model.types import SEQUENCES, BoolArray, Case, FloatArray, Grid, Region, Volume
from pvs_model.volume.itk import ITK_LOCK

if TYPE_CHECKING:
    from pvs_model.anatomy.regions import Anatomy
    from pvs_model.volume.geometry import Reorientation

#: Below this share of the reference's field of view, an incomplete sequence is reported.
GOOD_OVERLAP = 0.8
#: A foreground larger than this multiple of the intracranial volume is a head with its skull.
SKULL_RATIO = 1.5
#: Margin around the estimated brain mask when the skull is removed, in mm.
BRAIN_MARGIN_MM = 1.0
#: Smallest brain coverage of a skull-stripped scan at which its parcellation may remove PVS.
MIN_BRAIN_COVERAGE = 0.8
#: Largest distance of half of a PVS from the tissue that bears PVS: PVS of white matter reach into the cortex.
NEAR_TISSUE_MM = 1.0


@dataclass(frozen=True)
class PreparedImages:
    """A case on its reference grid in RAS+ orientation, standardised for the network.

    Attributes:
        image: float32 (3, x, y, z), standardised; zeros for a missing sequence.
        foreground: bool (x, y, z), head or brain of the reference.
        grid: Grid of the reference, RAS+.
        reference: Name of the sequence that defines the grid.
        reorientation: Change from the stored order of the axes of the reference file to RAS+.
        warnings: Warnings for the user.
        anatomy: Brain and regions on the grid; None when not requested or not available.
        skull_removed: Whether the skull was removed by ``prepare``.
    """

    image: FloatArray
    foreground: BoolArray
    grid: Grid
    reference: str
    reorientation: Reorientation
    warnings: tuple[str, ...]
    anatomy: Anatomy | None = None
    skull_removed: bool = False

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the sequences in the image."""
        return tuple(name for name, channel in zip(SEQUENCES, self.image, strict=True) if channel.any())

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.grid.spacing_mm))

    @property
    def parenchyma(self) -> BoolArray | None:
        """The parenchyma, bool (x, y, z); None without a parcellation or if that covers too little."""
        if self.anatomy is None:
            return None
        reliable = self.skull_removed or brain_coverage(self.anatomy, self.foreground) >= MIN_BRAIN_COVERAGE
        return self.anatomy.mask("parenchyma") if reliable else None

    @cached_property
    def pvs_tissue(self) -> BoolArray | None:
        """The tissue that bears PVS, which cortex and cerebellum do not, and what lies within ``NEAR_TISSUE_MM`` of it.

        Bool (x, y, z); None where ``parenchyma`` is None.
        """
        from pvs_model.volume.geometry import dilate_mm

        if self.anatomy is None or self.parenchyma is None:
            return None
        return dilate_mm(self.anatomy.mask("PVS"), NEAR_TISSUE_MM, self.grid.spacing_mm)

    def limits(self, region: str = "brain") -> tuple[BoolArray, ...]:
        """Regions, bool (x, y, z), that at least half of each component of the mask must lie in.

        They are the parenchyma, ``pvs_tissue``, and the region that the prompt asks for.

        Args:
            region: One of ``types.REGIONS``.

        Returns:
            Nothing where ``parenchyma`` is None.
        """
        parenchyma, tissue, anatomy = self.parenchyma, self.pvs_tissue, self.anatomy
        if parenchyma is None or tissue is None or anatomy is None:
            return ()
        asked = [anatomy.mask(known.value) for known in Region if known.full_name == region]
        return (parenchyma, tissue, *asked)

    @property
    def search_mask(self) -> BoolArray:
        """Where PVS can be, bool (x, y, z): the foreground, and of it the parenchyma where that is reliable."""
        parenchyma = self.parenchyma
        inside = self.foreground if parenchyma is None else self.foreground & parenchyma
        return inside if inside.any() else self.foreground


def read(case: Case) -> dict[str, Volume]:
    """Reads the sequences of a case as stored.

    Raises:
        VolumeError: A file cannot be read.
    """
    from pvs_model.volume import io

    return {name: io.read(case.images[name]) for name in SEQUENCES if name in case.images}


def estimate_anatomy(volumes: dict[str, Volume], weights: Path, device: Any = "cpu") -> Anatomy:
    """Estimates brain and regions on the reference grid in RAS+ from the sequence with the thinnest slices.

    Raises:
        VolumeError: No brain was detected.
        WeightsError: The weights of the anatomy network are damaged or missing.
    """
    from pvs_model.anatomy.inference import find_regions
    from pvs_model.volume import geometry

    grid, _ = geometry.to_ras_grid(volumes[geometry.choose_reference(volumes)].grid)
    thinnest = min(volumes, key=lambda name: (round(max(volumes[name].spacing_mm), 1), SEQUENCES.index(name)))
    return find_regions(volumes[thinnest], weights, device, grid)


def prepare(volumes: dict[str, Volume], n4: bool = False, anatomy: Anatomy | None = None) -> PreparedImages:
    """Resamples, skull-strips and standardises the sequences of a case.

    Args:
        volumes: Sequences as stored, by name.
        n4: Whether to correct the bias field.
        anatomy: Brain and regions on the reference grid (``estimate_anatomy``), if available.

    Raises:
        VolumeError: A sequence does not overlap with the reference, or has the contrast of another.
    """
    from pvs_model.volume import geometry, intensity

    reference = geometry.choose_reference(volumes)
    canonical, reorientation = geometry.to_ras(volumes[reference])
    foreground = intensity.foreground(canonical.data)
    warnings: list[str] = []
    skull_removed = anatomy is not None and has_skull(foreground, anatomy)
    reliable = anatomy is not None and (skull_removed or brain_coverage(anatomy, foreground) >= MIN_BRAIN_COVERAGE)
    if anatomy is not None and skull_removed:
        warnings.append("Input is not skull-stripped; applied the estimated brain mask. Please check it.")
        foreground &= geometry.dilate_mm(anatomy.brain, BRAIN_MARGIN_MM, canonical.spacing_mm)
    elif anatomy is not None and not reliable:
        warnings.append(
            f"Brain mask covers only {100 * brain_coverage(anatomy, foreground):.0f} % of the foreground; regions are "
            "unreliable and extracerebral PVS were not removed."
        )
    image = np.zeros((len(SEQUENCES), *canonical.data.shape), np.float32)
    for channel, name in enumerate(SEQUENCES):
        if name not in volumes:
            continue
        volume = canonical
        if name != reference:
            warnings += _check_overlap(name, volumes[name], reference, canonical)
            volume = geometry.resample_onto(geometry.to_ras(volumes[name])[0], canonical.grid)
        if anatomy is not None:
            warnings += _check_contrast(name, volumes[name].source, volume, anatomy, reliable)
        head = foreground
        if skull_removed:
            head = foreground & (volume.data != 0)
            volume = Volume(np.where(foreground, volume.data, np.float32(0)), volume.affine, volume.source)
        elif name != reference:
            head = intensity.foreground(volume.data) if volume.data.any() else foreground & False
        if not head.any():
            warnings.append(f"{name} is empty within the field of view of {reference} and was left out")
            continue
        if n4:
            with ITK_LOCK:
                volume = intensity.correct_bias(volume, head)
        image[channel] = intensity.standardise(volume.data, head)
        if image[channel].any():
            continue
        if name == reference:
            raise VolumeError(f"{volume.source}: expected contrast within the head, got a single value throughout")
        warnings.append(f"{name} has a single value throughout the head and was left out")
    return PreparedImages(
        image, foreground, canonical.grid, reference, reorientation, tuple(warnings), anatomy, skull_removed
    )


def has_skull(foreground: BoolArray, anatomy: Anatomy) -> bool:
    """Whether a foreground (x, y, z) is much larger than the intracranial volume."""
    return bool(foreground.sum() > SKULL_RATIO * _intracranial(anatomy).sum())


def brain_coverage(anatomy: Anatomy, foreground: BoolArray) -> float:
    """Share of a foreground (x, y, z) that the parcellation labels as intracranial."""
    return float((_intracranial(anatomy) & foreground).sum() / max(1, foreground.sum()))


def _intracranial(anatomy: Anatomy) -> BoolArray:
    return np.asarray(anatomy.brain | anatomy.mask("intracranial"))


def _check_overlap(name: str, volume: Volume, reference: str, canonical: Volume) -> list[str]:
    """Warnings about the field of view of a sequence.

    Raises:
        VolumeError: It does not overlap with the reference.
    """
    from pvs_model.volume import geometry

    covered = geometry.fov_coverage(volume.grid, canonical.grid)
    if covered < MIN_OVERLAP:
        raise VolumeError(
            f"{volume.source}: expected {name} to overlap in space with {canonical.source}, but it covers only "
            f"{covered:.0%} of its field of view"
        )
    return [f"{name} covers only {covered:.0%} of the field of view of {reference}"] if covered < GOOD_OVERLAP else []


def _check_contrast(name: str, source: Path | None, volume: Volume, anatomy: Anatomy, reliable: bool) -> list[str]:
    """Warnings about the tissue contrast of a sequence.

    Raises:
        VolumeError: The contrast contradicts the sequence's name, and the parcellation is reliable.
    """
    from pvs_model.anatomy.contrast_check import CONTRADICTS, contrast_warning

    warning = contrast_warning(name, volume.data, anatomy)
    if reliable and contrast_warning(name, volume.data, anatomy, CONTRADICTS):
        raise VolumeError(
            f"{source}: expected a {name}, got another contrast: {warning} Rename the file or remove it, or use "
            "--no-anatomy to run it anyway"
        )
    return [warning] if warning else []
