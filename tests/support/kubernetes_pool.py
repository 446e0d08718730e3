"""A pool on Kubernetes as tests declare it, and an order for one of its pilots."""

from typing import Any

from powermean.contracts.pools import Shape
from server.pools.backend import PilotOrder

NAME = "gpu-0a1b2c3d"
NODE_TOKEN, REDIS_URL = "pmn_very-secret", "redis://:hidden@redis:6379/0"
TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"team": "nlp"}},
    "spec": {
        "containers": [
            {
                "name": "worker",
                "image": "powermean-worker:cuda",
                "env": [{"name": "HF_HOME", "value": "/data/hub"}],
                "resources": {"limits": {"memory": "64Gi"}},
                "volumeMounts": [{"name": "shared", "mountPath": "/data"}],
            }
        ],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "pm-shared"}}],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    },
}


def order(token: str = NODE_TOKEN, gpus: int = 2, limit: int | None = 7200) -> PilotOrder:
    return PilotOrder(
        pilot_id=NAME,
        node_id=NAME,
        environment={"POWERMEAN_SERVER_URL": "http://server:8700", "POWERMEAN_NODE_ID": NAME},
        secrets={"POWERMEAN_NODE_TOKEN": token, "POWERMEAN_REDIS_URL": REDIS_URL},
        shape=Shape(gpus=gpus),
        time_limit_s=limit,
    )
