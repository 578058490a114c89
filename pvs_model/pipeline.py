"""Segments one case: preprocess, predict, postprocess.

Heavy libraries are imported on first use, so that a wrong path is reported at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pvs_model import __version__
from pvs_model.config import InferenceConfig, is_thick
from pvs_model.errors import VolumeError
from pvs_model.inference.runtime import Runtime
from pvs_model.inference.weights import has_anatomy
from pvs_model.preprocessing.alignment import align
from pvs_model.preprocessing.network_grid import NetworkGrid, choose_configuration, network_image, target_spacing
from pvs_model.preprocessing.prepare import PreparedImages, estimate_anatomy, prepare, read
from pvs_model.types import Case, FloatArray, Mask, Volume

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pvs_model.anatomy.regions import Anatomy
    from pvs_model.inference.ensemble import Ensemble

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreprocessedCase:
    """A case ready for the network.

    Attributes:
        case: The case and its files.
        prepared: Its sequences on the reference grid.
        agreements: Agreement of each sequence with the reference (``registration.agreement``).
        seconds: Time per stage; later stages add theirs.
    """

    case: Case
    prepared: PreparedImages
    agreements: dict[str, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    """The networks' output for a case.

    Attributes:
        preprocessed: The input of the networks.
        probability: float32 (x, y, z), 0 to 1, on the prepared grid.
        pvs_fraction: float32 (x, y, z), PVS fraction of each voxel; None if no network predicts it.
        backend: "cuda", "openvino", "torch" or "openvino and torch".
        ensemble: The networks that were used.
        prompt: Their prompt.
    """

    preprocessed: PreprocessedCase
    probability: FloatArray
    pvs_fraction: FloatArray | None
    backend: str
    ensemble: Ensemble
    prompt: str


@dataclass(frozen=True)
class SegmentationResult:
    """The segmentation of a case.

    Attributes:
        mask: uint8, 0 and 1, in the stored orientation of the reference file.
        probability: float32, in the stored orientation of the reference file.
        reference: Name of the sequence that defines the grid.
        metadata: How the mask was made.
        prepared: The sequences on the reference grid.
        canonical_mask: The mask in RAS+ orientation, on the grid of ``prepared``.
        pvs_fraction: PVS fraction of each voxel in RAS+ orientation; None if no network predicts it.
    """

    mask: Mask
    probability: FloatArray
    reference: str
    metadata: dict[str, Any]
    prepared: PreparedImages
    canonical_mask: Mask
    pvs_fraction: FloatArray | None = None


class Segmenter:
    """Segments cases with the networks of a weights folder.

    ``segment`` is ``preprocess``, ``predict`` and ``postprocess``. Threads may run these for different cases at the
    same time, but ``predict`` for only one case at a time.

    Raises:
        WeightsError: The manifest is missing.
        DeviceError: The requested device is not available.
    """

    def __init__(self, config: InferenceConfig) -> None:
        self.config = config
        self.runtime = Runtime(config.weights, config.device)
        self._network_lock = threading.Lock()  # held while the networks run

    def load(self) -> None:
        """Imports libraries and chooses the device, so that several threads do not do so at the same time.

        Raises:
            PVSError: The weights are damaged, or the device is not available.
        """
        import nibabel  # noqa: F401
        import SimpleITK  # noqa: F401
        from scipy import ndimage  # noqa: F401

        from pvs_model.anatomy import contrast_check  # noqa: F401
        from pvs_model.anatomy.inference import load_network
        from pvs_model.inference import postprocess, sliding_window  # noqa: F401
        from pvs_model.volume import intensity, io, registration  # noqa: F401

        _ = self.runtime.weights
        if self.config.anatomy and has_anatomy(self.config.weights):
            load_network(self.config.weights, self.runtime.device)

    def segment(self, case: Case) -> SegmentationResult:
        """Segments a case. If the GPU fails, this case and the following ones run on the CPU.

        Raises:
            PVSError: One sentence on what is wrong with the case, the weights or the device.
        """
        return self.postprocess(self.predict(self.preprocess(case)))

    def preprocess(self, case: Case) -> PreprocessedCase:
        """Reads, aligns and prepares the sequences of a case, and estimates its anatomy.

        Raises:
            PVSError: As ``segment``.
        """
        if case.problem is not None:
            raise VolumeError(case.problem)
        seconds: dict[str, float] = {}
        with stage(case.name, "read", seconds):
            volumes = read(case)
        with stage(case.name, "align", seconds):
            volumes, warnings, agreements = align(volumes, self.config.register)
        anatomy = self._estimate_anatomy(case.name, volumes, seconds)
        with stage(case.name, "prepare", seconds):
            prepared = prepare(volumes, self.config.n4, anatomy)
        prepared = _with_warnings(prepared, [*warnings, *prepared.warnings])
        for warning in prepared.warnings:
            log.warning("%s: %s", case.name, warning)
        return PreprocessedCase(case, prepared, agreements, seconds)

    def predict(self, preprocessed: PreprocessedCase) -> Prediction:
        """Chooses the networks and the prompt by the case, and runs them.

        Raises:
            PVSError: As ``segment``.
        """
        name, prepared, seconds = preprocessed.case.name, preprocessed.prepared, preprocessed.seconds
        with stage(name, "load", seconds):
            from pvs_model.nets.text import prompt as standard_prompt
            from pvs_model.nets.text import region_of

            configuration = choose_configuration(prepared.grid)
            complete = self._ensemble(configuration)
            ensemble = complete.with_available_inputs(prepared.sequences)
            prompt = self.config.prompt or standard_prompt(prepared.sequences, max(prepared.grid.spacing_mm))
            text = self.runtime.weights.embed(prompt)
            _ = self.runtime.device
        warnings = [
            f"networks that only use {' and '.join(group.inputs)} were left out: the case has no such sequence"
            for group in complete.groups
            if group not in ensemble.groups
        ]
        if (region := region_of(prompt)) != "brain" and prepared.parenchyma is None:
            warnings.append(f"the mask is not limited to the {region}: the regions of this scan are not known")
        if self.config.fast:
            warnings.append("fast run: one network and windows without overlap, for a quick look")
        for warning in warnings:
            log.warning("%s: %s", name, warning)

        def run(device: torch.device) -> tuple[FloatArray, FloatArray | None, str]:
            from tqdm import tqdm

            from pvs_model.inference.sliding_window import backend_name

            # Loaded anew where the GPU that held the networks was lost.
            networks = self._ensemble(configuration).with_available_inputs(prepared.sequences)
            with self._network_lock:
                backend = backend_name(networks, device, self.config.backend)
                line = f"predict ({configuration}, {len(networks.networks)} networks, {backend})"
                with stage(name, line, seconds), tqdm(desc=name, unit=" windows", leave=False, disable=None) as bar:
                    maps = predict_maps(prepared, networks, text, device, self.config.mirror, bar, self.config.backend)
            return *maps, backend

        probability, pvs_fraction, backend = self.runtime.run(name, run)
        prepared = _with_warnings(prepared, [*prepared.warnings, *warnings])
        return Prediction(
            replace(preprocessed, prepared=prepared), probability, pvs_fraction, backend, ensemble, prompt
        )

    def postprocess(self, prediction: Prediction) -> SegmentationResult:
        """Derives the mask from the probability, in the stored orientation of the reference file.

        Components outside the tissue that bears PVS, or the region that the prompt asks for, are removed, and so are
        those whose signal is not that of PVS.
        """
        from pvs_model.nets.text import region_of

        prepared, ensemble = prediction.preprocessed.prepared, prediction.ensemble
        mask, removed = mask_from(prepared, prediction.probability, ensemble, region_of(prediction.prompt))
        return SegmentationResult(
            prepared.reorientation.invert(mask),
            prepared.reorientation.invert(prediction.probability),
            prepared.reference,
            _metadata(prediction, int(mask.sum()), removed),
            prepared,
            mask,
            prediction.pvs_fraction,
        )

    def _ensemble(self, configuration: str) -> Ensemble:
        ensemble = self.runtime.weights.ensemble(configuration)
        return ensemble.fast() if self.config.fast else ensemble

    def _estimate_anatomy(self, name: str, volumes: dict[str, Volume], seconds: dict[str, float]) -> Anatomy | None:
        """The anatomy of a case; None if it is not wanted, if there is no network for it, or if it detects no brain."""
        if not self.config.anatomy or not has_anatomy(self.config.weights):
            return None

        def run(device: torch.device) -> Anatomy:
            import torch

            try:
                return estimate_anatomy(volumes, self.config.weights, device)
            except torch.OutOfMemoryError:
                pass
            with self._network_lock:  # the networks of another case hold the memory: wait for them
                try:
                    return estimate_anatomy(volumes, self.config.weights, device)
                except torch.OutOfMemoryError:
                    log.warning("%s: not enough GPU memory for the anatomy network; it runs on the CPU", name)
                    return estimate_anatomy(volumes, self.config.weights, torch.device("cpu"))

        with stage(name, "anatomy", seconds):
            try:
                return self.runtime.run(name, run)
            except VolumeError as error:
                log.warning("%s: no skull-stripping and no regions: %s", name, error)
                return None


def mask_from(
    prepared: PreparedImages, probability: FloatArray, ensemble: Ensemble, region: str = "brain"
) -> tuple[Mask, dict[str, int]]:
    """Derives the mask of a probability on the prepared grid.

    Args:
        prepared: The case.
        probability: (x, y, z), 0 to 1.
        ensemble: The networks, for their thresholds.
        region: Region that the prompt asks for.

    Returns:
        uint8 (x, y, z), 0 and 1, and how many components were removed: "removed_outside" of the limits of the case, and
        "removed_by_signal" (``inference.signal_rule``).
    """
    from pvs_model.inference.postprocess import threshold_and_filter
    from pvs_model.inference.signal_rule import remove_components_unlike_csf

    limits, settings = prepared.limits(region), ensemble.settings
    mask, outside = threshold_and_filter(
        probability, settings.threshold, prepared.foreground, prepared.voxel_mm3, limits, settings.low_threshold
    )
    by_signal = 0
    tissue = prepared.pvs_tissue
    if tissue is not None and not is_thick(max(prepared.grid.spacing_mm)):
        mask, by_signal = remove_components_unlike_csf(
            mask, probability, prepared.image, tissue, prepared.grid.spacing_mm
        )
    return mask, {"removed_outside": outside, "removed_by_signal": by_signal}


def predict_probability(
    prepared: PreparedImages, ensemble: Ensemble, text: Tensor, device: torch.device, **options: Any
) -> FloatArray:
    """Predicts the probability (x, y, z) on the prepared grid: the first map of ``predict_maps``, with its options."""
    return predict_maps(prepared, ensemble, text, device, **options)[0]


def predict_maps(
    prepared: PreparedImages,
    ensemble: Ensemble,
    text: Tensor,
    device: torch.device,
    mirror: bool = False,
    bar: Any = None,
    backend: str = "torch",
) -> tuple[FloatArray, FloatArray | None]:
    """Predicts probability and PVS fraction on the prepared grid; options as ``sliding_window.predict_maps``.

    Args:
        prepared: The case.
        ensemble: The networks.
        text: Token embeddings (T, W) of the prompt.
        device: Where to run.
        mirror: Whether to average over mirrored windows.
        bar: Progress bar over windows (tqdm), if any.
        backend: What runs the networks on a CPU.

    Returns:
        float32 (x, y, z), 0 to 1, and the PVS fraction, None if no network predicts it.
    """
    import torch

    from pvs_model.inference import sliding_window

    ensemble = ensemble.with_available_inputs(prepared.sequences)
    settings = ensemble.settings
    grid = NetworkGrid.create(
        prepared.search_mask, prepared.grid.affine, ensemble.dimensions, settings.in_plane_mm, settings.through_plane_mm
    )
    image = torch.from_numpy(network_image(prepared, grid, any(group.regions for group in ensemble.groups)))
    searched = torch.from_numpy(grid.apply_mask(prepared.search_mask, 0.01) > 0)
    if bar is not None:
        bar.reset(total=sliding_window.count_windows(ensemble, image.shape[1:], grid.order, searched))
    progress = None if bar is None else bar.update
    maps = sliding_window.predict_maps(
        ensemble, image, text, device, mirror=mirror, progress=progress, backend=backend, order=grid.order,
        searched=searched,
    )  # fmt: skip
    probability, *further = (grid.invert(values) for values in maps.numpy())
    return probability, further[0] if further else None


@contextmanager
def stage(case: str, name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Measures and logs the seconds that a stage of a case takes."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
    log.info("%s: %s %.1f s", case, name, seconds[name])


def _metadata(prediction: Prediction, voxels: int, removed: dict[str, int]) -> dict[str, Any]:
    """How a mask was made, as the sidecar and the report have it."""
    preprocessed, ensemble = prediction.preprocessed, prediction.ensemble
    prepared, settings = preprocessed.prepared, ensemble.settings
    spacing_mm = prepared.grid.spacing_mm
    network_mm = target_spacing(spacing_mm, ensemble.dimensions, settings.in_plane_mm, settings.through_plane_mm)
    return {
        "network": ensemble.configuration,
        "members": len(ensemble.networks),
        **({"groups": len(ensemble.groups)} if len(ensemble.groups) > 1 else {}),
        "overlap": settings.overlap,
        "backend": prediction.backend,
        "threshold": settings.threshold,
        **({} if settings.low_threshold is None else {"low_threshold": settings.low_threshold}),
        "prompt": prediction.prompt,
        "sequences": list(prepared.sequences),
        "reference": prepared.reference,
        "agreement": preprocessed.agreements,
        "spacing_mm": [round(s, 4) for s in spacing_mm],
        "network_spacing_mm": [round(s, 4) for s in network_mm],
        "voxels": voxels,
        "anatomy": prepared.anatomy is not None,
        "skull_removed": prepared.skull_removed,
        **removed,
        "warnings": list(prepared.warnings),
        "seconds": {name.split(" ")[0]: round(value, 2) for name, value in preprocessed.seconds.items()},
        "version": __version__,
    }


def _with_warnings(prepared: PreparedImages, warnings: list[str]) -> PreparedImages:
    return replace(prepared, warnings=tuple(warnings))
