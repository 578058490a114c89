"""Weights folders of one's own: what a release keeps and refuses, what a run says of a folder, and where it goes on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pvs_model import cli
from pvs_model.anatomy.inference import load_network
from pvs_model.commands import segment
from pvs_model.config import MANIFEST, NetworkConfig
from pvs_model.errors import WeightsError
from pvs_model.inference.weights import Weights, missing_parts
from pvs_model.nets import checkpoint
from pvs_model.nets.model import build
from pvs_model.nets.zoo import MODELS

SHIPPED = Path(__file__).resolve().parents[2] / "weights"


def release(folder: Path, source: Path, kind: str) -> int:
    words = ["--threshold", "0.5", "--window", "96", "--weights", str(folder)]
    return cli.main(["release", str(source), "--network", kind, *words])


def test_a_new_folder_has_all_that_a_run_needs(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "mine"
    assert release(folder, SHIPPED / "3d_fold0.safetensors", "3d") == 0
    assert "has no 2d ensemble: scans with slices of 2.5 mm or more cannot" in capsys.readouterr().err
    load_network(folder)  # checks its SHA-256
    assert release(folder, SHIPPED / "2d_fold0.safetensors", "2d") == 0
    assert capsys.readouterr().err == "" and missing_parts(folder) == []
    for kind in ("3d", "2d"):
        assert len(Weights(folder).ensemble(kind).networks) == 1
    before = (folder / "3d_fold0.safetensors").read_bytes()
    assert release(folder, folder / "3d_fold0.safetensors", "3d") == 0  # onto itself
    assert (folder / "3d_fold0.safetensors").read_bytes() == before and not list(folder.glob(".*"))


def test_an_anatomy_network_is_released_alone(tmp_path: Path, capsys: Any) -> None:
    folder, anatomy = tmp_path / "mine", str(SHIPPED / "anatomy.safetensors")
    words = ["--weights", str(folder), "--data", "a toy"]
    assert cli.main(["release", "--anatomy", anatomy, *words]) == 0
    assert "has no 3d ensemble" in capsys.readouterr().err
    load_network(folder)  # checks its SHA-256
    entry = json.loads((folder / MANIFEST).read_text())["anatomy"]
    shipped = json.loads((SHIPPED / MANIFEST).read_text())["anatomy"]
    assert entry == {**shipped, "data": "a toy", "scores": {}, "steps": entry["steps"], "minutes": entry["minutes"]}
    for wrong in ([anatomy, "--anatomy", anatomy], []):
        assert cli.main(["release", *wrong, *words]) == 2
        assert "expected the networks of an ensemble, or --anatomy FILE alone" in capsys.readouterr().err
    assert cli.main(["release", "--anatomy", str(SHIPPED / "3d_fold0.safetensors"), *words]) == 2
    assert "3d_fold0.safetensors: expected" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"format": 1}', '{"format": 1, "ensembles": []}', "[]", "no JSON"])
def test_a_manifest_that_is_none_is_refused(content: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / MANIFEST).write_text(content)
    assert release(tmp_path, SHIPPED / "3d_fold0.safetensors", "3d") == 2
    assert f"{tmp_path / MANIFEST}: expected the manifest of the weights, got " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST] and (tmp_path / MANIFEST).read_text() == content


def test_settings_follow_from_the_networks(tmp_path: Path, capsys: Any, tiny: dict[str, NetworkConfig]) -> None:
    def write(name: str, config: NetworkConfig, patch: int, **facts: float) -> str:
        training = {"batch": 1, "patch": patch, "seed": 0}
        metadata = {"training": json.dumps(training), "facts": json.dumps({"steps": 9, **facts})}
        checkpoint.save(tmp_path / name, build(config), metadata)
        return str(tmp_path / name)

    def settings(*words: str) -> dict[str, tuple[float, int]]:
        assert cli.main(["release", *words, "--weights", str(tmp_path / "mine")]) == 0
        manifest = json.loads((tmp_path / "mine" / MANIFEST).read_text())
        return {name: (entry["threshold"], entry["window"]) for name, entry in manifest["ensembles"].items()}

    folds = write("a", tiny["3d"], 32, threshold=0.6), write("b", tiny["3d"], 80, threshold=0.7)
    assert settings(*folds) == {"3d": (0.65, 80)}
    assert settings(folds[0]) == {"3d": (0.6, 64)}, "windows are larger than small patches"
    assert settings(write("c", tiny["2d"], 96, threshold=0.4)) == {"3d": (0.6, 64), "2d": (0.4, 192)}
    view = write("d", replace(tiny["2d"], view="sagittal"), 48)  # planes of thin-sliced scans
    assert cli.main(["release", view, "--weights", str(tmp_path / "mine")]) == 2
    message = "error: --threshold: expected a probability, since the files of the networks hold none\n"
    assert capsys.readouterr().err.endswith(message)
    assert settings(view, "--threshold", "0.3") == {"3d": (0.3, 192), "2d": (0.4, 192)}
    assert settings(folds[0], "--threshold", "0.5", "--window", "96")["3d"] == (0.5, 96)


def test_networks_that_would_overwrite_each_other_are_refused(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "mine"
    words = ["--weights", str(folder), "--threshold", "0.5", "--window", "96", "--network", "3d"]
    assert cli.main(["release", *(str(SHIPPED / f"3d_fold{k}.safetensors") for k in (0, 1)), *words]) == 0
    files = [folder / f"3d_fold{k}.safetensors" for k in (0, 1)]
    before = [path.read_bytes() for path in files]
    assert cli.main(["release", str(files[1]), str(files[0]), *words]) == 2
    assert "3d_fold0.safetensors: expected a network that no other one overwrites" in capsys.readouterr().err
    assert [path.read_bytes() for path in files] == before
    assert cli.main(["release", str(files[1]), *words]) == 0  # moves down: nothing is lost
    assert files[0].read_bytes() == before[1]


def test_both_thresholds_reach_the_run(tmp_path: Path, capsys: Any) -> None:
    words = ["--network", "3d", "--threshold", "0.6", "--weights", str(tmp_path / "mine")]
    assert cli.main(["release", str(SHIPPED / "3d_fold0.safetensors"), *words, "--low-threshold", "0.3"]) == 0
    ensemble = Weights(tmp_path / "mine").ensemble("3d")
    assert (ensemble.settings.threshold, ensemble.settings.low_threshold) == (0.6, 0.3)
    capsys.readouterr()
    assert cli.main(["release", str(SHIPPED / "3d_fold0.safetensors"), *words, "--low-threshold", "0.7"]) == 2
    assert "with a low threshold above 0 and up to the threshold, 0.6, got 0.7" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [("--threshold", "1.5"), ("--window", "50"), ("--overlap", "1")])
def test_values_that_no_run_could_use_are_refused(tmp_path: Path, capsys: Any, wrong: tuple[str, str]) -> None:
    words = ["--threshold", "0.5", "--network", "3d", "--weights", str(tmp_path / "mine"), *wrong]
    assert cli.main(["release", str(SHIPPED / "3d_fold0.safetensors"), *words]) == 2
    assert "mine: expected a 3d ensemble with a threshold within 0 to 1" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_file_without_the_settings_of_its_training_is_refused(
    tmp_path: Path, capsys: Any, tiny: dict[str, NetworkConfig]
) -> None:  # fmt: skip
    source = tmp_path / "own"
    metadata = {"training": json.dumps({"patch": 32, "seed": 0}), "facts": json.dumps({"steps": 9, "threshold": 0.5})}
    checkpoint.save(source, build(tiny["3d"]), metadata)
    assert release(tmp_path / "mine", source, "3d") == 2
    assert f"error: {source}: expected a network that `train` wrote" in capsys.readouterr().err


def test_an_anatomy_network_of_ones_own_stays(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert release(folder, SHIPPED / "3d_fold0.safetensors", "3d") == 0
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["anatomy"]["data"] = "my own"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert release(folder, SHIPPED / "3d_fold0.safetensors", "3d") == 0
    assert json.loads((folder / MANIFEST).read_text())["anatomy"]["data"] == "my own"


@pytest.mark.parametrize(
    ("file", "kind", "said"),
    [
        ("3d_fold0", "2d", "expected a 2D network for slices of 2.5 mm or more, got a 3D one: release it with"),
        ("2d_fold0", "3d", "expected a 3D network, or a 2D one of a view, for slices below 2.5 mm, got a 2D network"),
        ("anatomy", "3d", "expected a network that `train` wrote (network.safetensors), got other weights"),
        ("text", "3d", "expected a network that `train` wrote (network.safetensors), got other weights"),
    ],
)
def test_what_is_for_other_scans_is_refused(tmp_path: Path, capsys: Any, file: str, kind: str, said: str) -> None:
    assert release(tmp_path / "mine", SHIPPED / f"{file}.safetensors", kind) == 2
    assert f"error: {SHIPPED / file}.safetensors: {said}" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_a_run_says_what_its_weights_lack(
    write_body: Callable[..., dict[str, Path]], own_weights: Path, tmp_path: Path, capsys: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    manifest = json.loads((own_weights / MANIFEST).read_text())
    del manifest["ensembles"]["2d"]
    (own_weights / MANIFEST).write_text(json.dumps(manifest))
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",), spacing_mm=(1.0, 1.0, 4.0))
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights", str(own_weights)]
    with caplog.at_level(logging.WARNING):
        assert segment.main([*words, "--device", "cpu"]) == 1
    assert any("has no anatomy network" in line and "wrong masks" in line for line in caplog.messages)
    assert any("has no 2d ensemble" in line for line in caplog.messages)
    last = capsys.readouterr().err.strip()
    assert last.endswith("expected a 2d ensemble, for slices of 2.5 mm or more, got 3d alone: "
                         "python -m pvs_model release adds one")  # fmt: skip
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        segment.main([*words, "--device", "cpu", "--no-anatomy"])
    assert not any("anatomy network" in line for line in caplog.messages)


def test_lacking_leaves_a_damaged_manifest_to_others(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{")
    assert missing_parts(tmp_path) == []
    with pytest.raises(WeightsError):
        Weights(tmp_path)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("2d_fold0.safetensors", "expected weights of the network 3d, got those of another: dimensions 2 instead"),
        ("anatomy.safetensors", "expected the weights of a network that train wrote, got others"),
    ],
)
def test_training_starts_from_no_other_network(tmp_path: Path, capsys: Any, file: str, said: str) -> None:
    if file.startswith("2d"):
        checkpoint.save(tmp_path / file, build(MODELS["2d"].config))
    else:
        shutil.copyfile(SHIPPED / file, tmp_path / file)
    words = ["--network", "3d", "--anatomies", str(tmp_path), "--output", str(tmp_path / "run")]
    assert cli.main(["train", *words, "--start", str(tmp_path / file), "--encoder", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / file}: {said}") and message.count("\n") == 1
    assert file != "2d_fold0.safetensors" or message.endswith("; use --network 2d for them\n")
