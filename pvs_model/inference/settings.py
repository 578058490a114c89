"""Settings with which an ensemble is run, as an entry of the manifest has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: How the probabilities of groups can be combined.
COMBINE = ("mean", "maximum")


@dataclass(frozen=True)
class EnsembleSettings:
    """Settings with which an ensemble is run.

    Attributes:
        threshold: Probability that a PVS reaches somewhere, chosen on simulated scans only.
        roi_size: Side of the sliding window in voxels.
        overlap: Overlap of neighbouring windows, as a fraction of their side.
        in_plane_mm: Lowest and highest voxel spacing within slices that training covered; grids outside this range
            are resampled into it.
        through_plane_mm: The same across slices.
        combine: How groups are combined: "mean", or "maximum", which marks what any group marks at the threshold.
        low_threshold: Probability that each voxel of a PVS reaches; None for ``threshold``.

    Example:
        >>> settings = EnsembleSettings(0.5, 64, 0.125, in_plane_mm=(0.45, 1.25), through_plane_mm=(0.45, 2.5))
        >>> EnsembleSettings.from_json(settings.to_json()) == settings
        True
    """

    threshold: float
    roi_size: int
    overlap: float
    in_plane_mm: tuple[float, float]
    through_plane_mm: tuple[float, float]
    combine: str = COMBINE[0]
    low_threshold: float | None = None

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> EnsembleSettings:
        """Reads the settings of an entry of the manifest.

        Raises:
            KeyError, TypeError, ValueError: One is missing or of another type.
        """
        return EnsembleSettings(
            threshold=float(entry["threshold"]),
            roi_size=int(entry["window"]),
            overlap=float(entry["overlap"]),
            in_plane_mm=_pair(entry["spacing_mm"]),
            through_plane_mm=_pair(entry["thickness_mm"]),
            combine=entry.get("combine", COMBINE[0]),
            low_threshold=float(entry["low_threshold"]) if "low_threshold" in entry else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The values of an entry of the manifest; defaults are left out."""
        entry = {
            "threshold": self.threshold,
            "window": self.roi_size,
            "overlap": self.overlap,
            "spacing_mm": list(self.in_plane_mm),
            "thickness_mm": list(self.through_plane_mm),
        }
        if self.low_threshold is not None:
            entry["low_threshold"] = self.low_threshold
        return entry if self.combine == COMBINE[0] else {**entry, "combine": self.combine}

    @property
    def problem(self) -> str | None:
        """The rest of the sentence "expected an ensemble ..." if its values cannot be used."""
        if not (0 < self.threshold < 1 and self.roi_size > 0 and self.roi_size % 8 == 0 and 0 <= self.overlap < 1):
            return (
                "with a threshold within 0 to 1, a window that is a multiple of 8 and an overlap below 1, got "
                f"{self.threshold}, {self.roi_size}, {self.overlap}"
            )
        if self.low_threshold is not None and not 0 < self.low_threshold <= self.threshold:
            return f"with a low threshold above 0 and up to the threshold, {self.threshold}, got {self.low_threshold}"
        if self.combine not in COMBINE:
            return f"whose groups are combined by {' or '.join(COMBINE)}, got {self.combine!r}"
        return None


def _pair(values: Sequence[float]) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)
