"""One case straight in the folder, its files named in any way that says the sequence.

``T1.nii.gz``, ``t2w.nii``, ``my_FLAIR.mha`` and the like; the mask is ``<name>_<suffix>.nii.gz``,
or ``.mha`` where all images are MetaImages.
"""

from __future__ import annotations

from pathlib import Path

from pvs_model.errors import LayoutError
from pvs_model.layouts.base import Layout, doubled, entries, listed
from pvs_model.layouts.names import common_name, group, image_extension, is_image
from pvs_model.types import Case


class Flat(Layout):
    name = "flat"
    looks_for = "one case's images straight in the folder (T1.nii.gz, t2w.nii, my_FLAIR.mha)"

    def recognises(self, root: Path) -> bool:
        return bool(group(path for path in entries(root) if is_image(path)))

    def find_cases(self, root: Path) -> list[Case]:
        """The one case; its name is what its files' names share, else ``case``."""
        images = [path for path in entries(root) if is_image(path)]
        if not images:
            raise LayoutError(f"{root}: expected {self.looks_for}, found no image")
        found = group(images)
        files = [path for paths in found.values() for path in paths]
        name = common_name(path.name for path in files) or "case"
        meta = bool(files) and all(image_extension(path.name) in (".mha", ".mhd") for path in files)
        output = Path(f"{name}_{self.options.suffix}{'.mha' if meta else '.nii.gz'}")
        problem = doubled(root, found)
        if not found:
            problem = (
                f"{root}: expected a T1w, T2w or FLAIR image by its name, found {listed(images)}"
            )
        chosen = {} if problem else {sequence: paths[0] for sequence, paths in found.items()}
        return [Case(name, chosen, output, problem)]
