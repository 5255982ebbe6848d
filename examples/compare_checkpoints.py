"""Somebody else's pipeline: the component eval alone judges a checkpoint that was trained elsewhere against another."""

from pathlib import Path

from kfp import compiler, components, dsl, kubernetes

COMPONENTS = Path(__file__).resolve().parents[1] / "components"
evaluate = components.load_component_from_file(str(COMPONENTS / "eval" / "component.yaml"))


@dsl.pipeline(name="compare-checkpoints", description="Two checkpoints on one test set.")
def compare_checkpoints(challenger_uri: str, champion_uri: str, eval_data_uri: str) -> None:
    challenger = dsl.importer(artifact_uri=challenger_uri, artifact_class=dsl.Model, reimport=True).output
    champion = dsl.importer(artifact_uri=champion_uri, artifact_class=dsl.Model, reimport=True).output
    eval_data = dsl.importer(artifact_uri=eval_data_uri, artifact_class=dsl.Dataset, reimport=True).output
    task = evaluate(
        checkpoint=challenger,
        champion=champion,
        eval_data=eval_data,
        min_gain=-1.0,
        overrides={"eval_bm25": False, "min_eval_queries": 1},
    )
    task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit("1").set_memory_limit("64Gi")
    kubernetes.add_node_selector(task, "nvidia.com/gpu.product", "NVIDIA-A100-SXM4-80GB")
    kubernetes.set_security_context(task, run_as_non_root=True)


if __name__ == "__main__":
    compiler.Compiler().compile(compare_checkpoints, "compare_checkpoints.yaml")
