"""BIDS: ``sub-X[/ses-Y]/anat/sub-X[_ses-Y][_...]_{T1w,T2w,FLAIR}.nii[.gz]``.

The output is a BIDS derivative: ``..._space-orig_label-PVS_mask.nii.gz`` in the same folders, each
with a JSON sidecar, and ``dataset_description.json`` in the root.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pvs_model import __version__
from pvs_model.errors import LayoutError
from pvs_model.files import write_text
from pvs_model.layouts.base import Layout, doubled, entries, listed
from pvs_model.layouts.names import image_stem
from pvs_model.types import SEQUENCES, Case

_IMAGE = re.compile(r"(?P<entities>.+)_(?P<suffix>T1w|T2w|FLAIR)\.nii(?:\.gz)?", re.IGNORECASE)
#: Scans after contrast agent, parts of complex images, and images made from others.
_PASSED_OVER = re.compile(r"_(?:ce-|part-(?:phase|real|imag)|desc-|label-)", re.IGNORECASE)
_SEQUENCE = {sequence.lower(): sequence for sequence in SEQUENCES}


def _anat_folders(root: Path) -> list[Path]:
    """Every ``sub-X[/ses-Y]/anat``; ``derivatives`` and ``sourcedata`` hold other data sets."""
    found = []
    for subject in entries(root):
        if not (subject.name.startswith("sub-") and subject.is_dir()):
            continue
        inside = entries(subject)
        sessions = [path for path in inside if path.name.startswith("ses-") and path.is_dir()]
        found += [path / "anat" for path in (subject, *sessions) if (path / "anat").is_dir()]
    return found


def _sidecar(mask_path: Path) -> Path:
    return mask_path.with_name(f"{image_stem(mask_path.name)}.json")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, default=str) + "\n", LayoutError)


class Bids(Layout):
    name = "bids"
    looks_for = "sub-<X>[/ses-<Y>]/anat/sub-<X>[_ses-<Y>]_T1w.nii.gz, _T2w, _FLAIR"

    def recognises(self, root: Path) -> bool:
        return any(
            _IMAGE.fullmatch(path.name) for anat in _anat_folders(root) for path in entries(anat)
        )

    def find_cases(self, root: Path) -> list[Case]:
        """One case per ``anat`` folder that holds images, named ``sub-X[_ses-Y]``.

        Two runs or acquisitions of one sequence are a problem: which of them counts is for the
        user to say. Scans after contrast agent (``ce-``) and derived images (``desc-``) are
        passed over.
        """
        cases = []
        for anat in _anat_folders(root):
            below = anat.relative_to(root)
            name = "_".join(below.parts[:-1])
            output = below / f"{name}_space-orig_label-PVS_mask.nii.gz"
            images = [path for path in entries(anat) if image_stem(path.name) is not None]
            found: dict[str, list[Path]] = {}
            for path in images:
                match = _IMAGE.fullmatch(path.name)
                if match and not _PASSED_OVER.search(match["entities"]):
                    found.setdefault(_SEQUENCE[match["suffix"].lower()], []).append(path)
            if not images:
                continue
            problem = doubled(anat, found)
            if not found:
                problem = (
                    f"{anat}: expected an image that ends in _T1w, _T2w or _FLAIR, "
                    f"found {listed(images)}"
                )
            chosen = {} if problem else {key: found[key][0] for key in SEQUENCES if key in found}
            sources = {key: path.relative_to(root).as_posix() for key, path in chosen.items()}
            cases.append(Case(name, chosen, output, problem, extra=sources))
        if not cases:
            raise LayoutError(
                f"{root}: expected {self.looks_for}, found no image in any anat folder"
            )
        return sorted(cases, key=lambda case: case.name)

    def prepare_output(self, output_root: Path) -> None:
        super().prepare_output(output_root)
        description = output_root / "dataset_description.json"
        # One that is there already may be the user's own (masks written into their data set).
        if not description.exists():
            _write_json(
                description,
                {
                    "Name": "Perivascular space segmentation",
                    "BIDSVersion": "1.9.0",
                    "DatasetType": "derivative",
                    "GeneratedBy": [{"Name": "pvs_model", "Version": __version__}],
                },
            )

    def is_complete(self, case: Case, output_root: Path) -> bool:
        """The mask and its sidecar, which is written after it."""
        return super().is_complete(case, output_root) and _sidecar(output_root / case.output).is_file()

    def finish(
        self, case: Case, mask_path: Path, output_root: Path, facts: Mapping[str, Any]
    ) -> None:
        """Write the sidecar. ``facts`` go in beside the keys that BIDS asks for."""
        _write_json(
            _sidecar(mask_path),
            {
                **facts,
                "Description": "Enlarged perivascular spaces: 1 inside, 0 outside",
                "Type": "ROI",
                "SpatialReference": "orig",
                "RawSources": list(case.extra.values()),
            },
        )
