"""Writes a mask as DICOM segmentation on the images of its series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pvs_model import __version__
from pvs_model.dicom.codes import PRODUCT, PVS, algorithm
from pvs_model.dicom.headers import OFF_GRID, Frame, Series, frames_of
from pvs_model.errors import VolumeError
from pvs_model.types import Affine, Mask

if TYPE_CHECKING:
    from pydicom import Dataset

#: Largest distance of a pixel from the centre of its voxel, in voxels: positions in headers are rounded, and distances
#: between slices may differ a little.
TOLERANCE = 2 * OFF_GRID
#: DICOM's axes point to left, posterior and superior.
_LPS = np.array([-1.0, -1.0, 1.0])
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
#: Series number of the segmentation and of the report: that of the images, behind this.
SERIES_NUMBER = 7000


def read_headers(series: Series) -> list[Dataset]:
    """Reads the headers of all images of a series, without pixels, in the order of their slices.

    Attributes that every image must have but that anonymisation removes are empty.

    Raises:
        VolumeError: A file cannot be read, or has no frame of reference or no place in it.
    """
    from pydicom import dcmread

    headers: list[Dataset] = []
    for path in series.files:
        try:
            headers.append(dcmread(path, stop_before_pixels=True))
        except (OSError, ValueError) as error:
            raise VolumeError(f"{path}: expected a DICOM image, got: {error}") from error
        for keyword in (keyword for keyword in _MAY_BE_EMPTY if keyword not in headers[-1]):
            setattr(headers[-1], keyword, "")
        if not headers[-1].get("FrameOfReferenceUID"):
            raise VolumeError(f"{path}: expected a frame of reference, as a segmentation needs one, got none")
        if not frames_of(headers[-1]):
            raise VolumeError(f"{path}: expected position, orientation and spacing, as a segmentation needs, got none")
    first = frames_of(headers[0])[0]
    normal = np.cross(first.along_row, first.along_column)
    headers.sort(key=lambda header: float(frames_of(header)[0].position_mm @ normal / np.linalg.norm(normal)))
    if len(headers) > 1:
        ends = (frames_of(headers[k])[0].position_mm for k in (0, -1))
        distance = float(np.linalg.norm(np.subtract(*ends))) / (len(headers) - 1)
        for header in headers:
            header.SliceThickness = header.get("SliceThickness") or round(distance, 6)
    return headers


def study_of(path: Path) -> str | None:
    """Returns the study UID of a DICOM file; None where there is no such file, or it is damaged."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        return str(dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
    except (InvalidDicomError, OSError, AttributeError):
        return None


def build_segmentation(headers: Sequence[Dataset], mask: Mask, affine: Affine) -> Dataset:
    """Builds a segmentation (SEG, binary) with one segment, each frame on the image of its slice.

    Args:
        headers: Headers of the images of the series, or of its one multi-frame image.
        mask: (x, y, z), PVS where not 0, on the voxels of the series in any order of axes.
        affine: (4, 4), voxel index of the mask to RAS+ mm.

    Returns:
        The segmentation, with a frame for each slice.

    Raises:
        VolumeError: The mask does not lie on the voxels of the series.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    shape = (int(headers[0].Rows), int(headers[0].Columns))
    frames = [frame for header in headers for frame in frames_of(header)]
    pixels = np.stack([_slice(mask, affine, frame, shape) for frame in frames])
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Perivascular spaces",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=PVS.concept(),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm(),
        tracking_uid=hd.UID(),
        tracking_id=PRODUCT,
        anatomic_regions=[codes.SCT.Brain],
    )
    return hd.seg.Segmentation(
        source_images=list(headers),
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER + int(headers[0].get("SeriesNumber") or 0) % 1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=PRODUCT,
        manufacturer_model_name=PRODUCT,
        software_versions=__version__,
        device_serial_number=__version__,
        content_description="Perivascular spaces",
        content_label="PVS",
        series_description="Perivascular spaces (segmentation)",
        omit_empty_frames=False,  # readers that know nothing of segmentations then get a whole volume
    )


def _slice(mask: Mask, affine: Affine, frame: Frame, shape: tuple[int, int]) -> Mask:
    """Returns the values of a mask at the pixels (row, column) of a frame.

    Raises:
        VolumeError: The pixels are not voxels of the mask.
    """
    to_voxel = np.linalg.inv(affine)
    start = to_voxel[:3, :3] @ (frame.position_mm * _LPS) + to_voxel[:3, 3]
    right, down = (to_voxel[:3, :3] @ (step * _LPS) for step in (frame.along_row, frame.along_column))
    rows, columns = np.indices(shape)
    exact = start + rows[..., None] * down + columns[..., None] * right
    index = np.rint(exact).astype(int)
    off = float(np.abs(exact - index).max())
    if off > TOLERANCE or (index < 0).any() or (index >= mask.shape).any():
        raise VolumeError(
            f"expected a mask on the pixels of the DICOM series ({shape[0]} rows, {shape[1]} columns), got another "
            f"grid ({' x '.join(map(str, mask.shape))} voxels, {off:.3g} voxels away)"
        )
    values: Mask = (mask[tuple(np.moveaxis(index, -1, 0))] != 0).astype(np.uint8)
    return values


def write_dicom(path: Path, dataset: Dataset) -> None:
    """Writes a DICOM file that appears under its name only once it is complete.

    Raises:
        PVSError: It cannot be written.
    """
    from pvs_model.files import write_atomically

    write_atomically(path, lambda part: dataset.save_as(part, enforce_file_format=True))
