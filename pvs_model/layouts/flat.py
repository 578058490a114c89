"""Images straight in the folder, their names saying subject and sequence in any way: one subject, or several.

``T1.nii.gz``, ``t2w.nii``, ``my_FLAIR.mha`` and the like; the mask is ``<name>_<suffix>.nii.gz``, or ``.mha`` where all
images of the case are MetaImages. ``P001_T1.nii.gz`` and ``P002_T1.nii.gz`` are two cases.
"""

from __future__ import annotations

from pathlib import Path

from pvs_model.errors import LayoutError
from pvs_model.layouts import freesurfer
from pvs_model.layouts.base import Layout, distinct, doubled, entries, leads_nowhere, listed
from pvs_model.layouts.names import group, image_extension, is_image, sequence_of
from pvs_model.layouts.subjects import NAMELESS, by_subject, own_name
from pvs_model.types import Case


class Flat(Layout):
    name = "flat"
    looks_for = "images straight in the folder (T1.nii.gz, t2w.nii, my_FLAIR.mha)"

    def recognises(self, root: Path) -> bool:
        return bool(group(path for path in self.options.kept(entries(root), root) if is_image(path)))

    def find_cases(self, root: Path) -> list[Case]:
        """A case per subject, named by what its files' names begin with, else after the folder, else ``case``."""
        inside = self.options.kept(entries(root), root)
        images = [path for path in inside if is_image(path)]
        if not images:
            raise LayoutError(f"{root}: expected {self.looks_for}, found no image")
        if freesurfer.is_mri(root, images):
            return [self._case(own_name(root) or NAMELESS, freesurfer.choose(images), None)]
        sequences = {path: sequence for path in images if (sequence := sequence_of(path.name)) is not None}
        cases = []
        groups, problem = by_subject(sequences, "", alone=True)
        for key, found in groups.items():
            told = f"{root}: {problem}" if problem else doubled(root, found)
            cases.append(self._case(key or own_name(root) or NAMELESS, found, told))
        if not sequences:
            problem = f"{root}: expected a T1w, T2w or FLAIR image by its name, found {listed(images)}"
            cases = [self._case(own_name(root) or NAMELESS, {}, problem)]
        for path in inside:
            if (problem := leads_nowhere(path)) is not None:
                cases.append(self._case(path.name, {}, problem))
        return distinct(cases)

    def _case(self, name: str, found: dict[str, list[Path]], problem: str | None) -> Case:
        files = [path for paths in found.values() for path in paths]
        meta = bool(files) and all(image_extension(path.name) in (".mha", ".mhd") for path in files)
        output = Path(f"{name}_{self.options.suffix}{'.mha' if meta else '.nii.gz'}")
        chosen = {} if problem else {sequence: paths[0] for sequence, paths in found.items()}
        return Case(name, chosen, output, problem)
