"""Somebody else's pipeline: sdg and prep make a test set from documents, for a search engine that is there already."""

from pathlib import Path

from kfp import compiler, components, dsl, kubernetes

COMPONENTS = Path(__file__).resolve().parents[1] / "components"
generate = components.load_component_from_file(str(COMPONENTS / "sdg" / "component.yaml"))
prepare = components.load_component_from_file(str(COMPONENTS / "prep" / "component.yaml"))


@dsl.pipeline(name="questions-for-search", description="Questions about documents, with the passages that answer them.")
def questions_for_search(corpus_uri: str, ledger_uri: str) -> None:
    corpus = dsl.importer(artifact_uri=corpus_uri, artifact_class=dsl.Dataset, reimport=True).output
    questions = generate(corpus=corpus, ledger_uri=ledger_uri, overrides={"num_pairs": 3})
    kubernetes.use_secret_as_env(
        questions, secret_name="nvidia-api-key", secret_key_to_env={"NVIDIA_API_KEY": "NVIDIA_API_KEY"}
    )
    test_set = prepare(qa_pairs=questions.outputs["qa_pairs"], overrides={"train_ratio": 0.1, "test_ratio": 0.9})
    test_set.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit("1")
    for task in (questions, test_set):
        kubernetes.set_security_context(task, run_as_non_root=True)


if __name__ == "__main__":
    compiler.Compiler().compile(questions_for_search, "questions_for_search.yaml")
