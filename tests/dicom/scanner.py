"""Writes volumes as DICOM series, as a scanner does: one file per slice, or one multi-frame file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from pvs_model.types import Volume

#: Header values by sequence: those of 3D scans at 3 T.
TIMING: dict[str, dict[str, Any]] = {
    "T1w": {"ScanningSequence": ["GR", "IR"], "RepetitionTime": 2300.0, "EchoTime": 2.98, "InversionTime": 900.0},
    "T2w": {"ScanningSequence": "SE", "RepetitionTime": 3200.0, "EchoTime": 408.0},
    "FLAIR": {"ScanningSequence": ["SE", "IR"], "RepetitionTime": 5000.0, "EchoTime": 388.0, "InversionTime": 1800.0},
}
LPS = np.array([-1.0, -1.0, 1.0])


def uid(name: str) -> str:
    return str(generate_uid(entropy_srcs=[name]))


def places(volume: Volume) -> tuple[list[list[float]], list[float], list[float]]:
    """Positions of the slices along the last axis, orientation, and pixel spacing (rows, columns)."""
    affine = volume.affine
    columns, rows = affine[:3, 0] * LPS, affine[:3, 1] * LPS
    spacing = [float(np.linalg.norm(rows)), float(np.linalg.norm(columns))]
    positions = [((affine[:3, 3] + k * affine[:3, 2]) * LPS).tolist() for k in range(volume.data.shape[2])]
    return positions, [*columns / spacing[1], *rows / spacing[0]], spacing


def common(series: str, study: str, patient: str, number: int, description: str, **header: Any) -> Dataset:
    ds = Dataset()
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = patient, "Phantom^A", "19500101", "O"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uid(study), uid(series), uid(f"{study} frame")
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240102", "101500", "1", ""
    ds.ReferringPhysicianName, ds.PositionReferenceIndicator, ds.PatientPosition = "", "", "HFS"
    ds.Modality, ds.Manufacturer, ds.SeriesNumber, ds.SeriesDescription = "MR", "SIEMENS", number, description
    ds.AcquisitionNumber, ds.MRAcquisitionType, ds.ImageType = 1, "3D", ["ORIGINAL", "PRIMARY", "M", "ND"]
    ds.SequenceVariant, ds.ScanOptions, ds.EchoTrainLength, ds.FlipAngle = "SK", "", 1, 9.0
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    for keyword, value in header.items():
        setattr(ds, keyword, value)
    return ds


def save(ds: Dataset, path: Path) -> Path:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    volume: Volume,
    sequence: str,
    series: str = "",
    study: str = "study",
    patient: str = "P.1",
    number: int = 1,
    description: str = "",
    reverse: bool = False,
    **header: Any,
) -> str:
    """Writes one file per slice, named without meaning, and returns the series UID.

    ``reverse`` numbers the slices from the last to the first.
    """
    positions, orientation, spacing = places(volume)
    series = series or f"{study} {sequence}"
    header = {**TIMING[sequence], **header}
    order = range(len(positions))
    for instance, k in enumerate(reversed(order) if reverse else order, 1):
        ds = common(series, study, patient, number, description, **header)
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, uid(f"{series} {k}")
        ds.InstanceNumber, ds.ImagePositionPatient, ds.ImageOrientationPatient = instance, positions[k], orientation
        ds.PixelSpacing, ds.SliceThickness = spacing, float(np.linalg.norm(volume.affine[:3, 2]))
        ds.Rows, ds.Columns = volume.data.shape[1], volume.data.shape[0]
        ds.PixelData = volume.data[:, :, k].T.round().astype("<u2").tobytes()
        save(ds, folder / f"{uid(f'{series} file {k}')[-12:]}")
    return uid(series)


def write_multiframe(folder: Path, volume: Volume, sequence: str, study: str = "study", description: str = "") -> str:
    """Writes one Enhanced MR image with all slices and returns the series UID."""
    positions, orientation, spacing = places(volume)
    timing, series = TIMING[sequence], f"{study} {sequence}"
    ds = common(series, study, "P.1", 1, description)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.InstanceNumber = EnhancedMRImageStorage, uid(f"{series} 0"), 1
    ds.EchoPulseSequence, ds.InversionRecovery = "SPIN", "YES" if "InversionTime" in timing else "NO"
    ds.Rows, ds.Columns, ds.NumberOfFrames = volume.data.shape[1], volume.data.shape[0], len(positions)
    thickness = float(np.linalg.norm(volume.affine[:3, 2]))
    shared = Dataset()
    shared.PixelMeasuresSequence = items(PixelSpacing=spacing, SliceThickness=thickness, SpacingBetweenSlices=thickness)
    shared.PlaneOrientationSequence = items(ImageOrientationPatient=orientation)
    shared.MRTimingAndRelatedParametersSequence = items(RepetitionTime=timing["RepetitionTime"], FlipAngle=9.0)
    shared.MREchoSequence = items(EffectiveEchoTime=timing["EchoTime"])
    if "InversionTime" in timing:
        shared.MRModifierSequence = items(InversionTimes=[timing["InversionTime"]])
    ds.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for k, position in enumerate(positions, 1):
        frame = Dataset()
        frame.PlanePositionSequence = items(ImagePositionPatient=position)
        frame.FrameContentSequence = items(StackID="1", InStackPositionNumber=k, DimensionIndexValues=[1, k])
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Items(frames)
    ds.PixelData = volume.data.transpose(2, 1, 0).round().astype("<u2").tobytes()
    save(ds, folder / "IM_0001")
    return uid(series)


def items(**values: Any) -> Items:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return Items([item])


def world_mm(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the pixels of each frame of a segmentation (frames, rows, columns, 3), RAS mm, and its values."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    row, column = np.indices((dataset.Rows, dataset.Columns))[..., None]
    centres = [
        np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        + column * between_columns * orientation[:3]
        + row * between_rows * orientation[3:]
        for frame in dataset.PerFrameFunctionalGroupsSequence
    ]
    return np.stack(centres) * LPS, np.atleast_3d(dataset.pixel_array).reshape(len(centres), *row.shape[:2])


def references(dataset: Dataset) -> Sequence[Dataset]:
    """The source image of each frame."""
    return [
        frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in dataset.PerFrameFunctionalGroupsSequence
    ]
