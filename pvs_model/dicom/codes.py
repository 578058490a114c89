"""Codes and names that segmentations and reports share.

Terms without a code in the dictionaries of pydicom are private ("99PVS"), as DICOM provides for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pvs_model import __version__
from pvs_model.burden.records import ALL, LEFT, RIGHT
from pvs_model.burden.subregions import DEEP_WM
from pvs_model.types import Region

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept

PRODUCT = "pvs-model"


@dataclass(frozen=True)
class Term:
    """A coded term: its value, scheme and meaning."""

    value: str
    scheme: str
    meaning: str

    def concept(self) -> CodedConcept:
        """The term as highdicom takes it."""
        from highdicom.sr import CodedConcept

        return CodedConcept(self.value, self.scheme, self.meaning)


PVS = Term("PVS", "99PVS", "Perivascular spaces")
COUNT = Term("246206008", "SCT", "Number of lesions")
VOLUME = Term("118565006", "SCT", "Volume")
FLUID_VOLUME = Term("PVS-FLUID", "99PVS", "Volume of fluid in perivascular spaces")
CUBIC_MM = Term("mm3", "UCUM", "cubic millimeter")
NO_UNIT = Term("1", "UCUM", "no units")
#: Regions by their names in tables.
SITES = {
    ALL: Term("12738006", "SCT", "Brain"),
    "WM": Term("68523003", "SCT", "Cerebral white matter"),
    DEEP_WM: Term("DEEP-WM", "99PVS", "Deep cerebral white matter"),
    Region.CSO.table_name: Term("CSO", "99PVS", "Centrum semiovale"),
    Region.BG.table_name: Term("BG", "99PVS", "Basal ganglia"),
    Region.HIPPOCAMPUS.table_name: Term("5366008", "SCT", "Hippocampus"),
    Region.MIDBRAIN.table_name: Term("61962009", "SCT", "Midbrain"),
}
SIDES = {LEFT: Term("7771000", "SCT", "Left"), RIGHT: Term("24028007", "SCT", "Right")}


def algorithm() -> Any:
    """The algorithm of a segment, for its description."""
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    return AlgorithmIdentificationSequence(PRODUCT, codes.DCM.ArtificialIntelligence, __version__)
