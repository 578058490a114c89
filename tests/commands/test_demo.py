"""``demo`` removes its own earlier case only; the whole command is run by ``make image-test`` and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvs_model.cli import main
from pvs_model.commands import demo
from pvs_model.errors import PVSError
from pvs_model.simulation import phantom


def fill(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return sorted(path for path in folder.rglob("*") if path.is_file())


EARLIER = ("input/phantom/phantom_T2w.nii.gz", "truth/phantom/phantom_PVS.nii.gz", "masks/phantom/phantom_pred.nii.gz")


def test_the_case_of_an_earlier_demo_is_removed(tmp_path: Path) -> None:
    fill(tmp_path, *EARLIER, "overlay.png", "notes/plan.txt", "input/.DS_Store")
    demo.remove_earlier(tmp_path)
    assert fill(tmp_path) == [tmp_path / name for name in ("input/.DS_Store", "notes/plan.txt", "overlay.png")]
    demo.remove_earlier(tmp_path / "none")


@pytest.mark.parametrize(
    "name",
    ["input/P1/P1_T1w.nii.gz", "truth/P1_PVS.nii.gz", "masks/P1/P1_pred.nii.gz", "input/phantom/T1w.nii.gz", "masks"],
)
def test_files_of_the_user_are_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fill(tmp_path, *(earlier for earlier in EARLIER if not earlier.startswith(f"{name}/")), name)
    with pytest.raises(PVSError, match=r"expected .* got something else: choose another --output") as refusal:
        demo.remove_earlier(tmp_path)
    named = Path(str(refusal.value).partition(": ")[0])
    assert (tmp_path / name).is_relative_to(named) and named != tmp_path
    monkeypatch.setattr(phantom, "make_phantom", lambda *_: pytest.fail("nothing is simulated"))
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "choose another --output" in capsys.readouterr().err and fill(tmp_path) == before
