"""DICOM series as input, and segmentations and structured reports as output; needs the extra ``dicom``."""
