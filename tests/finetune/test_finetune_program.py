"""finetune as the runner starts it, against a plain loop of torch and transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import AutoModel, AutoTokenizer

from components.core.encoder.checkpoint import load_checkpoint
from components.core.encoder.config import EncoderConfig
from components.core.errors import ActionNeeded, InputError
from components.finetune.component import FinetuneConfig
from tests.finetune.training import finetune, log, records, settings, texts, write_data

pytestmark = pytest.mark.slow

EXAMPLES = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Too few negatives in one record, two answers to one question, passages that repeat."""
    rows = records(EXAMPLES, negatives=3)
    rows[2]["neg_doc"] = rows[2]["neg_doc"][:1]
    rows[4] |= {"question": rows[3]["question"]}
    return write_data(tmp_path_factory.mktemp("data") / "training_data", rows, texts(EXAMPLES))


class PlainLoop:
    """The recipe's training, one text at a time, every use of a passage encoded anew, all examples in every step."""

    def __init__(self, base: Path, config: FinetuneConfig) -> None:
        self.config = config
        self.tokenizer, self.model = AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base)
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups)

    def train(self, rows: list[dict[str, Any]], passages: dict[str, str], steps: int) -> list[tuple[float, float]]:
        """Loss and gradient norm of each step."""
        done = []
        for step in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * (
                    0.01 + 0.99 * (1 + math.cos(math.pi * step / (steps - 1))) / 2
                )
            self.optimizer.zero_grad()
            loss = torch.stack([self.loss(row, rows, passages) for row in rows]).mean()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            self.optimizer.step()
            done.append((loss.item(), norm.item()))
        return done

    def loss(self, row: dict[str, Any], rows: list[dict[str, Any]], passages: dict[str, str]) -> torch.Tensor:
        own = self.listed(row)
        if self.config.in_batch_negatives:
            answers = {r["pos_doc"][0]["id"] for r in rows if r["question"] == row["question"]}
            others = sorted({name for r in rows for name in self.listed(r)} - answers)
            own = [row["pos_doc"][0]["id"], *others]
        query = self.vector("query: " + row["question"], self.config.query_max_length)
        scores = [query @ self.vector("passage: " + passages[name], self.config.passage_max_length) for name in own]
        return -torch.log_softmax(torch.stack(scores) / self.config.temperature, dim=0)[0]

    def listed(self, row: dict[str, Any]) -> list[str]:
        names = [entry["id"] for entry in row["neg_doc"]]
        wanted = self.config.train_n_passages - 1
        return [row["pos_doc"][0]["id"], *(names * wanted)[:wanted]]

    def vector(self, text: str, longest: int) -> torch.Tensor:
        ids = self.tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        hidden = self.model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state
        return nn.functional.normalize(hidden[0].mean(dim=0), dim=0)


@pytest.mark.parametrize("in_batch", [False, True], ids=["recipe's loss", "in-batch negatives"])
def test_training_is_that_of_a_plain_loop(tiny: Path, data: Path, tmp_path: Path, in_batch: bool) -> None:
    rows = records(EXAMPLES, negatives=3)
    rows[2]["neg_doc"] = rows[2]["neg_doc"][:1]
    rows[4] |= {"question": rows[3]["question"]}
    config = settings(tiny, num_epochs=4, lr_warmup_steps=0, in_batch_negatives=in_batch, local_batch_size=EXAMPLES)
    finetune(tmp_path, data, config)
    plain = PlainLoop(tiny, config)
    expected = plain.train(rows, texts(EXAMPLES), steps=4)
    assert [step["loss"] for step in log(tmp_path)] == pytest.approx([loss for loss, _ in expected], rel=1e-4)
    assert [step["grad_norm"] for step in log(tmp_path)] == pytest.approx([norm for _, norm in expected], rel=1e-3)
    found = load_file(tmp_path / "checkpoint" / "model.safetensors")
    base = load_file(tiny / "model.safetensors")
    moved = torch.cat([(found[name] - base[name]).flatten() for name in base])
    wanted = torch.cat([(plain.model.state_dict()[name] - base[name]).flatten() for name in base])
    assert (moved - wanted).norm() < 0.01 * wanted.norm()


def test_micro_batches_do_not_change_the_training(tiny: Path, data: Path, tmp_path: Path) -> None:
    traces = []
    for size in (1, 3, 100):
        finetune(tmp_path / str(size), data, settings(tiny, num_epochs=3, local_batch_size=size))
        traces.append([(step["loss"], step["grad_norm"]) for step in log(tmp_path / str(size))])
    np.testing.assert_allclose(traces[1:], [traces[0]] * 2, rtol=1e-3)


def test_the_seed_decides_everything(tiny: Path, data: Path, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> bytes:
        finetune(tmp_path / name, data, settings(tiny, global_batch_size=2, seed=seed))
        return (tmp_path / name / "checkpoint" / "model.safetensors").read_bytes()

    assert weights("first", 1) == weights("again", 1)
    assert weights("other", 2) != weights("first", 1)


def test_every_step_is_logged(tiny: Path, data: Path, tmp_path: Path) -> None:
    outcome = finetune(tmp_path, data, settings(tiny, num_epochs=2, global_batch_size=4, learning_rate=3e-4))
    lines = log(tmp_path)
    assert [(line["step"], line["epoch"]) for line in lines] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    assert all(set(line) == {"step", "epoch", "loss", "grad_norm", "lr", "tokens_per_second"} for line in lines)
    assert max(line["lr"] for line in lines) == 3e-4
    assert all(line["tokens_per_second"] > 0 and line["grad_norm"] > 0 for line in lines)
    assert outcome.metrics["steps"] == 4 and outcome.metrics["examples"] == EXAMPLES
    assert outcome.metrics["first_loss"] == lines[0]["loss"]


@pytest.mark.parametrize("examples", range(1, 10))
def test_any_number_of_examples_can_be_trained_on(tiny: Path, tmp_path: Path, examples: int) -> None:
    data = write_data(tmp_path / "data", records(examples), texts(examples))
    in_batch = examples % 2 == 0
    outcome = finetune(tmp_path, data, settings(tiny, global_batch_size=4, num_epochs=2, in_batch_negatives=in_batch))
    assert outcome.metrics["steps"] == 2 * math.ceil(examples / 4)
    assert all(math.isfinite(step["loss"]) for step in log(tmp_path))


@pytest.mark.parametrize("ranks", ["2", "4", "8"])
def test_several_processes_are_refused(tiny: Path, data: Path, tmp_path: Path, monkeypatch: Any, ranks: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", ranks)
    with pytest.raises(InputError, match=f"WORLD_SIZE = {ranks}: finetune starts its processes itself"):
        finetune(tmp_path, data, settings(tiny))
    assert not (tmp_path / "checkpoint").exists()


def test_training_that_diverges_saves_nothing(tiny: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ActionNeeded, match=r"loss nan.*nothing was saved") as refused:
        finetune(tmp_path, data, settings(tiny, learning_rate=1e30, lr_warmup_steps=0))
    assert refused.value.exit_code == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["components.finetune.program.load_trainable", "torch.optim.AdamW.step"])
def test_a_model_that_does_not_fit_is_refused_in_one_line(
    place: str, tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is loaded, or when the optimizer first needs its memory."""

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(place, full)
    with pytest.raises(InputError, match="weights, gradients and optimizer do not fit into the memory of cpu"):
        finetune(tmp_path, data, settings(tiny))
    assert not (tmp_path / "checkpoint").exists()


def test_data_mined_for_another_model_is_refused_before_training(tiny: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", records(3), texts(3))
    settings("another/model").encoder().write(data)
    with pytest.raises(InputError, match="mined with base_model"):
        finetune(tmp_path / "work", data, settings(tiny))
    assert not (tmp_path / "work" / "checkpoint").exists()


def test_a_real_model_learns_and_other_libraries_load_it(small_config: EncoderConfig, tmp_path: Path) -> None:
    """Questions that name a part by a word that its passage does not have."""
    words = ["azure", "birch", "copper", "dune", "ember", "fjord", "grove", "heron", "ivory", "jade", "kelp", "lunar"]
    passages = {f"d{n}": f"Part number {n + 100} opens with a key of {n + 3} millimetres." for n in range(12)}
    rows = [
        {
            "question": f"key of the {word} part",
            "pos_doc": [{"id": f"d{n}"}],
            "neg_doc": [{"id": f"d{(n + k) % 12}"} for k in range(1, 5)],
        }
        for n, word in enumerate(words)
    ]
    data = write_data(tmp_path / "data", rows, passages)
    given = {"num_epochs": 10, "learning_rate": 4e-4, "temperature": 0.05, "local_batch_size": 12}
    config = FinetuneConfig(**small_config.model_dump(), **given)
    outcome = finetune(tmp_path, data, config)
    assert outcome.metrics["last_loss"] < 0.3 * outcome.metrics["first_loss"]
    checkpoint = tmp_path / "checkpoint"
    model = SentenceTransformer(str(checkpoint), device="cpu")
    queries = model.encode_query([row["question"] for row in rows])
    documents = model.encode_document(list(passages.values()))
    assert ((queries @ documents.T).argmax(axis=1) == np.arange(12)).mean() > 0.8
    own = load_checkpoint(checkpoint)
    np.testing.assert_allclose(own.encode(list(passages.values()), "passage"), documents, atol=1e-5)


def test_attention_can_be_chosen_and_what_the_machine_lacks_is_refused(tiny: Path, data: Path, tmp_path: Path) -> None:
    for name in ("eager", "sdpa"):
        finetune(tmp_path / name, data, settings(tiny, num_epochs=1, attn_implementation=name))
    eager, sdpa = ([step["loss"] for step in log(tmp_path / name)] for name in ("eager", "sdpa"))
    assert eager == pytest.approx(sdpa, rel=1e-4)
    with pytest.raises(InputError, match="attn_implementation = flash_attention_2 cannot be used"):
        finetune(tmp_path / "flash", data, settings(tiny, attn_implementation="flash_attention_2"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have 8-bit products")
def test_8_bits_are_refused_where_there_are_none(tiny: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="precision = fp8 needs a GPU with 8-bit products"):
        finetune(tmp_path, data, settings(tiny, precision="fp8"))
    assert not list(tmp_path.iterdir())
