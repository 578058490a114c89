"""grand-challenge.org: one case per run, each image in the folder of its socket.

An algorithm can have several interfaces (sets of sockets): the sequences of a case are those of the sockets of its job.
``inputs.json`` lists the sockets, each with its slug and ``relative_path``; without it the folders
``images/<slug>/`` are read directly. The output is exactly one compressed ``.mha`` in
``images/<output slug>/`` (the site rejects ``.nii.gz``).

Sequences are recognised by the words of the slug (``t1-weighted-brain-mri``, ``flair-brain-mri``),
or by ``--sockets FILE.json`` (default: ``sockets.json`` of a mounted model):
``{"inputs": {"<slug>": "T1w", ...}, "output": "<slug>"}``.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from pvs_model.errors import LayoutError
from pvs_model.layouts.base import Layout, Options, duplicates_problem, entries, listed, read_json
from pvs_model.layouts.names import image_stem, is_image, sequence_of_stem
from pvs_model.types import SEQUENCES, Case

log = logging.getLogger(__name__)

OUTPUT_SLUG = "perivascular-space-segmentation"

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Sockets:
    """Sequences by socket; if ``inputs`` is None, they are recognised by the words of the slug."""

    inputs: dict[str, str] | None = None
    output: str = OUTPUT_SLUG

    def sequence(self, slug: str) -> str | None:
        return sequence_of_stem(slug) if self.inputs is None else self.inputs.get(slug)


def read_sockets(path: Path) -> Sockets:
    """Reads a ``--sockets`` file.

    Raises:
        LayoutError: The file is missing or does not have the form in the module's docstring.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise LayoutError(f'{path}: expected an object with "inputs" and "output", got {content!r:.80}')
    unknown = sorted(set(content) - {"inputs", "output"})
    if unknown:
        raise LayoutError(f'{path}: expected only the keys "inputs" and "output", got {listed(unknown)}')
    inputs: dict[str, str] | None = None
    if "inputs" in content:
        if not isinstance(content["inputs"], dict) or not content["inputs"]:
            raise LayoutError(f'{path}: expected "inputs" to map slugs to sequences, got {content["inputs"]!r:.80}')
        by_name = {sequence.lower(): sequence for sequence in SEQUENCES}
        inputs = {}
        for slug, sequence in content["inputs"].items():
            if not isinstance(sequence, str) or sequence.lower() not in by_name:
                raise LayoutError(f"{path}: expected T1w, T2w or FLAIR for the socket {slug!r}, got {sequence!r:.80}")
            inputs[slug] = by_name[sequence.lower()]
    output = content.get("output", OUTPUT_SLUG)
    if not isinstance(output, str) or not _SLUG.fullmatch(output):
        raise LayoutError(f'{path}: expected "output" to be a slug (letters, digits, "-", "_"), got {output!r:.80}')
    return Sockets(inputs, output)


def _inside(root: Path, path: Path, declared: str, source: Path) -> Path:
    """Returns ``path`` after checking that it lies in ``root``, following links.

    Raises:
        LayoutError: It does not.
    """
    if not path.resolve().is_relative_to(root.resolve()):
        raise LayoutError(
            f"{source}: expected a path inside the input folder, got {declared!r} which leads to {path.resolve()}"
        )
    return path


class GrandChallenge(Layout):
    name = "grand_challenge"
    description = "inputs.json, or images/<slug>/*.mha with the sequence in the slug"

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        sockets = self.options.sockets
        self.sockets = Sockets() if sockets is None else read_sockets(sockets)

    def recognises(self, root: Path) -> bool:
        if (root / "inputs.json").is_file():
            return True
        return any(
            any(is_image(path) for path in entries(folder))
            for slug, folder in self._folders(root)
            if self.sockets.sequence(slug) is not None
        )

    def find_cases(self, root: Path) -> list[Case]:
        """Returns the only case of a run, named after its T2w file (else T1w, else FLAIR)."""
        manifest = root / "inputs.json"
        declared = manifest.is_file()
        sockets = self._declared(root, manifest) if declared else self._folders(root)
        source = manifest if declared else root
        by_sequence: dict[str, list[Path]] = {}
        missing: list[str] = []
        for slug, path_of in sockets:
            sequence = self.sockets.sequence(slug)
            if sequence is None:
                continue
            files = [path_of] if path_of.is_file() else []
            if path_of.is_dir():
                files = [path for path in entries(path_of) if is_image(path)]
            for path in files:
                _inside(root, path, path.relative_to(root).as_posix(), source)
            by_sequence.setdefault(sequence, []).extend(files)
            if not files:
                missing.append(f"{path_of} for the socket {slug}")
        if not by_sequence:
            slugs = listed(slug for slug, _ in sockets) or "none"
            raise LayoutError(
                f"{source}: expected sockets with T1w, T2w or FLAIR images "
                f"(--sockets FILE.json names them), got {slugs}"
            )
        problem = duplicates_problem(source, by_sequence, "name the sockets to use (--sockets FILE.json)")
        interface = sorted(f"{slug!r} ({self.sockets.sequence(slug) or 'unused'})" for slug, _ in sockets)
        log.info("interface: %s", ", ".join(interface))
        if missing and (declared or not any(by_sequence.values())):
            problem = f"{source}: expected an image in {' and in '.join(missing)}, got none"
        images = {key: by_sequence[key][0] for key in SEQUENCES if by_sequence.get(key)}
        first = next((images[key] for key in ("T2w", "T1w", "FLAIR") if key in images), None)
        name = image_stem(first.name) if first is not None else None
        name = name or "case"
        output = Path("images", self.sockets.output, f"{name}.mha")
        return [Case(name, {} if problem else images, output, problem)]

    @staticmethod
    def _folders(root: Path) -> list[tuple[str, Path]]:
        """Lists (slug, folder) in ``images/``."""
        images = root / "images"
        if not images.is_dir():
            return []
        return [(path.name, path) for path in entries(images) if path.is_dir()]

    @staticmethod
    def _declared(root: Path, manifest: Path) -> list[tuple[str, Path]]:
        """Lists (slug, folder or file) of the image sockets in ``inputs.json``.

        The site's own entries are ``{"socket": {"slug": ..., "relative_path": "images/..."},
        "image": {...}, ...}``; ``interface`` is the older word for ``socket``.

        Raises:
            LayoutError: The file has another form, or a path outside the input folder.
        """
        content = read_json(manifest)
        if not isinstance(content, list):
            raise LayoutError(f"{manifest}: expected a list of sockets, got {content!r:.80}")
        sockets = []
        for number, entry in enumerate(content, start=1):
            socket = None
            if isinstance(entry, dict):
                socket = entry.get("socket", entry.get("interface"))
            slug = socket.get("slug") if isinstance(socket, dict) else None
            relative = socket.get("relative_path") if isinstance(socket, dict) else None
            if not isinstance(slug, str) or not isinstance(relative, str) or not relative:
                raise LayoutError(
                    f'{manifest}: expected entry {number} to have a "socket" with "slug" and '
                    f'"relative_path", got {entry!r:.80}'
                )
            path = Path(relative)
            if path.is_absolute() or ".." in path.parts or "\\" in relative or "\0" in relative:
                raise LayoutError(f"{manifest}: expected a path inside the input folder, got {relative!r}")
            # Sockets for numbers and text are outside images/ and not used.
            if path.parts[:1] == ("images",):
                sockets.append((slug, _inside(root, root / path, relative, manifest)))
        return sockets
