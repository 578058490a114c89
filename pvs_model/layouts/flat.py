"""Images directly in the input folder, of one or several subjects; file names contain subject and sequence.

``T1.nii.gz``, ``t2w.nii``, ``my_FLAIR.mha`` and the like; the mask is ``<name>_<suffix>.nii.gz``, or ``.mha`` if all
images of the case are MetaImages. ``P001_T1.nii.gz`` and ``P002_T1.nii.gz`` are two cases.
"""

from __future__ import annotations

from pathlib import Path

from pvs_model.errors import LayoutError
from pvs_model.layouts import freesurfer
from pvs_model.layouts.base import Layout, broken_link_problem, distinct, duplicates_problem, entries, listed
from pvs_model.layouts.names import group, image_extension, image_stem, is_image, sequence_of, subjects_like_sequences
from pvs_model.layouts.subjects import NAMELESS, by_subject, own_name
from pvs_model.types import Case


class Flat(Layout):
    name = "flat"
    description = "images directly in the folder (T1.nii.gz, t2w.nii, my_FLAIR.mha)"

    def recognises(self, root: Path) -> bool:
        return bool(group(path for path in self.options.kept(entries(root), root) if is_image(path)))

    def find_cases(self, root: Path) -> list[Case]:
        """Returns a case per subject, named after the common prefix of its files, else the folder, else ``case``."""
        inside = self.options.kept(entries(root), root)
        images = [path for path in inside if is_image(path)]
        if not images:
            raise LayoutError(f"{root}: expected {self.description}, got no image")
        if freesurfer.is_mri(root, images):
            return [self._case(own_name(root) or NAMELESS, freesurfer.choose(images), None)]
        stems = {path: image_stem(path.name) or "" for path in images}
        like_sequences = subjects_like_sequences(stems.values())
        named: dict[str, dict[str, list[Path]]] = {}
        for path in sorted(path for path in images if stems[path] in like_sequences):
            subject, suffix = like_sequences[stems[path]]
            named.setdefault(subject, {}).setdefault(suffix, []).append(path)
        cases = [self._case(subject, files, duplicates_problem(root, files)) for subject, files in named.items()]
        images = [path for path in images if stems[path] not in like_sequences]
        sequences = {path: sequence for path in images if (sequence := sequence_of(path.name)) is not None}
        groups, problem = by_subject(sequences, "", alone=True) if sequences else ({}, None)
        for subject, images_of in groups.items():
            message = f"{root}: {problem}" if problem else duplicates_problem(root, images_of)
            cases.append(self._case(subject or own_name(root) or NAMELESS, images_of, message))
        if not cases:
            problem = f"{root}: expected a T1w, T2w or FLAIR image by its name, got {listed(images)}"
            cases = [self._case(own_name(root) or NAMELESS, {}, problem)]
        for path in inside:
            if (problem := broken_link_problem(path)) is not None:
                cases.append(self._case(path.name, {}, problem))
        return distinct(cases)

    def _case(self, name: str, images_of: dict[str, list[Path]], problem: str | None) -> Case:
        files = [path for paths in images_of.values() for path in paths]
        meta = bool(files) and all(image_extension(path.name) in (".mha", ".mhd") for path in files)
        output = Path(f"{name}_{self.options.suffix}{'.mha' if meta else '.nii.gz'}")
        chosen = {} if problem else {sequence: paths[0] for sequence, paths in images_of.items()}
        return Case(name, chosen, output, problem)
