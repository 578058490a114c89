"""Case folders at any depth: ``<site...>/<case>/<case>_{T1w,T2w,FLAIR}.nii.gz``.

The mask goes to ``<site...>/<case>/<case>_<suffix>.nii.gz``: exactly one NIfTI per case folder and
nothing in the root, because the challenge's scripts take the first NIfTI that they find there.
"""

from __future__ import annotations

import os
from pathlib import Path

from pvs_model.errors import LayoutError
from pvs_model.layouts.base import Layout, doubled, folders_below, listed
from pvs_model.layouts.flat import Flat
from pvs_model.layouts.names import EXTENSIONS, group, image_stem
from pvs_model.types import Case

#: Images that are not read. A folder of them is a case that cannot be run, not one to pass over.
FOREIGN = (".hdr", ".img", ".dcm", ".ima", ".mgh", ".par", ".rec", ".bz2", ".zip")


class Epvs(Layout):
    name = "epvs"
    looks_for = "<case>/<case>_T1w.nii.gz, _T2w, _FLAIR in folders of any depth"

    def recognises(self, root: Path) -> bool:
        """Whether a folder below ``root`` holds a sequence.

        Where images lie straight in ``root`` as well, the folders count only if their files
        bear the folder's name; else the input is one flat case with other things beside it.
        """
        flat = Flat().recognises(root)
        for folder, files, _ in folders_below(root):
            for sequence_files in group(files, folder.name).values():
                if not flat or any(
                    path.name.lower().startswith(folder.name.lower()) for path in sequence_files
                ):
                    return True
        return False

    def find_cases(self, root: Path) -> list[Case]:
        """One case per folder that holds images; its name is the folder's path below ``root``.

        Masks and other extra files in a case folder, and folders of them inside it, are passed
        over. A folder with images but none of the three sequences is a case with a problem, and
        so is an empty folder beside cases: its images have gone missing.
        """
        cases: list[Case] = []
        without: list[Case] = []
        empty: list[Case] = []
        for folder, files, has_folders in folders_below(root):
            below = folder.relative_to(root)
            name = below.as_posix()
            output = below / f"{folder.name}_{self.options.suffix}.nii.gz"
            images = [path for path in files if image_stem(path.name) is not None]
            found = group(images, folder.name)
            if found:
                problem = doubled(folder, found)
                chosen = {} if problem else {key: paths[0] for key, paths in found.items()}
                cases.append(Case(name, chosen, output, problem))
            elif foreign := [path for path in files if path.name.lower().endswith(FOREIGN)]:
                problem = f"{folder}: expected an image ({', '.join(EXTENSIONS)}), found {listed(foreign)}"
                without.append(Case(name, {}, output, problem))
            elif images:
                problem = (
                    f"{folder}: expected a T1w, T2w or FLAIR image by its name, "
                    f"found {listed(images)}"
                )
                without.append(Case(name, {}, output, problem))
            elif not files and not has_folders:
                listable = os.access(folder, os.R_OK | os.X_OK)
                what = "an empty folder" if listable else "a folder that may not be read"
                problem = f"{folder}: expected a T1w, T2w or FLAIR image, found {what}"
                empty.append(Case(name, {}, output, problem))
        inside = {case.output.parent for case in cases}
        cases += [case for case in without if not inside & set(case.output.parent.parents)]
        beside = {case.output.parent.parent for case in cases}
        cases += [case for case in empty if case.output.parent.parent in beside]
        if not cases:
            raise LayoutError(f"{root}: expected {self.looks_for}, found no image in any folder")
        return sorted(cases, key=lambda case: case.name)
