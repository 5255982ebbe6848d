"""deploy: serve the exported model and prove that it is the one that answers."""

from __future__ import annotations

from typing import Literal

from components.core.settings import Settings, setting
from components.core.stage import Node, Stage

STATE_DIR = "~/.local/state/nemotron-embed"


class DeployConfig(Settings):
    """Settings of deploy. Names and defaults are the recipe's where it has them."""

    target: Literal["local"] = setting("local", "Where to serve: `local` starts the ONNX server on this machine")
    served_model_name: str = setting(
        "nemotron-embed", "Name that clients give as `model`", form=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
    )
    host: str = setting("127.0.0.1", "Address that the local server listens on")
    host_port: int = setting(8000, "Port of the service; 0 takes a free one", ge=0, le=65535)
    detach: bool = setting(True, "Leave the local server running when the stage ends")
    health_check_timeout: float = setting(120.0, "Seconds until the service must be ready", gt=0)
    state_dir: str = setting(STATE_DIR, "Where the local service keeps its releases, log and process id", min_length=1)


STAGE = Stage(
    name="deploy",
    summary="Serve the exported model and verify it",
    config=DeployConfig,
    inputs=("deploy_bundle",),
    by_uri=("exported_model",),
    outputs=("deployment",),
    results={"endpoint": str},
    image="cpu",
    node=Node(cpu="2", memory="4Gi"),
    cache=False,
    retries=0,
)
