"""Fixtures: a small weights folder, small scans of one body in space, a small anatomy. All made here, from formulas.

The weights are random and serve to test the plumbing only: what the networks find with them means nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pvs_model.config import TRAINED_RANGE, NetworkConfig
from pvs_model.inference.settings import EnsembleSettings
from pvs_model.nets import checkpoint
from pvs_model.nets.model import build
from pvs_model.simulation.head import HeadModel
from pvs_model.simulation.head import build_head_model as build_anatomy
from pvs_model.training.release import release
from pvs_model.types import SEQUENCES, Volume
from pvs_model.volume.io import write_volume

ROOT = Path(__file__).parent.parent
TINY = {
    "3d": NetworkConfig(widths=(4, 8, 8, 8), nested_from=0, fluid=False),
    "2d": NetworkConfig(dimensions=2, neighbour_slices=3, widths=(4, 8, 8, 8), nested_from=0, fluid=False),
}


@pytest.fixture(autouse=True)
def exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference in float32, as on a CPU without bfloat16: tests of arithmetic then hold on every machine."""
    monkeypatch.setattr("pvs_model.nets.precision.cpu_has_bfloat16", lambda: False)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own, also for the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class Body:
    """An ellipsoid with a bright ball in it, given in mm, so that any grid shows the same thing."""

    centre_mm: tuple[float, float, float] = (3.0, -4.0, 6.0)
    radii_mm: tuple[float, float, float] = (17.0, 21.0, 15.0)
    ball_mm: tuple[float, float, float] = (9.0, -12.0, 1.0)
    ball_radius_mm: float = 4.0

    def image(self, shape: tuple[int, ...], affine: npt.NDArray[np.float64], sequence: str) -> npt.NDArray[np.float32]:
        """Zero outside; inside a smooth texture, and the ball: bright in T2w, dark in the others."""
        index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
        place = index @ affine[:3, :3].T + affine[:3, 3]
        inside = (((place - self.centre_mm) / self.radii_mm) ** 2).sum(-1) < 1
        ball = ((place - self.ball_mm) ** 2).sum(-1) < self.ball_radius_mm**2
        texture = np.sin(place / 3.0).sum(-1)
        level = {"T1w": 500.0, "T2w": 300.0, "FLAIR": 400.0}[sequence]
        image = np.where(ball, 900.0 if sequence == "T2w" else 60.0, level + 20 * texture)
        return np.where(inside, image, 0.0).astype(np.float32)

    def grid(
        self,
        spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
        axes: tuple[int, ...] = (0, 1, 2),
        signs: tuple[int, ...] = (1, 1, 1),
        tilt_deg: float = 0.0,
        margin_mm: float = 4.0,
    ) -> tuple[tuple[int, ...], npt.NDArray[np.float64]]:
        """Shape and affine of a grid around the body: voxel axis k runs along +-``axes[k]`` with ``spacing_mm[k]``."""
        a = np.deg2rad(tilt_deg)
        about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        about_z = about_x[[1, 2, 0]][:, [1, 2, 0]]
        matrix = np.zeros((3, 3))
        for k, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
            matrix[axis, k] = sign * spacing_mm[k]
        affine = np.eye(4)
        affine[:3, :3] = about_x @ about_z @ matrix
        shape = tuple(
            int(np.ceil(2 * (self.radii_mm[axis] + margin_mm) / s)) for axis, s in zip(axes, spacing_mm, strict=True)
        )
        affine[:3, 3] = self.centre_mm - affine[:3, :3] @ (np.array(shape) - 1) / 2
        return shape, affine

    def volume(self, sequence: str, **grid: object) -> Volume:
        shape, affine = self.grid(**grid)  # type: ignore[arg-type]
        return Volume(self.image(shape, affine, sequence), affine, Path(f"{sequence}.nii.gz"))


@pytest.fixture(scope="session")
def body() -> Body:
    return Body()


@pytest.fixture(scope="session")
def write_body() -> Callable[..., dict[str, Path]]:
    """Writes sequences of a small body to files named by a pattern with ``{}`` for the sequence."""

    small = Body(radii_mm=(11.0, 13.0, 10.0), ball_mm=(7.0, -9.0, 3.0), ball_radius_mm=3.0)

    def write(
        pattern: Path, sequences: tuple[str, ...] = SEQUENCES, body: Body = small, **grid: object
    ) -> dict[str, Path]:
        paths = {name: Path(str(pattern).format(name)) for name in sequences}
        for name, path in paths.items():
            volume = body.volume(name, **grid)
            write_volume(path, volume.data, volume.affine)
        return paths

    return write


@pytest.fixture(scope="session")
def tiny() -> dict[str, NetworkConfig]:
    """Configs of networks that run in milliseconds."""
    return TINY


@pytest.fixture(autouse=True)
def _pytorch_computes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO takes a second to convert each test's own networks: only tests that are about it use it here."""
    if request.node.get_closest_marker("openvino") is None:
        monkeypatch.setattr("pvs_model.inference.openvino.compiled", lambda networks, required=False: None)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with two 3D networks and one 2D network, random but seeded. Read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copyfile(ROOT / "weights" / "text.safetensors", folder / "text.safetensors")
    facts = {"training": json.dumps({"batch": 1, "patch": 16, "seed": 0}), "facts": json.dumps({"steps": 0})}
    # Half of what they see is to be found, for masks that are neither empty nor full.
    scan = Body(radii_mm=(11.0, 13.0, 10.0)).volume("T2w", spacing_mm=(0.7, 0.7, 0.7)).data[:32, :32, :32]
    scan = torch.from_numpy((scan - scan.mean()) / scan.std())
    for kind, members in (("3d", 2), ("2d", 1)):
        files = []
        for member in range(members):
            torch.manual_seed(100 + member)
            files.append(folder / f"made_{kind}_{member}")
            network = build(TINY[kind]).eval()
            views = scan.expand(1, 3, -1, -1, -1) if kind == "3d" else scan.movedim(2, 0)[:, None].expand(-1, 9, -1, -1)
            with torch.no_grad():
                bias = network.heads[0].logit.bias  # type: ignore[union-attr]
                bias -= network(views, torch.randn(len(views), 4, 384)).median()
            checkpoint.save(files[-1], network, facts)
        settings = EnsembleSettings(0.5, 40, 0.25, *TRAINED_RANGE[kind])
        release(folder, kind, files, settings, data="none: random weights", scores={})
        for file in files:
            file.unlink()
    return folder


@pytest.fixture
def own_weights(weights: Path, tmp_path: Path) -> Path:
    """A copy of the weights folder that a test may damage."""
    return Path(shutil.copytree(weights, tmp_path / "own_weights"))


def toy_labels() -> npt.NDArray[np.int32]:
    """FreeSurfer ids (64, 72, 60) at 1 mm: scalp, skull, CSF, cortex, white matter, deep nuclei, ventricles."""
    x, y, z = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (64, 72, 60)), indexing="ij", sparse=True)

    def ball(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> npt.NDArray[np.bool_]:
        return np.asarray(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1)

    labels = np.zeros((64, 72, 60), np.int32)
    left = np.broadcast_to(x < 0, labels.shape)
    for grow, label in ((6, 511), (4, 515), (2, 24), (0, 42), (-3, 41)):
        labels[ball(0, 0, 0, 24 + grow, 28 + grow, 22 + grow)] = label
    labels[ball(0, -4, -17, 6, 6, 8)] = 16  # brainstem
    for side, shift in ((-1, 0), (1, 39)):
        labels[ball(side * 11, 2, -4, 3, 7, 5)] = 12 + shift  # putamen
        labels[ball(side * 5, -6, -5, 3, 4, 4)] = 10 + shift  # thalamus
        labels[ball(side * 12, -9, -9, 3, 5, 2.5)] = 53 if side > 0 else 17  # hippocampus
        labels[ball(side * 4, 0, 5, 2.5, 10, 3)] = 43 if side > 0 else 4  # lateral ventricle
    labels[ball(-6, 8, 1, 2, 5, 4)], labels[ball(6, 8, 1, 2, 5, 4)] = 11, 50  # caudate
    labels[left & (labels == 42)] = 3
    labels[left & (labels == 41)] = 2
    return labels


@pytest.fixture(scope="session")
def small_labels() -> npt.NDArray[np.int32]:
    return toy_labels()


@pytest.fixture(scope="session")
def anatomy(small_labels: npt.NDArray[np.int32]) -> HeadModel:
    """A small head with a skull: 50 x 58 x 46 mm of brain."""
    return build_anatomy(small_labels, "toy")
