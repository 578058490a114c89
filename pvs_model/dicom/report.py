"""Writes counts and volumes by region as structured report (TID 1500)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pvs_model import __version__
from pvs_model.burden.records import ALL, BOTH, Burden, RegionBurden
from pvs_model.dicom.codes import COUNT, CUBIC_MM, FLUID_VOLUME, NO_UNIT, PRODUCT, PVS, SIDES, SITES, VOLUME, Term
from pvs_model.dicom.segmentation import SERIES_NUMBER

if TYPE_CHECKING:
    from pydicom import Dataset


def build_report(headers: Sequence[Dataset], segmentation: Dataset, burden: Burden) -> Dataset:
    """Builds a measurement report: a group per region and side with count, volume and, if predicted, volume of fluid.

    The group of the whole brain refers to the segment, those of regions name their anatomical site.

    Args:
        headers: Headers of the images that were segmented.
        segmentation: The segmentation of ``build_segmentation``.
        burden: Measurements of its mask.

    Returns:
        The report, an unverified Comprehensive 3D SR.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(), name=PRODUCT, manufacturer_name=PRODUCT, model_name=f"{PRODUCT} {__version__}"
    )
    observer = hd.sr.ObserverContext(codes.DCM.Device, device)
    groups = [_group(row, headers, segmentation) for row in burden.regions if row.region in SITES]
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.LN.BrainMRI,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[segmentation, *headers],
        content=content[0],
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER + 1000 + int(headers[0].get("SeriesNumber") or 0) % 1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=PRODUCT,
        is_complete=True,
        series_description="Perivascular spaces (measurements)",
    )


def _group(row: RegionBurden, headers: Sequence[Dataset], segmentation: Dataset) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    side = None if row.hemisphere == BOTH else SIDES[row.hemisphere].concept()
    values: list[tuple[Term, float | None, Term]] = [
        (COUNT, row.count, NO_UNIT), (VOLUME, row.volume_mm3, CUBIC_MM), (FLUID_VOLUME, row.fluid_mm3, CUBIC_MM),
    ]  # fmt: skip
    measurements = [(name.concept(), value, unit.concept()) for name, value, unit in values if value is not None]
    common = {
        "tracking_identifier": hd.sr.TrackingIdentifier(hd.UID(), f"PVS {row.region} {row.hemisphere}"),
        "finding_type": PVS.concept(),
        "finding_category": codes.SCT.MorphologicallyAbnormalStructure,
        "algorithm_id": hd.sr.AlgorithmIdentification(PRODUCT, __version__),
        "finding_sites": [hd.sr.FindingSite(SITES[row.region].concept(), side)],
        "measurements": [hd.sr.Measurement(*known) for known in measurements],
    }
    if (row.region, row.hemisphere) != (ALL, BOTH):
        return hd.sr.MeasurementsAndQualitativeEvaluations(**common)
    segment = hd.sr.ReferencedSegment(
        segmentation.SOPClassUID,
        segmentation.SOPInstanceUID,
        1,
        source_series=hd.sr.SourceSeriesForSegmentation(headers[0].SeriesInstanceUID),
    )
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **common)
