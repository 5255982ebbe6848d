"""The recipe's engine, Data Designer, against the same server: run by a Python that has ``data-designer`` installed.

``python benchmarks/generation_peer.py URL RECORDS`` asks one question for each record, 64 in flight.
"""

from __future__ import annotations

import os
import sys
import tempfile


def main(url: str, records: int) -> None:
    os.environ.update(NEMO_TELEMETRY_ENABLED="false", PEER_KEY="none", HOME=tempfile.mkdtemp())
    import data_designer.config as dd  # noqa: PLC0415 -- reads HOME when it is imported
    from data_designer.interface import DataDesigner  # noqa: PLC0415

    provider = dd.ModelProvider(name="local", endpoint=url, provider_type="openai", api_key="PEER_KEY")
    parameters = dd.ChatCompletionInferenceParams(temperature=0.6, top_p=0.95, max_parallel_requests=64, timeout=60)
    model = dd.ModelConfig(alias="m", model="m", provider="local", inference_parameters=parameters)
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    number = {"name": "number", "sampler_type": dd.SamplerType.UUID, "params": dd.UUIDSamplerParams()}
    builder.add_column(dd.SamplerColumnConfig(**number))
    prompt = "Document {{ number }}. " + "A text about a machine. " * 20
    builder.add_column(dd.LLMTextColumnConfig(name="answer", prompt=prompt, model_alias="m"))
    DataDesigner(artifact_path=tempfile.mkdtemp(), model_providers=[provider]).create(builder, num_records=records)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
