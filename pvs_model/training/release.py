"""Releases trained networks into a weights folder: files, checksums, thresholds and provenance."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pvs_model.anatomy.network import load as load_anatomy_network
from pvs_model.config import MANIFEST, SLICES, NetworkConfig, shipped_weights
from pvs_model.errors import WeightsError
from pvs_model.files import sha256_of, write_atomically, write_text
from pvs_model.inference.settings import EnsembleSettings
from pvs_model.inference.weights import ANATOMY, FORMAT
from pvs_model.nets import checkpoint

#: Embeddings of the standard prompts, beside the shipped weights.
SHIPPED_TEXT = shipped_weights() / "text.safetensors"
#: Smallest default sides of windows by dimensions: larger than the patches of the training, for less border.
WINDOW = {3: 64, 2: 192}
#: Settings of the training that the manifest repeats.
TRAINING_KEYS = ("batch", "patch", "seed")


@dataclass(frozen=True)
class ReleaseDefaults:
    """Settings of an ensemble that follow from its networks.

    Attributes:
        configuration: "2d" if a network reads slices as acquired, else "3d".
        threshold: Mean of the best thresholds of their validations; None if a file holds none.
        roi_size: Side of the window: ``WINDOW``, or the largest side of their training patches if that is larger.
    """

    configuration: str
    threshold: float | None
    roi_size: int


def defaults_of(networks: Sequence[Path]) -> ReleaseDefaults:
    """Reads the settings that follow from trained networks.

    Args:
        networks: Files that ``train`` wrote, one per fold.

    Raises:
        WeightsError: A file holds no trained network.
    """
    configs, trainings, facts = zip(*map(_read, networks), strict=True)
    as_acquired = any(config.dimensions == 2 and not config.view for config in configs)
    thresholds = [values.get("threshold") for values in facts]
    threshold = None if None in thresholds else round(statistics.fmean(thresholds), 3)
    sides = [max(values["patch"], WINDOW[c.dimensions]) for c, values in zip(configs, trainings, strict=True)]
    return ReleaseDefaults("2d" if as_acquired else "3d", threshold, max(sides))


def release(
    folder: Path,
    configuration: str,
    networks: Sequence[Path],
    settings: EnsembleSettings,
    data: str,
    scores: dict[str, Any],
    groups: Sequence[str] | None = None,
    mirrored: bool = False,
) -> None:
    """Copies networks into a weights folder as one ensemble and writes its entry in the manifest.

    Args:
        folder: Weights folder; other entries of its manifest are kept.
        configuration: "3d" or "2d".
        networks: Files that ``checkpoint.save`` wrote, one per fold.
        settings: How the ensemble is run.
        data: Description of the training data.
        scores: Measured scores, in any JSON.
        groups: Group of each network; probabilities are averaged within a group. None: all are one group.
        mirrored: Whether each network sees another mirror image of its windows (``SegmentationNet.mirrored``).

    Raises:
        ValueError: There is not one group per network.
        WeightsError: A file holds no trained network, or one for other scans; a network would be overwritten before it
            is copied; a setting cannot be used. Nothing is copied then.
    """
    if groups is not None and len(groups) != len(networks):
        raise ValueError(f"groups must be one per network, got {len(groups)} for {len(networks)}")
    if problem := settings.problem if networks else "with members, got none":
        raise WeightsError(f"{folder}: expected a {configuration} ensemble {problem}")
    targets = [folder / f"{configuration}_fold{fold}.safetensors" for fold in range(len(networks))]
    _check_overwriting(networks, targets)
    members = _members(configuration, networks, targets, groups, mirrored)
    manifest = _manifest(folder)
    for source, target in zip(networks, targets, strict=True):
        _copy(source, target)
    text = folder / SHIPPED_TEXT.name
    if not text.is_file():  # a new folder: the prompts are the same for every network
        _copy(SHIPPED_TEXT, text)
    manifest["ensembles"][configuration] = {**settings.to_json(), "members": members, "data": data, "scores": scores}
    manifest["text"] = {"file": text.name, "sha256": sha256_of(text)}
    _write_manifest(folder, manifest)


def _members(
    configuration: str, networks: Sequence[Path], targets: Sequence[Path], groups: Sequence[str] | None, mirrored: bool
) -> list[dict[str, Any]]:
    """Entries of the networks in the manifest; ``targets`` are the files that they are copied to."""
    metadata = [_read(source) for source in networks]
    _check_configuration(configuration, networks, [config for config, _, _ in metadata])
    members = []
    for fold, (source, (config, training, facts)) in enumerate(zip(networks, metadata, strict=True)):
        member = {
            "file": targets[fold].name,
            "sha256": sha256_of(source),
            "network": json.loads(config.to_json()),
            "steps": int(facts["steps"]),
            **{name: training[name] for name in TRAINING_KEYS},
        }
        if groups is not None:
            member["group"] = groups[fold]
        if axes := [axis for axis in range(config.dimensions) if mirrored and fold >> axis & 1]:
            member["mirrored"] = axes
        members.append(member)
    return members


def release_anatomy(folder: Path, source: Path, data: str, scores: dict[str, Any]) -> None:
    """Copies the network of an anatomy training into a weights folder and writes its entry in the manifest.

    Args:
        folder: Weights folder; other entries of its manifest are kept.
        source: ``anatomy.safetensors`` of a run.
        data: Description of the training data.
        scores: Measured scores, in any JSON.

    Raises:
        WeightsError: The source is not an anatomy network.
    """
    network = load_anatomy_network(source)
    metadata = checkpoint.read_metadata(source)
    try:
        facts, training = json.loads(metadata["facts"]), json.loads(metadata["training"])
        entry = {
            "file": ANATOMY,
            "sha256": sha256_of(source),
            "network": asdict(network.config),
            "steps": facts["steps"],
            "minutes": facts["minutes"],
            "seed": training["seed"],
            "data": data,
            "scores": scores,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{source}: expected anatomy.safetensors of a training, got other weights") from error
    _copy(source, folder / ANATOMY)
    _write_manifest(folder, {**_manifest(folder), "anatomy": entry})


def add_anatomy(folder: Path) -> None:
    """Copies the shipped anatomy network, which skull-stripping needs, into a weights folder that has none.

    Raises:
        WeightsError: It cannot be written.
    """
    manifest = _manifest(folder)
    shipped = SHIPPED_TEXT.parent
    entry = _manifest(shipped).get("anatomy")
    if "anatomy" in manifest or entry is None:
        return
    _copy(shipped / entry["file"], folder / entry["file"])
    _write_manifest(folder, {**manifest, "anatomy": entry})


def _read(path: Path) -> tuple[NetworkConfig, dict[str, Any], dict[str, Any]]:
    """Reads the configuration, the training and the result of a trained network."""
    metadata = checkpoint.read_metadata(path)
    try:
        config = NetworkConfig.from_json(metadata[checkpoint.CONFIG_KEY])
        training, facts = json.loads(metadata["training"]), json.loads(metadata["facts"])
        _ = [training[name] for name in TRAINING_KEYS], facts["steps"]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: expected a network that `train` wrote (network.safetensors), got other weights"
        ) from error
    return config, training, facts


def _check_overwriting(networks: Sequence[Path], targets: Sequence[Path]) -> None:
    """Rejects networks of which one would be overwritten before it is copied."""
    for fold, source in enumerate(networks):
        if source.resolve() in [target.resolve() for target in targets[:fold]]:
            raise WeightsError(f"{source}: expected a network that no other one overwrites: copy it elsewhere first")


def _check_configuration(configuration: str, paths: Sequence[Path], configs: Sequence[NetworkConfig]) -> None:
    """Rejects networks that cannot read the scans that an ensemble is for."""
    for path, config in zip(paths, configs, strict=True):
        if configuration == "3d" and config.dimensions == 2 and not config.view:
            raise WeightsError(
                f"{path}: expected a 3D network, or a 2D one of a view, for slices {SLICES[configuration]}, got a 2D "
                "network of slices as acquired: release it with --network 2d"
            )
    if configuration == "2d" and all(config.dimensions == 3 for config in configs):
        raise WeightsError(
            f"{paths[0]}: expected a 2D network for slices {SLICES[configuration]}, got a 3D one: release it with "
            "--network 3d"
        )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        return {"format": FORMAT, "ensembles": {}}
    try:
        manifest = dict(json.loads(path.read_text()))
        _ = manifest["ensembles"].items()
    except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: expected the manifest of the weights, got {error!r}") from error
    return manifest


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n", WeightsError)


def _copy(source: Path, target: Path) -> None:
    """Copies a file and makes it readable to everyone; copying a file onto itself does nothing."""

    def fill(part: Path) -> None:
        shutil.copyfile(source, part)
        part.chmod(0o644)

    if not (target.exists() and target.samefile(source)):
        write_atomically(target, fill, WeightsError)
