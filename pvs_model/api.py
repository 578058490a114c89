"""The functions of ``import pvs_model``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from pvs_model.batch.outputs import name_conflict, write_case
from pvs_model.config import InferenceConfig, default_weights
from pvs_model.errors import LayoutError
from pvs_model.layouts import choose
from pvs_model.pipeline import SegmentationResult, Segmenter
from pvs_model.types import SEQUENCES, Case

if TYPE_CHECKING:
    from pvs_model.inference.ensemble import Ensemble

PathLike = str | os.PathLike[str]


@overload
def segment(
    images: Mapping[str, PathLike], output: PathLike | None = None, *, weights: PathLike | None = None, **options: Any
) -> SegmentationResult: ...
@overload
def segment(
    images: PathLike, output: PathLike | None = None, *, weights: PathLike | None = None, **options: Any
) -> dict[str, SegmentationResult]: ...
def segment(
    images: Mapping[str, PathLike] | PathLike,
    output: PathLike | None = None,
    *,
    weights: PathLike | None = None,
    **options: Any,
) -> SegmentationResult | dict[str, SegmentationResult]:
    """Segments one case, or every case of a folder.

    Results of a folder are all held in memory; ``pvs-model segment`` and ``pvs-model cohort`` are for large cohorts.

    Args:
        images: Image files of a case by sequence ("T1w", "T2w", "FLAIR"; at least one), or a folder of cases in any
            layout that ``pvs-model segment`` reads.
        output: File of the mask of a case, or folder for the masks of a folder. Nothing is written by default.
        weights: Weights folder; the shipped one by default.
        options: Fields of ``InferenceConfig``, such as ``device="cpu"`` or ``anatomy=False``.

    Returns:
        The result of the case, or the results of a folder by case name. ``result.mask`` lies on the grid of
        ``result.reference``.

    Raises:
        PVSError: One sentence on what is wrong with a case, the weights or the device.

    Example:
        >>> import pvs_model
        >>> result = pvs_model.segment({"T1w": "case/T1w.nii.gz", "T2w": "case/T2w.nii.gz"}, "mask.nii.gz")
        >>> result.reference, result.mask.dtype, result.metadata["network"]
        ('T2w', dtype('uint8'), '3d')
        >>> sorted(pvs_model.segment("cases", device="cpu"))
        ['patient1', 'patient2']
    """
    segmenter = Segmenter(InferenceConfig(Path(weights) if weights is not None else default_weights(), **options))
    if isinstance(images, Mapping):
        return _segment_case(segmenter, images, output)
    layout = choose(Path(images))
    cases = layout.find_cases(Path(images))
    if output is not None:
        for case in cases:
            if (problem := name_conflict(case, Path(output))) is not None:
                raise LayoutError(problem)
        layout.prepare_output(Path(output))
    results = {}
    for case in cases:
        results[case.name] = segmenter.segment(case)
        if output is not None:
            write_case(case, results[case.name], layout, Path(output))
    return results


def load_ensemble(configuration: str = "3d", weights: PathLike | None = None) -> Ensemble:
    """Loads the networks of a configuration, in eval mode on the CPU.

    Args:
        configuration: "3d" for slices thinner than 2.5 mm, or "2d".
        weights: Weights folder; the shipped one by default.

    Raises:
        WeightsError: The weights are missing or damaged, or lack the configuration.

    Example:
        >>> import pvs_model
        >>> ensemble = pvs_model.load_ensemble("2d")
        >>> ensemble.dimensions, ensemble.networks[0].config.neighbour_slices
        (2, 3)
    """
    from pvs_model.inference.weights import Weights

    return Weights(Path(weights) if weights is not None else default_weights()).ensemble(configuration)


def _segment_case(segmenter: Segmenter, images: Mapping[str, PathLike], output: PathLike | None) -> SegmentationResult:
    if not images or not set(images) <= set(SEQUENCES):
        raise LayoutError(f"expected images of {', '.join(SEQUENCES)}, got {', '.join(images) or 'none'}")
    paths = {name: Path(path) for name, path in images.items()}
    result = segmenter.segment(Case(next(iter(paths.values())).parent.name or "case", paths, Path()))
    if output is not None:
        from pvs_model.volume.io import write_mask

        write_mask(Path(output), result.mask, paths[result.reference])
    return result
