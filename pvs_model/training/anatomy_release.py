"""Put a trained anatomy network into a weights folder: its file, checksum, and where it comes from."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pvs_model.anatomy.network import load
from pvs_model.config import MANIFEST
from pvs_model.inference.weights import FORMAT
from pvs_model.training.release import sha256_of

FILE = "anatomy.safetensors"


def release_anatomy(folder: Path, source: Path, data: str, scores: dict[str, Any]) -> None:
    """Copy the network of a run into a weights folder and write the entry "anatomy" of its manifest.

    Args:
        folder: the weights folder; other entries of its manifest are kept.
        source: ``anatomy.safetensors`` of a run.
        data: what it was trained on, in words.
        scores: what was measured, in any JSON.

    Raises:
        WeightsError: when the source is no anatomy network.
    """
    network = load(source)
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    facts, training = json.loads(metadata["facts"]), json.loads(metadata["training"])
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{FILE}.partial"
    shutil.copyfile(source, part)
    part.chmod(0o644)
    os.replace(part, folder / FILE)
    path = folder / MANIFEST
    manifest: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"format": FORMAT, "ensembles": {}}
    manifest["anatomy"] = {
        "file": FILE,
        "sha256": sha256_of(folder / FILE),
        "network": asdict(network.config),
        "steps": facts["steps"],
        "minutes": facts["minutes"],
        "seed": training["seed"],
        "data": data,
        "scores": scores,
    }
    part = folder / f"{MANIFEST}.partial"
    part.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    os.replace(part, path)
