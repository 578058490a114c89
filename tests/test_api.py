"""``import pvs_model``: its functions, its speed, and the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import pvs_model
from pvs_model import config
from pvs_model.errors import LayoutError, WeightsError

#: Modules whose docstrings have examples.
EXAMPLES = ("api", "inference.device", "inference.postprocess", "inference.settings", "preprocessing.network_grid")


@pytest.fixture
def workplace(
    write_body: Callable[..., dict[str, Path]], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A current folder with the files that the examples name; small networks are the default weights."""
    write_body(tmp_path / "case" / "{}.nii.gz")
    for name in ("patient1", "patient2"):
        write_body(tmp_path / "cases" / name / f"{name}_{{}}.nii.gz", ("T2w",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "MOUNTED_WEIGHTS", weights)
    return tmp_path


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_right(name: str, workplace: Path) -> None:
    module = importlib.import_module(f"pvs_model.{name}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0 and result.failed == 0


def test_a_case_is_written_onto_the_grid_of_its_reference(workplace: Path) -> None:
    images = {name: workplace / "case" / f"{name}.nii.gz" for name in ("T1w", "T2w")}
    result = pvs_model.segment(images, workplace / "mask.nii.gz", device="cpu")
    mask = nib.load(workplace / "mask.nii.gz")  # type: ignore[attr-defined]
    np.testing.assert_array_equal(mask.get_fdata(), result.mask)
    np.testing.assert_allclose(mask.affine, nib.load(images["T2w"]).affine)  # type: ignore[attr-defined]


def test_a_folder_is_written_as_the_command_writes_it(workplace: Path) -> None:
    results = pvs_model.segment(workplace / "cases", workplace / "masks", device="cpu")
    for name, result in results.items():
        mask = nib.load(workplace / "masks" / name / f"{name}_pred.nii.gz")  # type: ignore[attr-defined]
        np.testing.assert_array_equal(mask.get_fdata(), result.mask)


def test_what_cannot_be_segmented(workplace: Path) -> None:
    with pytest.raises(LayoutError, match="expected images of T1w, T2w, FLAIR, got T3w"):
        pvs_model.segment({"T3w": "case/T1w.nii.gz"})
    with pytest.raises(WeightsError, match="expected the manifest of the weights"):
        pvs_model.load_ensemble(weights="case")
    with pytest.raises(AttributeError, match="no attribute 'segmnet'"):
        _ = pvs_model.segmnet  # type: ignore[attr-defined]


def test_a_case_without_a_name_does_not_replace_another(
    write_body: Callable[..., dict[str, Path]], workplace: Path
) -> None:
    for number in (1, 2):
        write_body(workplace / str(number) / "input" / "{}.nii.gz", ("T2w",), tilt_deg=3.0 * number)
    pvs_model.segment(workplace / "1" / "input", workplace / "masks", device="cpu")
    before = (workplace / "masks" / "case_pred.nii.gz").read_bytes()
    with pytest.raises(LayoutError, match=r"case_pred.nii.gz to be of these images, got that of other images"):
        pvs_model.segment(workplace / "2" / "input", workplace / "masks", device="cpu")
    assert (workplace / "masks" / "case_pred.nii.gz").read_bytes() == before
    pvs_model.segment(workplace / "1" / "input", workplace / "masks", device="cpu")  # its own it may replace


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, pvs_model; print(*(m for m in sys.modules if m.startswith(('pvs_model', 'numpy', 'torch'))))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["pvs_model"]


def test_options_of_batch_runs_are_refused(workplace: Path) -> None:
    for option in ({"resume": True}, {"workers": 2}):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(option))}'"):
            pvs_model.segment("cases", **option)
