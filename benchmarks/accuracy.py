"""How far bfloat16 is from float32, ours and transformers' own: ``python -m benchmarks.accuracy [--tiny]``.

The reference is transformers in float32 on padded texts, from the same weights, which are bfloat16.
Gradients are those of the fine-tuning loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel

from benchmarks import report
from benchmarks.batch import Batch, explicit_loss, make_batch
from benchmarks.peers import padded
from benchmarks.workload import LLAMA_1B, TINY, llama
from components.core.encoder.packed.encoder import PackedEncoder
from components.core.encoder.packed.packing import pack_in_bins

Vectors = Callable[[LlamaModel], Tensor]


def measure(model: LlamaModel, batch: Batch, vectors_of: Vectors) -> tuple[Tensor, dict[str, Tensor]]:
    """Vectors of the batch's texts, and the gradient of every weight, both on the CPU in float32."""
    vectors = vectors_of(model)
    chosen = vectors[torch.tensor(batch.groups, device=vectors.device)]
    explicit_loss(chosen).backward()
    gradients = {name: weight.grad.float().cpu() for name, weight in model.named_parameters()}
    return vectors.detach().cpu(), gradients


def compare(
    name: str, found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]
) -> dict[str, Any]:
    """Worst vector, and the error of all gradients together and of the worst weight's."""
    cosine = nn.functional.cosine_similarity(found[0], expected[0], dim=-1).min().item()
    off = {key: (found[1][key] - value).norm() for key, value in expected[1].items()}
    worst = max(off, key=lambda key: float(off[key] / expected[1][key].norm()))
    norm = torch.stack([value.norm() for value in expected[1].values()]).norm()
    return {
        "computed by": name,
        "least cosine of vectors": round(cosine, 6),
        "relative error of the gradient": f"{float(torch.stack(list(off.values())).norm() / norm):.2e}",
        "of the worst weight's": f"{float(off[worst] / expected[1][worst].norm()):.2e} ({worst})",
    }


def main() -> None:
    args = report.arguments("bfloat16 against float32.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = TINY if args.tiny else LLAMA_1B
    batch = make_batch(shape, 8, distinct=True)

    def packed_vectors(model: LlamaModel, *, fp8: bool = False) -> Tensor:
        packed = PackedEncoder(model, "avg", fp8=fp8)
        parts = pack_in_bins(batch.ids, 4096, device)
        back = torch.tensor([row for part in parts for row in part.rows]).argsort()
        return torch.cat([packed(part) for part in parts])[back.to(device)]

    expected = measure(llama(shape, device, torch.bfloat16).float(), batch, lambda model: padded(model, batch.ids))
    rows = []
    for name, dtype, vectors_of in (
        ("ours, float32", torch.float32, packed_vectors),
        ("transformers, bfloat16, padded", torch.bfloat16, lambda model: padded(model, batch.ids)),
        ("ours, bfloat16", torch.bfloat16, packed_vectors),
        ("ours, fp8", torch.bfloat16, lambda model: packed_vectors(model, fp8=True)),
    ):
        rows.append(compare(name, measure(llama(shape, device, torch.bfloat16).to(dtype), batch, vectors_of), expected))
    report.publish("bfloat16 against float32", rows, args)


if __name__ == "__main__":
    main()
