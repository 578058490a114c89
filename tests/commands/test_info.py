"""``pvs-model info``: what it says of the weights is what the folder holds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

import pytest

import pvs_model
from pvs_model.cli import main
from pvs_model.config import MANIFEST
from pvs_model.inference.provenance import weights_files


def test_the_json_has_versions_checksums_thresholds_ranges_and_backends(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "--json", "--weights", str(weights)]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["versions"]["pvs_model"] == pvs_model.__version__
    assert info["versions"]["numpy"] == importlib.metadata.version("numpy")
    assert info["backends"]["torch"].startswith(info["versions"]["torch"].partition("+")[0])
    ensembles = json.loads((weights / MANIFEST).read_text())["ensembles"]
    for name, ensemble in info["weights"]["ensembles"].items():
        assert ensemble["threshold"] == ensembles[name]["threshold"]
        assert ensemble["through_plane_mm"] == ensembles[name]["thickness_mm"]
    files = list(weights_files(info["weights"]))
    assert {file["file"] for file in files} == {path.name for path in weights.iterdir()} - {MANIFEST}
    for file in files:
        assert file["state"] == "valid"
        assert file["sha256"] == hashlib.sha256((weights / file["file"]).read_bytes()).hexdigest()


def test_damaged_and_missing_files_are_named(own_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged, missing = sorted(own_weights.glob("3d*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    missing.unlink()
    assert main(["info", "--weights", str(own_weights)]) == 1
    printed = capsys.readouterr()
    assert [line.rpartition(" ")[2] for line in printed.err.splitlines()] == ["damaged", "missing"]
    assert f"{own_weights / damaged.name}: expected sha256" in printed.err
    assert printed.out.count("  valid") == 2 and "thresholds 0.5 and 0.5, trained on" in printed.out


def test_a_folder_without_weights_is_an_error_of_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "--weights", str(tmp_path)]) == 2
    assert "expected the manifest of the weights, got no such file" in capsys.readouterr().err
