"""All models of the zoo: one contract for all, and the particularities of each baseline."""

from __future__ import annotations

import ast
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.networks.recipes import ENSEMBLES, NOT_REPRODUCED
from pvs_model.config import ARCHITECTURES, NETWORK_3D, NetworkConfig
from pvs_model.nets import checkpoint
from pvs_model.nets.base import select_channels
from pvs_model.nets.baselines import BASELINES
from pvs_model.nets.baselines.ccnu import KERNELS, MultiscaleBlock
from pvs_model.nets.baselines.cs2net import CurvilinearAttention
from pvs_model.nets.baselines.monai_nets import InterpolatedUNETR
from pvs_model.nets.baselines.norms import SingleVoxelInstanceNorm2d, use_instance_norms
from pvs_model.nets.model import build
from pvs_model.nets.zoo import MODELS
from pvs_model.training.losses import DeepSupervision
from pvs_model.types import SEQUENCES

#: Small widths by architecture; architectures with a fixed number of levels get their smallest widths.
SMALL = {
    "graph_fusion": (4, 8, 12, 16),
    "dynunet": (4, 6, 8, 8, 8),
    "unet": (4, 4, 8, 8, 8),
    "unet++": (4, 4, 8, 8, 8),
    "attention_unet": (4, 6, 8),
    "segresnet": (8, 16, 32),
    "unetr": (4, 64),
    "swin_unetr": (12,),
    "mednext": (4,),
    "mfns_de": (4, 6, 8),
    "cs2net": (4, 8, 16),
    "separate_encoders": (4, 6, 8),
    "multiscale_kernels": (4, 6, 8),
    "gated_residual": (4, 6, 8),
}
#: The models of the zoo with small widths.
CONFIGS = {
    name: replace(spec.config, widths=SMALL[spec.config.architecture], text_width=10) for name, spec in MODELS.items()
}
#: One name per network: some models differ in their training or view only. Ablations are tested in 2D.
DIFFERENT = list(
    {
        replace(c, view=""): n for n, c in reversed(CONFIGS.items()) if not (MODELS[n].ablation and n.endswith("3d"))
    }.values()
)[::-1]
#: Sizes of the image in training, and odd sizes in eval mode, which are padded.
EVEN, ODD = {2: (32, 32), 3: (16, 16, 16)}, {2: (35, 29), 3: (19, 9, 13)}


def image(config: NetworkConfig, *sides: int) -> torch.Tensor:
    return torch.randn(1, config.in_channels, *sides, generator=torch.Generator().manual_seed(0))


def tokens(config: NetworkConfig) -> torch.Tensor:
    return torch.randn(1, 4, config.text_width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_model_trains_predicts_and_accepts_odd_sizes(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    torch.manual_seed(0)
    network = build(config)
    assert len(network.state_dict()) >= len(list(network.parameters()))
    x, text = image(config, *EVEN[config.dimensions]), tokens(config)

    scales = network(x, text)
    assert isinstance(scales, list)
    for level, logits in enumerate(scales):
        outputs = config.outputs if level == 0 else 1  # the PVS fraction is predicted at full resolution alone
        assert logits.shape == (1, outputs, *[side >> level for side in x.shape[2:]])
    shares = [float(logits.detach().sigmoid().mean()) for logits in scales]
    assert max(shares) < 0.1, "heads start at the prevalence of PVS"

    # the loss decreases, and every parameter has a gradient
    label, loss_of = (x[:, :1] > 1).float(), DeepSupervision()
    target = torch.cat([label, torch.zeros_like(label), label / 2], 1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for step in range(3):
        loss = loss_of(network(x, text), target)
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            unused = {key for key, p in network.named_parameters() if p.grad is None}
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    # In the ablations without later modules, the text that a module returns is unused.
    ignores_text = name.split("-")[0] in ("graph", "attention")
    assert not unused or (ignores_text and all("text" in key or key.startswith("guidance.graph.") for key in unused))
    assert all(math.isfinite(value) for value in losses)

    network.eval()
    sides = ODD[config.dimensions]
    with torch.no_grad():
        odd = network(image(config, *sides), text)
        assert isinstance(odd, torch.Tensor)
        assert odd.shape == (1, config.outputs, *sides) and odd.isfinite().all()
        checkpoint.save(tmp_path / "net.safetensors", network)
        loaded = checkpoint.load(tmp_path / "net.safetensors")
        assert loaded.config == config
        torch.testing.assert_close(loaded(x, text), network(x, text), atol=0.05, rtol=0.02)


def test_architectures_and_builders_agree() -> None:
    assert {*BASELINES, "graph_fusion"} == set(ARCHITECTURES)
    assert {spec.config.architecture for spec in MODELS.values()} == set(ARCHITECTURES)


def test_every_model_and_ensemble_has_a_source() -> None:
    for name, spec in MODELS.items():
        assert spec.name == name and spec.description and spec.source
        assert name.endswith(spec.form)
        assert spec.configuration == ("2d" if name.endswith("2d") else "3d")
    for ensemble in ENSEMBLES:
        assert all(member in MODELS for member, _ in ensemble.members)
        assert ensemble.combine in ("mean", "maximum") and ensemble.source
    teams = {"BIG_AEHRC", "HufsAIM", "CCNU_CS_24", "SHIVA", "nic-vicorob", "bear_walker"}
    assert teams < {ensemble.name for ensemble in ENSEMBLES}
    assert {"IAANet", "TriSegNet", "PINGU"} <= set(NOT_REPRODUCED)


def test_ensembles_of_the_teams_follow_the_challenge_paper() -> None:
    """Section on the teams and Table 4 of epvs_challenge_2024."""
    by_name = {(e.name, e.configuration): e for e in ENSEMBLES}
    assert by_name["BIG_AEHRC", "3d"].threshold == 0.3 and by_name["BIG_AEHRC", "2d"].threshold == 0.35
    hufs = by_name["HufsAIM", "3d"]
    forms = [MODELS[name].form for name, _ in hufs.members]
    assert forms == ["3d", "axial", "coronal", "sagittal"] and hufs.threshold == 0.5 and hufs.combine == "mean"
    assert len({group for _, group in hufs.members}) == 4
    ccnu = by_name["CCNU_CS_24", "3d"]
    assert ccnu.combine == "maximum" and len({group for _, group in ccnu.members}) == 3
    shiva = by_name["SHIVA", "3d"]
    assert [MODELS[name].config.inputs for name, _ in shiva.members] == [("T1w",), ("-T2w",)]
    assert shiva.combine == "maximum"
    nic = MODELS[by_name["nic-vicorob", "3d"].members[0][0]].config
    assert nic.regions and nic.in_channels == 4 and len(nic.widths) == 6


def test_each_row_of_table_2_adds_one_module() -> None:
    rows = [MODELS[name].config for name in ("backbone-3d", "text-3d", "graph-3d", "attention-3d", "3d")]
    switches = ("text", "graph", "cross_attention", "fusion")
    counts = [sum(getattr(config, switch) for switch in switches) for config in rows]
    assert counts == [0, 1, 2, 3, 4]
    for before, after in itertools.pairwise(rows):
        assert all(getattr(after, switch) >= getattr(before, switch) for switch in switches)
    assert rows[-1] == NETWORK_3D


# ---- inputs ----


def test_input_channels_are_selected_in_the_order_of_the_config() -> None:
    config = replace(CONFIGS["3d"], inputs=("-T2w", "T1w"), regions=True)
    x = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 2, 2, 2)
    assert select_channels(x, config)[0, :, 0, 0, 0].tolist() == [-1, 0, 3]  # inverted T2w, T1w, regions
    assert config.in_channels == 4 and config.input_channels == 3


def test_neighbouring_slices_go_with_their_sequence() -> None:
    config = replace(CONFIGS["2d"], inputs=("FLAIR",))
    x = torch.arange(9.0).view(1, 9, 1, 1)
    assert select_channels(x, config).flatten().tolist() == [6, 7, 8]


@pytest.mark.parametrize("name", ["shiva_t1-3d", "shiva_t2-3d"])
def test_shiva_ignores_the_other_sequences(name: str) -> None:
    network = build(CONFIGS[name]).eval()
    x = image(CONFIGS[name], 16, 16, 16)
    own = SEQUENCES.index(CONFIGS[name].inputs[0].lstrip("-"))
    other = x.clone()
    other[:, [c for c in range(3) if c != own]] += 1
    with torch.no_grad():
        assert torch.equal(network(x), network(other))
        assert not torch.equal(network(x), network(x + 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet"}, "architecture must be one of"),
        ({"architecture": "dynunet"}, "takes no text"),
        ({"inputs": ("T3w",)}, "inputs must be of"),
        ({"inputs": ()}, "inputs must be of"),
        ({"view": "axial"}, "belongs to 2D"),
        ({"dimensions": 2, "view": "oblique"}, "view must be one of"),
        ({"guided_level": 3}, "guided_level"),
        ({"nested_from": 3}, "nested_from"),
        ({"nested_from": -1}, "nested_from"),
        ({"architecture": "dynunet", "text": False}, "no output for the PVS fraction"),
    ],
)
def test_invalid_configs_are_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(NETWORK_3D, **changes)  # type: ignore[arg-type]


def test_dynunet_needs_three_levels() -> None:
    with pytest.raises(ValueError, match="at least 3 levels"):
        build(replace(CONFIGS["dynunet-3d"], widths=(4, 8)))


def test_configs_of_older_files_are_read() -> None:
    text = '{"architecture": "graph_fusion", "widths": [4, 8, 12, 16]}'
    read = NetworkConfig.from_json(text)
    assert read == NetworkConfig(widths=(4, 8, 12, 16), nested_from=0, fluid=False)
    assert (read.inputs, read.nested_from, read.fluid, read.outputs) == (SEQUENCES, 0, False, 1)


# ---- parts ----


def test_unetr_interpolates_its_position_embeddings() -> None:
    network = build(CONFIGS["unetr-2d"]).eval()
    assert isinstance(network, InterpolatedUNETR)
    built = network.net.vit.patch_embedding.position_embeddings
    with torch.no_grad():
        for side in (64, 32, 48, 64):
            assert network(image(CONFIGS["unetr-2d"], side, 32)).shape[2:] == (side, 32)
    assert network.net.vit.patch_embedding.position_embeddings is built
    assert isinstance(built, nn.Parameter)
    # with equal embeddings interpolation changes nothing
    with torch.no_grad():
        built.fill_(0.5)
        x = image(CONFIGS["unetr-2d"], 64, 64)
        plain = network(x)
        network.net.feat_size = (5, 5)  # another grid than that of the 16 embeddings
        with pytest.raises((RuntimeError, ValueError)):
            network(x)
        network.net.feat_size = (4, 4)
        assert torch.equal(network(x), plain)


def test_interpolated_position_embeddings_have_gradients() -> None:
    network = build(CONFIGS["unetr-2d"])
    logits = network(image(CONFIGS["unetr-2d"], 32, 32))[0]
    logits.square().mean().backward()
    gradient = network.net.vit.patch_embedding.position_embeddings.grad  # type: ignore[union-attr]
    assert gradient is not None and gradient.abs().sum() > 0


def test_batch_norms_become_instance_norms_that_accept_one_voxel() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm3d(2), nn.InstanceNorm2d(4, affine=True)))
    use_instance_norms(net)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    norm = net[0]
    assert isinstance(norm, SingleVoxelInstanceNorm2d)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    one = norm(torch.randn(2, 3, 1, 1))
    assert one[:, :, 0, 0].tolist() == [[1, 2, 3]] * 2
    feature = torch.randn(2, 3, 4, 4)
    expected = nn.functional.instance_norm(feature, weight=norm.weight, bias=norm.bias)
    torch.testing.assert_close(norm(feature), expected)


def test_curvilinear_attention_starts_as_identity_with_kernels_along_axes() -> None:
    attention = CurvilinearAttention(3, 16)
    feature = torch.randn(1, 16, 3, 4, 5)
    assert torch.equal(attention(feature), feature)
    assert [line.kernel_size for line in attention.lines] == [(3, 1, 1), (1, 3, 1), (1, 1, 3)]
    with torch.no_grad():
        attention.channel_weight.fill_(1)
    flat = feature[0].flatten(1)
    similarity = (flat @ flat.T / flat.shape[1]).softmax(-1) @ flat
    torch.testing.assert_close(attention(feature)[0].flatten(1), flat + similarity, rtol=1e-4, atol=1e-5)


def test_multiscale_block_has_kernels_of_three_sizes() -> None:
    block = MultiscaleBlock(3, 2, 16)
    assert [branch.kernel_size[0] for branch in block.branches] == list(KERNELS)
    assert sum(branch.out_channels for branch in block.branches) == 16
    assert block(torch.randn(1, 2, 8, 8, 8)).shape == (1, 16, 8, 8, 8)


def test_separate_encoders_keep_sequences_apart_until_they_are_joined() -> None:
    network = build(CONFIGS["separate-3d"])
    x = image(CONFIGS["separate-3d"], 16, 16, 16).requires_grad_()
    first = network.encoders[0][0](x[:, :1])  # type: ignore[index, operator]
    first.sum().backward()
    assert x.grad is not None
    assert x.grad[:, 1:].abs().sum() == 0
    assert len(network.encoders) == 3  # type: ignore[arg-type]


def test_indices_survive_the_checkpoint(tmp_path: Path) -> None:
    """Swin's relative positions reach 2196; float16 would round those above 2048."""
    network = build(CONFIGS["swin_unetr-3d"]).eval()
    checkpoint.save(tmp_path / "swin.safetensors", network)
    loaded = checkpoint.load(tmp_path / "swin.safetensors")
    indices = {key: value for key, value in network.state_dict().items() if not value.is_floating_point()}
    assert indices and max(int(value.max()) for value in indices.values()) > 2048
    for key, value in indices.items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_inference_code_contains_no_name_of_a_model() -> None:
    """The manifest alone decides what runs: inference code contains no name of a model, architecture or system."""
    root = Path(__file__).parents[2]
    names = {*MODELS, *ARCHITECTURES, *(ensemble.name for ensemble in ENSEMBLES)} - {"3d", "2d", "ours"}
    files = [root / "process.py", root / "pvs_model" / "pipeline.py"]
    for package in ("inference", "preprocessing", "batch"):
        files += (root / "pvs_model" / package).glob("*.py")
    assert len(files) > 10
    for path in files:
        constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not constants & names, path
