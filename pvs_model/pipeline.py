"""The method, read from top to bottom: read, prepare, choose, predict, restore, write.

Heavy libraries are imported where they are first needed, so that a wrong path is told at once.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pvs_model import __version__
from pvs_model.config import SLICES, THICK_SLICE_MM
from pvs_model.errors import DeviceError, VolumeError, WeightsError
from pvs_model.types import SEQUENCES, Case, FloatArray, Grid, Mask, Volume

if TYPE_CHECKING:
    from pvs_model.anatomy.regions import Anatomy
    from pvs_model.inference.ensemble import Ensemble, Weights

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A sequence that covers less of the reference's box than this cannot be of the same scan.
LEAST_OVERLAP = 0.05
#: Below this share of the reference covered, the user is warned.
GOOD_OVERLAP = 0.8
#: A foreground so many times as large as brain and fluid around it is a head with its skull.
SKULL = 1.5
#: Millimetres that are kept around the brain where the skull is taken off.
BRAIN_MARGIN_MM = 1.0
#: Of a stripped scan, at least this share is known to an anatomy that is allowed to remove PVS from it.
COVERS = 0.8
#: Axes are permuted to put slices last when one spacing is this much larger than the others.
ANISOTROPIC = 1.2
#: SimpleITK's number of threads is that of the process, and a registration sets it to one for as long as it runs.
_ITK_THREADS = threading.Lock()


@dataclass(frozen=True)
class Settings:
    """What a user may choose about a run.

    ``workers``: cases made ready ahead of the network, and as many written behind it; None leaves it to
    ``cohort.folder``.
    """

    weights: Path
    device: str = "auto"
    backend: str = "auto"
    n4: bool = False
    mirror: bool = False
    prompt: str | None = None
    anatomy: bool = True
    register: bool = False
    resume: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A case on its reference grid, in RAS+ order, ready for the network.

    Attributes:
        image: float32 (3, x, y, z), standardised, zeros for a missing sequence.
        inside: bool (x, y, z), head or brain of the reference.
        grid: of the reference, RAS+.
        reference: the sequence whose grid it is.
        undo: takes a mask (x, y, z) back to the stored order of the reference file.
        warnings: what the user should know.
        anatomy: brain and regions on the grid, in RAS+ order; None where they were not asked for or not found.
        stripped: whether the skull was taken off here.
    """

    image: FloatArray
    inside: Any
    grid: Grid
    reference: str
    undo: Any
    warnings: tuple[str, ...]
    anatomy: Anatomy | None = None
    stripped: bool = False

    @property
    def sequences(self) -> tuple[str, ...]:
        """Those that the image holds."""
        return tuple(name for name, channel in zip(SEQUENCES, self.image, strict=True) if channel.any())


@dataclass(frozen=True)
class Ready:
    """A case in front of the network.

    Attributes:
        case: as it was found.
        prepared: on its reference grid.
        agreements: of each sequence with the reference (``registration.agreement``).
        seconds: that each stage took so far; later stages add theirs.
    """

    case: Case
    prepared: Prepared
    agreements: dict[str, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Predicted:
    """A case behind the network.

    Attributes:
        ready: the case as it came to the network.
        probability: float32 (x, y, z), 0 to 1, on the prepared grid.
        fluid: float32 (x, y, z), share of each voxel that PVS fill; None where no network predicts it.
        backend: what computed it: "cuda", "openvino", "torch" or "openvino and torch".
        ensemble: the networks that were chosen, and had something to look at.
        prompt: what they were asked.
        sequences: what they saw.
    """

    ready: Ready
    probability: FloatArray
    fluid: FloatArray | None
    backend: str
    ensemble: Ensemble
    prompt: str
    sequences: tuple[str, ...]


@dataclass(frozen=True)
class Segmentation:
    """The mask of a case in the stored order of its reference file, and the facts of how it was made.

    ``upright`` is the mask in RAS+ order, on the grid of ``prepared``; so is ``fluid``, the share of each voxel that
    PVS fill (None where no network predicts it).
    """

    mask: Mask
    probability: FloatArray
    reference: str
    facts: dict[str, Any]
    prepared: Prepared
    upright: Mask
    fluid: FloatArray | None = None


@contextmanager
def stage(case: str, name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Log one line with the seconds that a stage of a case took."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
    log.info("%s: %s %.1f s", case, name, seconds[name])


def read(case: Case) -> dict[str, Volume]:
    """The sequences of a case as stored.

    Raises:
        VolumeError: when one cannot be read, or lies elsewhere in space than the reference.
    """
    from pvs_model.volume import io

    return {name: io.read(case.images[name]) for name in SEQUENCES if name in case.images}


def find_anatomy(volumes: dict[str, Volume], weights: Path, device: Any = "cpu") -> Anatomy:
    """Brain and regions on the reference's grid in RAS+ order, from the sequence with the thinnest slices.

    Raises:
        VolumeError: when no brain is found.
        WeightsError: when the anatomy network's weights are damaged or missing.
    """
    from pvs_model.anatomy.predict import find_regions
    from pvs_model.volume import geometry

    grid, _ = geometry.to_ras_grid(volumes[geometry.choose_reference(volumes)].grid)
    thinnest = min(volumes, key=lambda name: (round(max(volumes[name].spacing_mm), 1), SEQUENCES.index(name)))
    return find_regions(volumes[thinnest], weights, device, grid)


def align(volumes: dict[str, Volume], register: bool = False) -> tuple[dict[str, Volume], list[str], dict[str, float]]:
    """Measure how well the sequences lie on the reference and, if asked to, move those that do not.

    Returns:
        the sequences, warnings, and the agreement of each with the reference (``registration.agreement``).
    """
    from pvs_model.volume import geometry, registration

    reference = geometry.choose_reference(volumes)
    still, out = volumes[reference], dict(volumes)
    warnings: list[str] = []
    agreements: dict[str, float] = {}
    for name, volume in volumes.items():
        if name == reference or geometry.overlap(volume.grid, still.grid) < LEAST_OVERLAP:
            continue
        if register:
            try:
                with _ITK_THREADS:
                    fit = registration.register(still, volume)
            except RuntimeError:
                fit = None
            if fit is not None and fit.helps:
                out[name] = volume = registration.moved(volume, fit.transform)
                warnings.append(
                    f"{name} was moved by up to {fit.moved_mm:.1f} mm to fit {reference} (agreement {fit.before:.3f}, "
                    f"now {fit.after:.3f})"
                )
        found = registration.check(still, volume)
        if found.agreement == found.agreement:
            agreements[name] = round(found.agreement, 4)
        if found.gross:
            hint = "" if register else "; --register tries to mend it"
            warnings.append(
                f"{name} fits {reference} better {found.moved} (agreement {found.agreement:.3f}, there "
                f"{found.best:.3f}): they are not registered{hint}"
            )
    return out, warnings, agreements


def prepare(volumes: dict[str, Volume], n4: bool = False, anatomy: Anatomy | None = None) -> Prepared:
    """One grid, one orientation, one scale; without the skull, where the anatomy says which part is brain.

    Raises:
        VolumeError: when a sequence and the reference do not overlap in space, or one has the contrast of another.
    """
    from pvs_model.anatomy.contrast import CONTRADICTS, contrast_warning
    from pvs_model.volume import geometry, intensity

    reference = geometry.choose_reference(volumes)
    upright, undo = geometry.to_ras(volumes[reference])
    warnings = []
    image = np.zeros((len(SEQUENCES), *upright.data.shape), np.float32)
    inside = intensity.foreground(upright.data)
    stripped = anatomy is not None and has_skull(inside, anatomy)
    covered_well = anatomy is not None and covers(anatomy, inside) >= COVERS
    if anatomy is not None and stripped:
        warnings.append("a skull was found and taken off by the anatomy network: look at what it left")
        inside &= geometry.widened(anatomy.brain, BRAIN_MARGIN_MM, upright.spacing_mm)
    elif anatomy is not None and not covered_well:
        warnings.append(
            f"the anatomy network found a brain in only {covers(anatomy, inside):.0%} of the scan: regions are doubtful"
            ", and no PVS was removed for lying outside the brain"
        )
    for channel, name in enumerate(SEQUENCES):
        if name not in volumes:
            continue
        volume = upright
        if name != reference:
            covered = geometry.overlap(volumes[name].grid, upright.grid)
            if covered < LEAST_OVERLAP:
                raise VolumeError(
                    f"{volumes[name].source}: expected {name} to overlap in space with {upright.source}, found that "
                    f"it covers {covered:.0%} of its field of view"
                )
            if covered < GOOD_OVERLAP:
                warnings.append(f"{name} covers only {covered:.0%} of the field of view of {reference}")
            volume = geometry.resample_onto(geometry.to_ras(volumes[name])[0], upright.grid)
        if anatomy is not None:
            doubt = contrast_warning(name, volume.data, anatomy)
            if contrast_warning(name, volume.data, anatomy, CONTRADICTS) and (stripped or covered_well):
                raise VolumeError(
                    f"{volumes[name].source}: expected a {name}, found another contrast: {doubt} Rename the file or "
                    "remove it; --no-anatomy runs it all the same"
                )
            warnings += [doubt] if doubt else []
        head = inside
        if stripped:
            head = inside & (volume.data != 0)
            volume = Volume(np.where(inside, volume.data, np.float32(0)), volume.affine, volume.source)
        elif name != reference:
            head = intensity.foreground(volume.data) if volume.data.any() else inside & False
        if not head.any():
            warnings.append(f"{name} is empty where {reference} lies and was left out")
            continue
        if n4:
            with _ITK_THREADS:
                volume = intensity.correct_bias(volume, head)
        image[channel] = intensity.standardise(volume.data, head)
        if image[channel].any():
            continue
        if name == reference:
            raise VolumeError(f"{volume.source}: expected contrast within the head, found one value in all of it")
        warnings.append(f"{name} has one value in all of the head and was left out")
    return Prepared(image, inside, upright.grid, reference, undo, tuple(warnings), anatomy, stripped)


def has_skull(foreground: Any, anatomy: Anatomy) -> bool:
    """Whether a foreground (x, y, z) is much more than what lies within the skull."""
    within = anatomy.brain | anatomy.mask("intracranial")
    return bool(foreground.sum() > SKULL * within.sum())


def covers(anatomy: Anatomy, foreground: Any) -> float:
    """The share of a foreground (x, y, z) that the anatomy takes for something within the skull."""
    within = anatomy.brain | anatomy.mask("intracranial")
    return float((within & foreground).sum() / max(1, foreground.sum()))


def network_kind(grid: Grid) -> str:
    """ "3d" below 2.5 mm slice thickness (the largest voxel spacing), "2d" from there on."""
    return "3d" if max(grid.spacing_mm) < THICK_SLICE_MM - 1e-4 else "2d"  # affines pass through float32


def predict(prepared: Prepared, ensemble: Ensemble, text: Any, device: Any, **options: Any) -> FloatArray:
    """Probability (x, y, z) on the prepared grid, the first of ``predict_maps``, which explains the arguments."""
    return predict_maps(prepared, ensemble, text, device, **options)[0]


def predict_maps(
    prepared: Prepared,
    ensemble: Ensemble,
    text: Any,
    device: Any,
    mirror: bool = False,
    bar: Any = None,
    backend: str = "torch",
) -> tuple[FloatArray, FloatArray | None]:
    """Crop, turn slices to the last axis, respace where needed, predict, and restore the prepared grid.

    Returns:
        the probability (x, y, z), and the fluid fraction; None where no network predicts it.

    Raises:
        VolumeError: when no network looks at a sequence of the case, or one needs regions and there is no anatomy.
        DeviceError: as ``inference.predict.predict``.
    """
    import torch

    from pvs_model.inference.predict import count_windows
    from pvs_model.inference.predict import predict_maps as run
    from pvs_model.volume import geometry

    ensemble = ensemble.seeing(prepared.sequences)
    seen: list[Any] = [*prepared.image]
    if any(group.regions for group in ensemble.groups):
        seen.append(region_channel(prepared, ensemble.kind))
    crop = geometry.crop_to(prepared.inside, margin=4)
    affine = crop.affine(prepared.grid.affine)
    channels = [Volume(np.ascontiguousarray(crop.apply(c)), affine) for c in seen]
    spacing = channels[0].spacing_mm
    wanted = target_spacing(spacing, ensemble)
    back = None
    if wanted != spacing:
        pairs = [geometry.resample_to_spacing(volume, wanted) for volume in channels]
        channels, back = [volume for volume, _ in pairs], pairs[0][1]
    order = slices_last(channels[0].spacing_mm, ensemble.dimensions)
    stacked = np.stack([volume.data.transpose(order) for volume in channels])
    stacked[len(SEQUENCES) :] = stacked[len(SEQUENCES) :] >= 0.5  # regions stay yes or no where they were respaced
    if bar is not None:
        bar.reset(total=count_windows(ensemble, stacked.shape[1:], order))
    update = None if bar is None else bar.update
    image = torch.from_numpy(stacked)
    maps = run(ensemble, image, text, device, mirror=mirror, progress=update, backend=backend, order=order)

    def restored(values: FloatArray) -> FloatArray:
        values = np.ascontiguousarray(values.transpose(np.argsort(order)))
        whole: FloatArray = crop.undo(values if back is None else back(values))
        return whole

    probability, *fluid = (restored(values) for values in maps.numpy())
    return probability, fluid[0] if fluid else None


def region_channel(prepared: Prepared, kind: str) -> FloatArray:
    """float32 (x, y, z): 1 in basal ganglia and centrum semiovale, 0 elsewhere.

    Raises:
        VolumeError: when the case has no anatomy.
    """
    if prepared.anatomy is None:
        raise VolumeError(
            f"expected the regions of the brain, which the {kind} networks look at, found none: they need "
            "anatomy.safetensors in the weights folder, a brain in the scan, and no --no-anatomy"
        )
    channel: FloatArray = (prepared.anatomy.mask("BG") | prepared.anatomy.mask("CSO")).astype(np.float32)
    return channel


def target_spacing(spacing_mm: tuple[float, float, float], ensemble: Ensemble) -> tuple[float, float, float]:
    """The spacing itself where training covered it, else the nearest that it did."""
    from pvs_model.volume.geometry import thick_axis

    thick = thick_axis(spacing_mm)
    inside, across = ensemble.spacing_mm, ensemble.thickness_mm
    limits = [across if axis == thick else inside for axis in range(3)]
    if ensemble.dimensions == 2:
        # The thickness is what it is: slices are never made up between others.
        limits[thick] = (0.0, float("inf"))
    x, y, z = (
        s if low * 0.97 <= s <= high * 1.03 else min(max(s, low), high)
        for s, (low, high) in zip(spacing_mm, limits, strict=True)
    )
    return x, y, z


def slices_last(spacing_mm: tuple[float, float, float], dimensions: int) -> tuple[int, int, int]:
    """Order of the axes that puts the thick one last: axial (x, y, z), coronal (x, z, y), sagittal (y, z, x)."""
    from pvs_model.volume.geometry import thick_axis

    if dimensions == 3 and max(spacing_mm) < ANISOTROPIC * min(spacing_mm):
        return 0, 1, 2
    return {2: (0, 1, 2), 1: (0, 2, 1), 0: (1, 2, 0)}[thick_axis(spacing_mm)]  # type: ignore[return-value]


def lacking(weights: Path) -> list[str]:
    """What a weights folder lacks, a sentence each, with what follows from it.

    Nothing of a manifest that cannot be read: that is an error of its own.
    """
    path = weights / "MANIFEST.json"
    try:
        manifest = json.loads(path.read_text())
        kinds = set(manifest["ensembles"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    sentences = [
        f"{path} has no {kind} ensemble: scans with slices {slices} cannot be segmented with it"
        for kind, slices in SLICES.items()
        if kind not in kinds
    ]
    if not (weights / "anatomy.safetensors").is_file():
        sentences.append(
            f"{weights} has no anatomy network (anatomy.safetensors): no skull is taken off, so that scans with their "
            "skull get wrong masks, and there are no regions"
        )
    return sentences


class Segmenter:
    """Segments cases with the networks of one weights folder.

    ``segment`` is ``ready``, ``predict`` and ``finish`` of one case. Threads may run them at the same time, each for
    another case, but ``predict`` for one at a time.

    Raises:
        WeightsError: when the manifest is missing.
        DeviceError: when the device asked for is not there.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._weights: Weights | None = None
        self._device: Any = None
        self._choosing = threading.RLock()  # of weights and device
        self._running = threading.Lock()  # held while the network runs
        # Told before the first image is read, and without the seconds that torch takes to import.
        manifest = settings.weights / "MANIFEST.json"
        if not manifest.is_file():
            raise WeightsError(f"{manifest}: expected the manifest of the weights, found no such file")
        if settings.device == "cuda":
            _ = self.device

    @property
    def weights(self) -> Weights:
        with self._choosing:
            if self._weights is None:
                from pvs_model.inference.ensemble import Weights

                self._weights = Weights(self.settings.weights)
            return self._weights

    @property
    def device(self) -> Any:
        with self._choosing:
            if self._device is None:
                from pvs_model.inference.predict import choose_device

                self._device = choose_device(self.settings.device)
            return self._device

    def load(self) -> None:
        """Import all that cases need and find the device, before several threads would do so at once.

        Raises:
            PVSError: the weights are damaged, or the device is not there.
        """
        import monai.inferers  # noqa: F401
        import nibabel  # noqa: F401
        import SimpleITK  # noqa: F401
        from scipy import ndimage  # noqa: F401

        from pvs_model.anatomy import contrast  # noqa: F401
        from pvs_model.anatomy.predict import load_network
        from pvs_model.inference import postprocess, predict  # noqa: F401
        from pvs_model.volume import geometry, intensity, io, registration  # noqa: F401

        _ = self.weights
        if self.settings.anatomy and self._has_anatomy():
            load_network(self.settings.weights, self.device)

    def segment(self, case: Case) -> Segmentation:
        """Read, prepare, choose, predict and restore one case.

        A GPU that stops working amid a run is left: this case and the following ones run on the CPU.

        Raises:
            PVSError: one sentence on what is wrong with the case, the weights or the device.
        """
        return self.finish(self.predict(self.ready(case)))

    def ready(self, case: Case) -> Ready:
        """Read, align and prepare: all that comes before the network.

        Raises:
            PVSError: as ``segment``.
        """
        if case.problem is not None:
            raise VolumeError(case.problem)
        seconds: dict[str, float] = {}
        with stage(case.name, "read", seconds):
            volumes = read(case)
        with stage(case.name, "align", seconds):
            volumes, doubts, agreements = align(volumes, self.settings.register)
        anatomy = self._anatomy(case.name, volumes, seconds) if self.settings.anatomy else None
        with stage(case.name, "prepare", seconds):
            prepared = prepare(volumes, self.settings.n4, anatomy)
            prepared = replace(prepared, warnings=(*doubts, *prepared.warnings))
        for warning in prepared.warnings:
            log.warning("%s: %s", case.name, warning)
        return Ready(case, prepared, agreements, seconds)

    def predict(self, ready: Ready) -> Predicted:
        """Choose networks and prompt, and run them.

        Raises:
            PVSError: as ``segment``.
        """
        name, prepared, seconds = ready.case.name, ready.prepared, ready.seconds
        with stage(name, "load", seconds):
            kind = network_kind(prepared.grid)
            present, whole = prepared.sequences, self.weights.ensemble(kind)
            ensemble = whole.seeing(present)
            prompt = self.settings.prompt or self._prompt(present, prepared.grid)
            text = self.weights.embed(prompt)
            _ = self.device
        blind = [group for group in whole.groups if group not in ensemble.groups]
        doubts = [
            f"the networks that look at {' and '.join(group.inputs)} alone were left out: the case has none"
            for group in blind
        ]
        for doubt in doubts:
            log.warning("%s: %s", name, doubt)
        ready = replace(ready, prepared=replace(prepared, warnings=(*prepared.warnings, *doubts)))

        def look(device: Any) -> tuple[FloatArray, FloatArray | None, str]:
            from pvs_model.inference.predict import computed_by

            # Others than above where the GPU that held them was lost.
            networks = self.weights.ensemble(kind).seeing(present)
            backend = self.settings.backend
            with self._running:
                by = computed_by(networks, device, backend)
                told = f"predict ({kind}, {len(networks.networks)} networks, {by})"
                with stage(name, told, seconds), _bar(name) as bar:
                    return *predict_maps(prepared, networks, text, device, self.settings.mirror, bar, backend), by

        return Predicted(ready, *self._on_device(name, look), ensemble, prompt, present)

    def finish(self, predicted: Predicted) -> Segmentation:
        """From probability to mask, in the stored order of the reference file."""
        from pvs_model.inference.postprocess import keep_within, to_mask, without_specks

        ready, ensemble = predicted.ready, predicted.ensemble
        prepared, anatomy = ready.prepared, ready.prepared.anatomy
        mask = to_mask(predicted.probability, ensemble.threshold, prepared.inside)
        mask = without_specks(mask, float(np.prod(prepared.grid.spacing_mm)))
        outside = 0
        if anatomy is not None and (prepared.stripped or covers(anatomy, prepared.inside) >= COVERS):
            mask, outside = keep_within(mask, anatomy.mask("parenchyma"))
        facts = {
            "network": ensemble.kind,
            "members": len(ensemble.networks),
            **({"groups": len(ensemble.groups)} if len(ensemble.groups) > 1 else {}),
            "backend": predicted.backend,
            "threshold": ensemble.threshold,
            "prompt": predicted.prompt,
            "sequences": list(predicted.sequences),
            "reference": prepared.reference,
            "agreement": ready.agreements,
            "spacing_mm": [round(s, 4) for s in prepared.grid.spacing_mm],
            "network_spacing_mm": [round(s, 4) for s in target_spacing(prepared.grid.spacing_mm, ensemble)],
            "voxels": int(mask.sum()),
            "anatomy": anatomy is not None,
            "skull_taken_off": prepared.stripped,
            "removed_outside_parenchyma": outside,
            "warnings": list(prepared.warnings),
            "seconds": {name.split(" ")[0]: round(value, 2) for name, value in ready.seconds.items()},
            "version": __version__,
        }
        probability = prepared.undo(predicted.probability)
        return Segmentation(
            prepared.undo(mask), probability, prepared.reference, facts, prepared, mask, predicted.fluid
        )

    def _has_anatomy(self) -> bool:
        return (self.settings.weights / "anatomy.safetensors").is_file()

    def _anatomy(self, name: str, volumes: dict[str, Volume], seconds: dict[str, float]) -> Anatomy | None:
        """The case's anatomy; None where there is no network for it, and where it finds no brain, which is told."""
        if not self._has_anatomy():
            return None

        def look(device: Any) -> Anatomy:
            import torch

            try:
                return find_anatomy(volumes, self.settings.weights, device)
            except torch.OutOfMemoryError:
                with self._running:  # another case's networks took it: alone there is enough
                    return find_anatomy(volumes, self.settings.weights, device)

        with stage(name, "anatomy", seconds):
            try:
                return self._on_device(name, look)
            except VolumeError as error:
                log.warning("%s: the skull stays, no regions: %s", name, error)
                return None

    def _on_device(self, name: str, run: Callable[[Any], T]) -> T:
        """What ``run`` makes on the device; on the CPU, for this case and those to come, where the GPU is lost amid it.

        Raises:
            DeviceError: it is lost, and nothing but a GPU was asked for.
        """
        device = self.device
        try:
            return run(device)
        except RuntimeError as error:
            from pvs_model.inference.predict import choose_device, device_lost

            if device.type == "cpu" or not device_lost(error):
                raise
            if self.settings.device == "cuda":
                raise DeviceError(f"--device cuda: expected a GPU that works, found: {first_line(error)}") from error
            with self._choosing:
                if self._device is device:  # else another thread has met it, too
                    log.warning("%s: the GPU stopped working (%s): going on with the CPU", name, first_line(error))
                    self._device, self._weights = choose_device("cpu"), None  # what lay on the GPU is lost
        return run(self.device)

    def _prompt(self, present: Sequence[str], grid: Grid) -> str:
        from pvs_model.nets.text import prompt

        return prompt(present, max(grid.spacing_mm))


def first_line(error: BaseException) -> str:
    """What an error of a library says, without its traceback and advice."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def _bar(name: str) -> Iterator[Any]:
    """A progress bar over windows on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=name, unit=" windows", leave=False) as bar:
        yield bar
