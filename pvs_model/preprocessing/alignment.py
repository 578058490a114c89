"""Checks that the sequences of a case are registered to the reference and optionally corrects it."""

from __future__ import annotations

import math

from pvs_model.types import Volume
from pvs_model.volume.itk import ITK_LOCK

#: A sequence that covers a smaller share of the reference's field of view cannot belong to the same scan.
MIN_OVERLAP = 0.05


def align(volumes: dict[str, Volume], register: bool = False) -> tuple[dict[str, Volume], list[str], dict[str, float]]:
    """Measures how well each sequence fits the reference and, on request, registers those that do not.

    Args:
        volumes: Sequences of a case as stored, by name.
        register: Whether to move sequences rigidly onto the reference where that improves the agreement.

    Returns:
        The sequences; warnings for the user; the agreement of each sequence with the reference
        (``registration.agreement``).
    """
    from pvs_model.volume import geometry, registration

    reference = geometry.choose_reference(volumes)
    fixed, aligned = volumes[reference], dict(volumes)
    warnings: list[str] = []
    agreements: dict[str, float] = {}
    for name, moving in volumes.items():
        if name == reference or geometry.fov_coverage(moving.grid, fixed.grid) < MIN_OVERLAP:
            continue
        if register:
            try:
                with ITK_LOCK:
                    fit = registration.register(fixed, moving)
            except RuntimeError:
                fit = None
            if fit is not None and fit.accepted:
                aligned[name] = moving = registration.transformed(moving, fit.transform)
                warnings.append(
                    f"{name} was moved by up to {fit.displacement_mm:.1f} mm to fit {reference} "
                    f"(agreement {fit.before:.3f}, now {fit.after:.3f})"
                )
        check = registration.check_alignment(fixed, moving)
        if not math.isnan(check.agreement):
            agreements[name] = round(check.agreement, 4)
        if check.misaligned:
            hint = "" if register else "; --register tries to correct it"
            warnings.append(
                f"{name} fits {reference} better {check.displacement} (agreement {check.agreement:.3f}, there "
                f"{check.best:.3f}): they are not registered{hint}"
            )
    return aligned, warnings, agreements
