"""Ensembles of groups: how their probabilities are combined, planes of a view, regions, and what a case lacks.

Most networks here are functions of their windows, so that each expected probability can be said by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pvs_model import pipeline
from pvs_model.anatomy.regions import CLASS, STRUCTURES, Anatomy
from pvs_model.config import MANIFEST, TRAINED_RANGE, InferenceConfig, NetworkConfig
from pvs_model.errors import VolumeError, WeightsError
from pvs_model.inference import sliding_window
from pvs_model.inference.device import memory_plans
from pvs_model.inference.ensemble import Ensemble, Group
from pvs_model.inference.settings import EnsembleSettings
from pvs_model.inference.sliding_window import count_windows, predict_maps
from pvs_model.inference.weights import Weights
from pvs_model.nets import checkpoint
from pvs_model.nets.model import build
from pvs_model.nets.text import prompt
from pvs_model.pipeline import Segmenter
from pvs_model.preprocessing.prepare import prepare
from pvs_model.training.release import release
from pvs_model.types import Case
from tests.prediction import predict

CPU = torch.device("cpu")
TOKENS = torch.zeros(4, 384)


class Stub(nn.Module):
    """A network whose logits are a function of its windows."""

    def __init__(self, logits: Callable[[Tensor], Tensor], **config: Any) -> None:
        super().__init__()
        self.logits, self.config = logits, NetworkConfig(**{"nested_from": 0, "fluid": False} | config)
        self.windows: list[tuple[int, ...]] = []

    def forward(self, windows: Tensor, words: Tensor) -> Tensor:
        self.windows.append(tuple(windows.shape))
        return self.logits(windows)


def ensemble_of(*groups: Sequence[nn.Module], combine: str = "mean", kind: str = "3d", window: int = 16) -> Ensemble:
    named = tuple(Group(tuple(networks), str(n)) for n, networks in enumerate(groups))  # type: ignore[arg-type]
    return Ensemble(kind, named, EnsembleSettings(0.5, window, 0.25, (0.4, 1.3), (0.4, 2.5), combine))


def constant(probability: float, **config: Any) -> Stub:
    logit = float(np.log(probability / (1 - probability)))
    return Stub(lambda w: torch.full_like(w[:, :1], logit), **config)


def image(*shape: int, channels: int = 3) -> Tensor:
    return torch.randn(channels, *shape, generator=torch.Generator().manual_seed(0))


# ---- means and maxima ----------------------------------------------------------------------------------------------


def test_one_group_is_the_mean_of_its_networks_to_the_last_bit() -> None:
    networks, scan = [Stub(lambda w, k=k: w[:, k : k + 1]) for k in range(3)], image(16, 16, 16)
    mean = sum((w[None].sigmoid() for w in scan), torch.zeros(1, 16, 16, 16)) / 3
    for combine in ("mean", "maximum"):
        probability = predict(ensemble_of(networks, combine=combine), scan, TOKENS, CPU)
        assert probability.dtype == torch.float32
        torch.testing.assert_close(probability, mean[0], rtol=0, atol=1e-6)  # the windows' weights cancel to rounding
        name = ensemble_of(networks, combine=combine).groups[0]
        plan = next(memory_plans(CPU, 4))
        whole = (slice(0, 16),) * 3
        alone = sliding_window._run(name, scan, TOKENS, plan, (16,) * 3, [whole], False, None, "torch")
        assert torch.equal(probability, alone[0])


@given(st.floats(0.01, 0.99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_maximum_of_networks_is_the_or_of_their_masks(threshold: float) -> None:
    networks, scan = [Stub(lambda w, k=k: w[:, k : k + 1]) for k in range(3)], image(9, 12, 7)
    both = predict(ensemble_of(*([n] for n in networks), combine="maximum"), scan, TOKENS, CPU)
    alone = [predict(ensemble_of([n]), scan, TOKENS, CPU) >= threshold for n in networks]
    assert torch.equal(both >= threshold, alone[0] | alone[1] | alone[2])


def test_groups_weigh_the_same_whatever_their_size() -> None:
    # (0.2 + 0.4 + 0.6) / 3 = 0.4 in one group, 0.8 in the other: 0.6, not the flat (0.2 + 0.4 + 0.6 + 0.8) / 4 = 0.5.
    groups = [constant(0.2), constant(0.4), constant(0.6)], [constant(0.8)]
    scan = image(16, 16, 16)
    for combine, expected in (("mean", 0.6), ("maximum", 0.8)):
        probability = predict(ensemble_of(*groups, combine=combine), scan, TOKENS, CPU)
        torch.testing.assert_close(probability, torch.full((16, 16, 16), expected), rtol=0, atol=1e-6)
    flat = predict(ensemble_of([*groups[0], *groups[1]]), scan, TOKENS, CPU)
    torch.testing.assert_close(flat, torch.full((16, 16, 16), 0.5), rtol=0, atol=1e-6)


def test_the_fluid_fraction_is_the_mean_of_the_groups_that_predict_it() -> None:
    one, other = constant(0.2), constant(0.6)
    both = Stub(lambda w: torch.cat([torch.full_like(w[:, :1], 0.4), torch.full_like(w[:, :1], 0.8)], 1).logit())
    scan = image(16, 16, 16)
    assert predict_maps(ensemble_of([one], [other]), scan, TOKENS, CPU).shape == (1, 16, 16, 16)
    maps = predict_maps(ensemble_of([one], [both]), scan, TOKENS, CPU)
    expected = torch.tensor([0.3, 0.8]).reshape(2, 1, 1, 1).expand(2, 16, 16, 16)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-6)
    largest = predict_maps(ensemble_of([one], [both], combine="maximum"), scan, TOKENS, CPU)
    torch.testing.assert_close(largest[0], torch.full((16, 16, 16), 0.4), rtol=0, atol=1e-6)


def test_memory_that_runs_out_for_one_group_starts_the_next_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, int]] = []

    def run(group: Group, scan: Tensor, text: Tensor, plan: Any, *rest: Any) -> Tensor:
        tried.append((group.name, plan.batch_size))
        if tried[-1] == ("0", 4):
            raise torch.OutOfMemoryError("no")
        return torch.full((1, *scan.shape[1:]), 0.25 if group.name == "0" else 0.75)

    monkeypatch.setattr(sliding_window, "_run", run)
    groups = ensemble_of([constant(0.5)], [constant(0.5)])
    probability = predict(groups, image(4, 4, 4), TOKENS, torch.device("cuda"))
    assert tried == [("0", 4), ("0", 2), ("1", 4)] and torch.equal(probability, torch.full((4, 4, 4), 0.5))


# ---- planes of a view ----------------------------------------------------------------------------------------------

VIEW_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}
ORDERS = [(0, 1, 2), (0, 2, 1), (1, 2, 0)]  # as ``pipeline.axis_order`` gives them


@pytest.mark.parametrize("view", VIEW_AXIS)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_a_view_is_its_network_slice_by_slice(view: str, order: tuple[int, int, int], kind: str) -> None:
    torch.manual_seed(3)
    config = NetworkConfig(dimensions=2, neighbour_slices=3, widths=(4, 8, 8), view=view, nested_from=0, fluid=False)
    network, axis = build(config).eval(), 1 + VIEW_AXIS[view]
    head = image(16, 24, 32)  # in RAS+ order; sides for which there is one window per plane, without padding
    planes = head.unbind(axis)
    expected = []
    for k in range(len(planes)):
        around = [planes[min(max(k + step, 0), len(planes) - 1)] for step in (-1, 0, 1)]
        window = torch.stack(around, 1).flatten(0, 1)[None]  # by sequence, then by slice from below to above
        wide = torch.zeros(1, 9, 32, 32)
        low = [(32 - side) // 2 for side in window.shape[2:]]  # padded on both sides
        inside = (..., *(slice(a, a + n) for a, n in zip(low, window.shape[2:], strict=True)))
        wide[inside] = window
        with torch.inference_mode():
            expected.append(network(wide, TOKENS[None]).sigmoid()[inside][0, 0])
    ensemble = ensemble_of([network], kind=kind, window=32)
    probability = predict(ensemble, head.permute(0, *(1 + a for a in order)), TOKENS, CPU, order=order)
    back = probability.permute(*(order.index(a) for a in range(3)))
    torch.testing.assert_close(back, torch.stack(expected, VIEW_AXIS[view]), rtol=0, atol=1e-5)
    assert float(back.std()) > 1e-4


def test_three_views_and_three_dimensions_make_one_answer() -> None:
    # Each network gives its own channel, and every voxel is answered by itself: the mean of four images.
    flat = [Stub(lambda w, k=k: w[:, k : k + 1], dimensions=2, view=v) for k, v in enumerate(VIEW_AXIS)]
    ensemble = ensemble_of(*([n] for n in flat), [Stub(lambda w: w.sum(1, keepdim=True))])
    scan, done = image(37, 21, 19), []
    probability = predict(ensemble, scan, TOKENS, CPU, progress=done.append, order=(0, 2, 1))
    expected = torch.stack([*scan.sigmoid(), scan.sum(0).sigmoid()]).mean(0)
    torch.testing.assert_close(probability, expected, rtol=0, atol=1e-5)
    assert sum(done) == count_windows(ensemble, (37, 21, 19), (0, 2, 1))


@pytest.mark.parametrize("thick", [0, 1, 2])
def test_the_pipeline_says_which_axis_is_which(body: Any, thick: int) -> None:
    # How far a voxel lies from the first plane of its view, in the network's eyes: the count of slices.
    spacing = [0.9, 1.0, 1.1]
    spacing[thick] = 2.2
    prepared = prepare({"T2w": body.volume("T2w", spacing_mm=tuple(spacing))})
    for view, axis in VIEW_AXIS.items():
        stub = Stub(lambda w: w[:, 1:2], dimensions=2, view=view)
        probability = pipeline.predict_probability(prepared, ensemble_of([stub], window=32), TOKENS, CPU)
        inside = np.s_[tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(prepared.foreground))]
        expected = 1 / (1 + np.exp(-prepared.image[1][inside]))
        np.testing.assert_allclose(probability[inside], expected, atol=1e-5)
        planes = np.ptp(np.nonzero(prepared.foreground)[axis]) + 1
        assert len(stub.windows) == planes  # none without foreground


# ---- regions -------------------------------------------------------------------------------------------------------


def with_regions(prepared: pipeline.PreparedImages) -> pipeline.PreparedImages:
    """Putamen, thalamus, white matter and hippocampus in boxes of a third of the grid."""
    labels = np.zeros(prepared.grid.shape, np.uint8)
    x, y, z = (n // 3 for n in labels.shape)
    boxes = {"PUT": np.s_[:x, :y, :z], "THA": np.s_[x:, y:, :z], "WM": np.s_[:x, :y, z:], "HIP": np.s_[x:, :y, :]}
    for name, box in boxes.items():
        labels[box] = STRUCTURES[CLASS[name] - 1].left
    return replace(prepared, anatomy=Anatomy(labels, labels > 0))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 2.2, 1.0), (2.0, 2.0, 2.0), (0.3, 0.9, 0.9)], ids=str)
def test_regions_are_the_last_channel_of_who_asks(body: Any, spacing: tuple[float, float, float]) -> None:
    small = type(body)(radii_mm=(9.0, 10.0, 8.0), ball_mm=(5.0, -7.0, 4.0), ball_radius_mm=2.0)
    prepared = with_regions(prepare({"T2w": small.volume("T2w", spacing_mm=spacing)}))
    seen: list[Tensor] = []

    def asks(windows: Tensor) -> Tensor:
        seen.append(windows[:, 3:])
        return 20 * windows[:, 3:] - 10

    asking, plain = Stub(asks, regions=True), Stub(lambda w: w[:, 1:2])
    both = ensemble_of([asking], [plain], combine="maximum")
    marked = pipeline.predict_probability(prepared, both, TOKENS, CPU) >= 0.5
    assert {w[1] for w in asking.windows} == {4} and {w[1] for w in plain.windows} == {3}
    assert set(torch.cat(seen).unique().tolist()) <= {0.0, 1.0}
    assert prepared.anatomy is not None
    region = prepared.anatomy.mask("BG") | prepared.anatomy.mask("CSO")
    assert not (region & prepared.anatomy.mask("HIP")).any()
    alone = pipeline.predict_probability(prepared, ensemble_of([asking]), TOKENS, CPU) >= 0.5
    respaced = min(spacing) < 0.4 or sorted(spacing)[1] > 1.3
    same = (alone == region)[prepared.foreground].mean()
    assert same > 0.95 if respaced else same == 1
    assert (marked & prepared.foreground).sum() > (alone & prepared.foreground).sum() and not (alone & ~marked).any()


def test_regions_are_not_asked_of_a_case_whose_networks_do_not_look_at_them(body: Any) -> None:
    prepared = prepare({"T2w": body.volume("T2w")})
    plain = Stub(lambda w: w[:, 1:2])
    pipeline.predict_probability(prepared, ensemble_of([plain]), TOKENS, CPU)
    assert {w[1] for w in plain.windows} == {3}


def test_without_anatomy_networks_of_regions_are_not_run(body: Any) -> None:
    prepared = prepare({"T2w": body.volume("T2w")})
    stub = Stub(lambda w: w[:, 3:], regions=True)
    with pytest.raises(VolumeError, match=r"^expected a parcellation of the brain, .* got none: .*no --no-anatomy$"):
        pipeline.predict_probability(prepared, ensemble_of([stub]), TOKENS, CPU)
    assert not stub.windows


# ---- sequences that a case has not ---------------------------------------------------------------------------------


def put(folder: Path, kind: str, members: list[tuple[NetworkConfig, str]], combine: str = "mean") -> None:
    """Release random networks as an ensemble of groups."""
    torch.manual_seed(11)
    facts = {"training": json.dumps({"batch": 1, "patch": 16, "seed": 0}), "facts": json.dumps({"steps": 0})}
    files = [folder / f"made_{n}" for n in range(len(members))]
    for file, (config, _) in zip(files, members, strict=True):
        checkpoint.save(file, build(config).eval(), facts)
    groups = [group for _, group in members]
    settings = EnsembleSettings(0.5, 32, 0.25, *TRAINED_RANGE[kind], combine)
    release(folder, kind, files, settings, "none: random weights", {}, groups=groups)


@pytest.fixture
def by_sequence(own_weights: Path, tiny: dict[str, NetworkConfig]) -> Path:
    """Two networks of T1w alone and one of inverted T2w alone, the maximum of the two means."""
    t1, t2 = replace(tiny["3d"], inputs=("T1w",)), replace(tiny["3d"], inputs=("-T2w",))
    put(own_weights, "3d", [(t1, "T1w"), (t1, "T1w"), (t2, "T2w")], "maximum")
    return own_weights


def test_a_group_without_its_sequence_is_left_out_and_told(
    by_sequence: Path, write_body: Callable[..., dict[str, Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_body(tmp_path / "a_{}.nii.gz")
    # One prompt for all: the standard one names the sequences.
    segmenter = Segmenter(InferenceConfig(by_sequence, "cpu", prompt=prompt(("T1w", "T2w", "FLAIR"), 1.0)))

    def segment(*names: str) -> pipeline.SegmentationResult:
        return segmenter.segment(Case("a", {name: paths[name] for name in names}, Path("a.nii.gz")))

    both, t1, t2 = segment("T1w", "T2w"), segment("T1w"), segment("T2w", "FLAIR")
    assert both.metadata["members"] == 3 and both.metadata["groups"] == 2 and both.metadata["warnings"] == []
    assert t1.metadata["members"] == 2 and t2.metadata["members"] == 1
    assert "groups" not in t1.metadata and "groups" not in t2.metadata
    warning = "networks that only use T1w were left out: the case has no such sequence"
    assert t2.metadata["warnings"] == [warning] and f"a: {warning}" in caplog.messages
    assert t1.metadata["warnings"] == [warning.replace("T1w", "T2w")]
    # T2w alone is the reference of both: the group that is left answers as it does in the whole ensemble.
    assert t2.reference == both.reference == "T2w"
    assert (both.probability >= t2.probability - 1e-6).all() and (both.probability > t2.probability + 1e-6).any()
    with pytest.raises(VolumeError, match="^expected T1w or T2w, which the 3d networks use, got FLAIR$"):
        segment("FLAIR")


def test_a_mean_is_over_the_groups_that_are_left(body: Any) -> None:
    groups = ensemble_of([constant(0.2, inputs=("T1w",))], [constant(0.6, inputs=("-T2w", "FLAIR"))])
    prepared = prepare({"FLAIR": body.volume("FLAIR")})
    probability = pipeline.predict_probability(prepared, groups, TOKENS, CPU)
    np.testing.assert_allclose(probability[prepared.foreground], 0.6, atol=1e-6)
    assert groups.groups[1].inputs == ("T2w", "FLAIR") and groups.with_available_inputs(("T1w", "FLAIR")) is groups


# ---- the manifest --------------------------------------------------------------------------------------------------


def change(folder: Path, kind: str = "3d", **entries: Any) -> list[dict[str, Any]]:
    """Overwrite entries of an ensemble; its members."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["ensembles"][kind].update(entries)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    members: list[dict[str, Any]] = manifest["ensembles"][kind]["members"]
    return members


def test_a_manifest_without_groups_has_one(weights: Path) -> None:
    for kind in ("3d", "2d"):
        ensemble = Weights(weights).ensemble(kind)
        assert len(ensemble.groups) == 1 and ensemble.groups[0].name == "" and ensemble.settings.combine == "mean"
        assert ensemble.groups[0].networks == ensemble.networks
    entry = json.loads((weights / MANIFEST).read_text())["ensembles"]["3d"]
    assert "combine" not in entry and not any("group" in member for member in entry["members"])


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_views_and_volumes_belong_to_both_kinds(own_weights: Path, tiny: dict[str, NetworkConfig], kind: str) -> None:
    views = [(replace(tiny["2d"], view=view), view) for view in VIEW_AXIS]
    put(own_weights, kind, [*views, (tiny["3d"], "3d"), views[1]])
    ensemble = Weights(own_weights).ensemble(kind)
    assert [(g.name, g.dimensions, g.view, g.config.in_channels, len(g.networks)) for g in ensemble.groups] == [
        ("axial", 2, "axial", 9, 1), ("coronal", 2, "coronal", 9, 2), ("sagittal", 2, "sagittal", 9, 1),
        ("3d", 3, "", 3, 1),
    ]  # fmt: skip
    assert len(ensemble.networks) == 5 and ensemble.dimensions == int(kind[0])
    probability = predict(ensemble, image(20, 24, 9), TOKENS, CPU)
    assert probability.shape == (20, 24, 9) and probability.isfinite().all()


@pytest.mark.parametrize("combine", ["median", "", None, 3, ["mean"]], ids=str)
def test_an_unknown_way_to_combine(own_weights: Path, combine: Any) -> None:
    change(own_weights, combine=combine)
    with pytest.raises(WeightsError, match=r"MANIFEST.json: expected a 3d ensemble whose groups are combined by mean "):
        Weights(own_weights).ensemble("3d")


def test_slices_as_acquired_belong_to_thick_ones_alone(own_weights: Path, tiny: dict[str, NetworkConfig]) -> None:
    with pytest.raises(WeightsError, match=r"made_1: expected a 3D network, or a 2D one of a view"):
        put(own_weights, "3d", [(tiny["3d"], "a"), (tiny["2d"], "b")])
    # One that was released before that was refused.
    put(own_weights, "2d", [(tiny["2d"], "b")])
    manifest = json.loads((own_weights / MANIFEST).read_text())
    manifest["ensembles"]["3d"]["members"] += manifest["ensembles"]["2d"]["members"]
    (own_weights / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=r"2d_fold0.safetensors: expected a 3d network, or a 2d one of a view"):
        Weights(own_weights).ensemble("3d")


@pytest.mark.parametrize(
    "other",
    [{"dimensions": 2, "view": "axial"}, {"regions": True}],
    ids=str,
)
def test_networks_of_one_group_are_of_one_form(
    own_weights: Path, tiny: dict[str, NetworkConfig], other: dict[str, Any]
) -> None:
    members = [(tiny["3d"], "a"), (replace(tiny["3d"], **other), "b")]
    put(own_weights, "3d", members)
    assert len(Weights(own_weights).ensemble("3d").groups) == 2
    put(own_weights, "3d", [(config, "a") for config, _ in members])
    with pytest.raises(WeightsError, match=r"3d_fold1.safetensors: expected dimensions, view and channels like"):
        Weights(own_weights).ensemble("3d")


def test_each_network_sees_its_own_mirror_image(own_weights: Path, tiny: dict[str, NetworkConfig]) -> None:
    torch.manual_seed(11)
    facts = {"training": json.dumps({"batch": 1, "patch": 16, "seed": 0}), "facts": json.dumps({"steps": 0})}
    files = [own_weights / f"made_{n}" for n in range(5)]
    for file in files:
        checkpoint.save(file, build(tiny["2d"]).eval(), facts)
    settings = EnsembleSettings(0.5, 32, 0.25, *TRAINED_RANGE["2d"])
    release(own_weights, "2d", files, settings, "none: random weights", {}, mirrored=True)
    networks = Weights(own_weights).ensemble("2d").networks
    assert [network.mirrored for network in networks] == [(), (0,), (1,), (0, 1), ()]
    manifest = json.loads((own_weights / MANIFEST).read_text())
    manifest["ensembles"]["2d"]["members"][0]["mirrored"] = [2]
    (own_weights / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=r"2d_fold0.safetensors: expected axes 0 to 1 to mirror, got \(2,\)"):
        Weights(own_weights).ensemble("2d")


def test_a_release_needs_a_group_per_network(tmp_path: Path) -> None:
    settings = EnsembleSettings(0.5, 32, 0.25, *TRAINED_RANGE["3d"])
    with pytest.raises(ValueError, match="groups must be one per network, got 2 for 1"):
        release(tmp_path, "3d", [tmp_path / "a"], settings, "", {}, groups=["a", "b"])
    with pytest.raises(WeightsError, match=r"expected a 3d ensemble whose groups are combined by mean or maximum, got"):
        release(tmp_path, "3d", [tmp_path / "a"], replace(settings, combine="median"), "", {})


def test_release_by_command_takes_a_group_per_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pvs_model import cli

    files = []
    for name in ("a", "b"):
        files.append(str(tmp_path / name))
        metadata = {"training": json.dumps({"batch": 1, "patch": 16, "seed": 0}), "facts": json.dumps({"steps": 0})}
        checkpoint.save(files[-1], build(NetworkConfig(widths=(4, 8, 8, 8), nested_from=0, fluid=False)), metadata)
    words = ["release", *files, "--network", "3d", "--threshold", "0.5", "--window", "32",
             "--weights", str(tmp_path / "out"), "--combine", "maximum"]  # fmt: skip
    assert cli.main([*words, "--groups", "T1w"]) == 2
    assert "--groups: expected one for each of 2 networks, got 1" in capsys.readouterr().err
    assert cli.main([*words, "--groups", "T1w", "T2w"]) == 0
    ensemble = Weights(tmp_path / "out").ensemble("3d")
    assert [group.name for group in ensemble.groups] == ["T1w", "T2w"] and ensemble.settings.combine == "maximum"
