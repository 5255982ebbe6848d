"""What only a GPU shows: packed passes in bfloat16, its memory, its random generator, the fused optimizer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from components.core.encoder.bidirectional import LlamaBidirectionalConfig, LlamaBidirectionalModel
from components.core.encoder.checkpoint import load_checkpoint, save_checkpoint
from components.core.encoder.config import EncoderConfig
from components.core.encoder.model import Encoder
from components.finetune.component import FinetuneConfig
from tests.finetune.test_resume import Stopped, stop_at_step
from tests.finetune.test_validation import VAL, by_formula, write_val
from tests.finetune.training import finetune, log, records, settings, texts, write_data
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
EXAMPLES = 48
EIGHT_BITS = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
COURSE = {"global_batch_size": 8, "num_epochs": 2, "val_every_steps": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bidirectional Llama of 4 layers with heads of 64, as flash attention takes them; it needs no package's weights.

    Machines with GPUs are often cut off from hubs and indexes.
    """
    torch.manual_seed(0)
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=2000, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    words.train_from_iterator([*texts(EXAMPLES).values(), *(r["question"] for r in records(EXAMPLES))], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    architecture = LlamaBidirectionalConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.05, **sizes
    )
    directory = tmp_path_factory.mktemp("base")
    save_checkpoint(Encoder(LlamaBidirectionalModel(architecture), tokenizer, EncoderConfig()), directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_data(tmp_path_factory.mktemp("data") / "data", records(EXAMPLES), texts(EXAMPLES))
    return write_val(directory, VAL)


def losses(work: Path) -> list[float]:
    return [step["loss"] for step in log(work)]


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="recipe's loss"),
        pytest.param({"in_batch_negatives": True, "local_batch_size": 4}, id="in-batch"),
        pytest.param(
            {"precision": "fp8"}, id="fp8", marks=pytest.mark.skipif(not EIGHT_BITS, reason="needs 8-bit products")
        ),
    ],
)
def test_a_stopped_run_ends_with_the_same_bits(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    whole, again = _whole_and_stopped(settings(base, **COURSE, **given), data, tmp_path, monkeypatch)
    assert losses(again) == losses(whole)
    mine, theirs = (work / "checkpoint" / "model.safetensors" for work in (again, whole))
    assert mine.read_bytes() == theirs.read_bytes()


def test_a_stopped_run_of_lora_continues_on_the_same_course(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To rounding: LoRA runs transformers' own layers."""
    whole, again = _whole_and_stopped(settings(base, **COURSE, lora_rank=4), data, tmp_path, monkeypatch)
    assert losses(again) == pytest.approx(losses(whole), rel=2e-2)
    mine, theirs = (load_file(work / "checkpoint" / "model.safetensors") for work in (again, whole))
    start = load_file(base / "model.safetensors")
    apart = sum(float((mine[n].float() - theirs[n].float()).square().sum()) for n in mine) ** 0.5
    moved = sum(float((theirs[n].float() - start[n].float()).square().sum()) for n in mine) ** 0.5
    assert apart < 0.3 * moved


def _whole_and_stopped(
    config: FinetuneConfig, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """Where a run left its results, and where one did that was stopped at step 8 and went on from step 6."""
    whole, again = folder / "whole", folder / "again"
    finetune(whole, data, config)
    kept = config.model_copy(update={"checkpoint_uri": str(folder / "states"), "checkpoint_every_steps": 3})
    with monkeypatch.context() as patch:
        stop_at_step(patch, 8, Stopped())
        with pytest.raises(Stopped):
            finetune(again, data, kept)
    assert finetune(again, data, kept).metrics["resumed_at_step"] == 6
    return whole, again


def test_real_memory_that_runs_out_halves_the_passes(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every passage of the batch is long: all at once they need more than is left to the process."""
    long = {name: " ".join([text] * 60) for name, text in texts(EXAMPLES).items()}
    data = write_data(tmp_path / "long", records(EXAMPLES), long)
    given: dict[str, Any] = {"global_batch_size": EXAMPLES, "num_epochs": 2, "passage_max_length": 512}
    finetune(tmp_path / "small", data, settings(base, **given, packed_batch_tokens=2048))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    finetune(tmp_path / "free", data, settings(base, **given, packed_batch_tokens=1_000_000))
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total)
    try:
        finetune(tmp_path / "short", data, settings(base, **given, packed_batch_tokens=1_000_000))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory; repeated with passes of" in caplog.text
    assert losses(tmp_path / "short") == pytest.approx(losses(tmp_path / "small"), rel=2e-2)


def test_the_val_split_is_measured_with_the_vectors_that_are_published(base: Path, data: Path, tmp_path: Path) -> None:
    """bfloat16 may swap neighbours: near, not equal."""
    outcome = finetune(tmp_path, data, settings(base, global_batch_size=8, val_every_steps=2))
    assert by_formula(tmp_path / "checkpoint", EXAMPLES) == pytest.approx(
        outcome.metrics["best_val_ndcg_at_10"], abs=0.15
    )


def test_lora_and_short_vectors_learn(base: Path, data: Path, tmp_path: Path) -> None:
    config = settings(base, lora_rank=8, matryoshka_dimensions=[64], num_epochs=6, in_batch_negatives=True)
    finetune(tmp_path, data, config.model_copy(update={"learning_rate": 5e-3, "global_batch_size": 16}))
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    assert np.isfinite(load_checkpoint(tmp_path / "checkpoint").encode(["a text"], "query")).all()


@pytest.mark.parametrize("steps", [0, 3], ids=["while starting", "while training"])
def test_sigterm_ends_with_75(base: Path, data: Path, tmp_path: Path, steps: int) -> None:
    given = [f"base_model={base}", "global_batch_size=4", "num_epochs=500", f"checkpoint_uri={tmp_path / 'states'}"]
    argv = [sys.executable, "-m", "components", "finetune", "--training-data", str(data), "--work", str(tmp_path / "w")]
    process = subprocess.Popen([*argv, *given, "val_every_steps=null"], stderr=subprocess.PIPE, text=True)
    lines = tmp_path / "w" / "checkpoint.partial" / "training.jsonl"
    while process.poll() is None and not (lines.exists() and lines.read_text().count("\n") >= steps):
        time.sleep(0.05)
    time.sleep(0 if steps else 1.5)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=LIMIT_SECONDS)[1]
    assert process.returncode == 75, said
    assert "Traceback" not in said
    saved = len(list((tmp_path / "states").glob("*/step-*/manifest.json")))
    assert saved == (0 if "after step 0" in said else 1)
