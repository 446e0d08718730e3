"""Pilots as Kubernetes Jobs, in a queue of Kueue's if wanted. No real cluster has run this.

The API server is asked eight things, so httpx does it; Kubernetes' own client would bring a thousand models.
What only the worker may know is in a Secret, which the pod mounts and which goes with the Job: it is in no
pod's specification, and in no process's environment.
"""

import copy
import json
import logging
import os
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from powermean.contracts.base import Contract, conflict
from powermean.contracts.pools import Shape
from powermean.setting_files import SUFFIX
from server.pools.backend import PilotOrder, PoolError, Seen
from server.pools.declaration import Pool
from server.pools.kubernetes_objects import Job, JobList, PodList, is_staying, left_over, seen
from server.settings import is_loopback

log = logging.getLogger(__name__)

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SECRETS = "/run/secrets/powermean"
POOL_LABEL, PILOT_LABEL = "powermean-pool", "powermean-pilot"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
KEPT_S = 3600  # a Job that has ended, with its log
MOST_BYTES = 64 << 20  # of an answer
# A pod that was evicted, preempted or lost with its node ends its Job with a reason of its own.
DISRUPTED = {
    "rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
}

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
Answer = TypeVar("Answer", bound=BaseModel)


class RefusedError(PoolError):
    """The API server has not done what was asked."""


class KubernetesSection(Contract):
    """How the API server is asked, and what a pilot's pod looks like."""

    template: dict[str, Any] = Field(
        description="A PodTemplateSpec. Its first container runs the worker: give it an image, and what the "
        "worker needs besides GPUs: volumes, node selector, tolerations, memory."
    )
    namespace: Name | None = Field(None, description="Left out: the server's own, if it runs in the cluster.")
    queue: Name | None = Field(None, description="A LocalQueue of Kueue's in that namespace.")
    gpu_resource: Annotated[str, Field(min_length=1, max_length=300)] = Field(
        "nvidia.com/gpu", description="What the cluster calls its GPUs."
    )
    stop_s: int = Field(
        30, ge=1, le=86_400, description="From SIGTERM to SIGKILL, when a pilot is ended (the pod's grace)."
    )
    api_url: str | None = Field(
        None, description="Of the API server; left out: the cluster that the server runs in."
    )
    token_file: Path = Field(
        ACCOUNT / "token", description="Holds a bearer token; read anew for each request."
    )
    ca_file: Path = Field(ACCOUNT / "ca.crt", description="Who vouches for the API server, in PEM.")
    timeout_s: float = Field(30, gt=0, le=600, description="Longest that a request may take.")

    @field_validator("template")
    @classmethod
    def _has_an_image(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            image = value["spec"]["containers"][0]["image"]
        except (KeyError, IndexError, TypeError):
            image = None
        if not isinstance(image, str) or not image:
            raise ValueError("must have spec.containers[0].image")
        return value

    @model_validator(mode="after")
    def _makes_a_job(self) -> Self:
        order = PilotOrder("gpu-00000000", "gpu-00000000", {}, {}, Shape(gpus=1), None)
        try:
            job_of(order, "gpu", self)
        except (AttributeError, TypeError, ValueError):
            raise conflict(
                ("template",),
                "is no PodTemplateSpec: metadata, labels, volumes, env, volumeMounts, resources or limits is "
                "of another kind, such as null",
                self.template,
            ) from None
        return self

    @field_validator("api_url")
    @classmethod
    def _is_safe(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if not parts.hostname or not (parts.scheme == "https" or is_loopback(parts.hostname)):
                raise ValueError("must start with https://, except on this machine")
        return value


class KubernetesPool(Pool):
    """Nodes from Kubernetes."""

    kind: Literal["kubernetes"]
    kubernetes: KubernetesSection

    @property
    def term_grace_s(self) -> float:
        return self.kubernetes.stop_s

    @property
    def backend(self) -> "KubernetesBackend":
        return KubernetesBackend(self.name, self.kubernetes)


@dataclass(frozen=True)
class KubernetesBackend:
    """One pool of a cluster. A Job has its pilot's name, and so has its Secret."""

    pool: str
    section: KubernetesSection

    def submit(self, order: PilotOrder) -> str:
        # The Secret first: a pod that waits for it would wait for ever if we died in between.
        secrets, jobs = self._in("/api/v1", "secrets"), self._in("/apis/batch/v1", "jobs")
        name, secret = order.pilot_id, secret_of(order, self.pool)
        if self._ask("POST", secrets, secret, known=(409,)).status_code == 409:
            self._ask("PUT", f"{secrets}/{name}", secret)  # this order's token counts, not an earlier one's
        try:
            made = self._ask("POST", jobs, job_of(order, self.pool, self.section), known=(409,))
        except RefusedError:
            if self._ask("GET", f"{jobs}/{name}", known=(404,)).status_code == 404:
                self._remove_secret(name)  # else no Job would ever take it along
            raise
        if made.status_code == 409:
            made = self._ask("GET", f"{jobs}/{name}")
        owner = _read(Job, made).metadata.uid
        try:
            self._ask("PUT", f"{secrets}/{name}", secret_of(order, self.pool, owner))
        except PoolError as error:
            log.warning("pool %s: Secret %s will not go with its Job: %s", self.pool, name, error)
        return name

    def cancel(self, external_id: str) -> None:
        # In the foreground: the Job is listed until none of its pods runs any more.
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        self._ask("DELETE", f"{self._in('/apis/batch/v1', 'jobs')}/{external_id}", body, known=(404, 410))
        self._remove_secret(external_id)  # its Job may not own it

    def why(self, ended: Sequence[Seen]) -> Mapping[str, str]:
        """Jobs and pods say it all."""
        return {}

    def clean(self, pilot_id: str) -> None:
        # Somebody may have removed the Job and kept what it owns.
        self._ask("DELETE", f"{self._in('/api/v1', 'secrets')}/{pilot_id}", known=(404, 410))

    def _remove_secret(self, name: str) -> None:
        try:
            self.clean(name)
        except PoolError as error:
            log.warning("pool %s: Secret %s stays: %s", self.pool, name, error)

    def list(self) -> Sequence[Seen]:
        select = {"labelSelector": f"{POOL_LABEL}={self.pool}"}
        jobs = _read(JobList, self._ask("GET", self._in("/apis/batch/v1", "jobs"), params=select))
        pods = _read(PodList, self._ask("GET", self._in("/api/v1", "pods"), params=select))
        if jobs.metadata.continue_ or pods.metadata.continue_:
            raise PoolError("Kubernetes listed only a part of the pool's Jobs")
        # Of a Job that Kueue has stopped and started again, the pod that stays counts.
        of = {pod.metadata.labels.get(PILOT_LABEL, ""): pod for pod in sorted(pods.items, key=is_staying)}
        found = [seen(job, of.pop(job.metadata.name, None), self.section.queue) for job in jobs.items]
        return found + [left_over(pilot_id, pod) for pilot_id, pod in of.items() if pilot_id]

    def _in(self, group: str, resource: str) -> str:
        return f"{group}/namespaces/{self.section.namespace or _own_namespace()}/{resource}"

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        known: Sequence[int] = (),
    ) -> httpx.Response:
        """The answer, if it is a good one or has a status in `known`. Raises PoolError."""
        section = self.section
        headers = {"Authorization": f"Bearer {_token_of(section.token_file)}", "Accept": "application/json"}
        url = f"{section.api_url or _own_api()}{path}"
        end = time.monotonic() + section.timeout_s
        try:
            with (
                httpx.Client(
                    verify=_trust(section.ca_file, url), timeout=section.timeout_s, trust_env=False
                ) as client,
                client.stream(method, url, json=body, params=params, headers=headers) as response,
            ):
                content = bytearray()
                for chunk in response.iter_bytes():  # httpx's own limit is for each piece
                    content += chunk
                    if time.monotonic() > end:
                        raise httpx.ReadTimeout("")
                    if len(content) > MOST_BYTES:
                        raise PoolError(f"Kubernetes answered more than {MOST_BYTES >> 20} MiB")
        except httpx.TimeoutException:
            raise PoolError(f"Kubernetes did not answer within {section.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise PoolError(
                f"Kubernetes at {url.partition('/api')[0]}: {error or type(error).__name__}"
            ) from error
        text = bytes(content).replace(rb"\u0000", rb"\ufffd")  # no database holds NUL
        answer = httpx.Response(response.status_code, content=text)
        if answer.is_success or answer.status_code in known:
            return answer
        kind = RefusedError if answer.is_client_error else PoolError
        raise kind(_refusal(answer, section))


def job_of(order: PilotOrder, pool: str, section: KubernetesSection) -> dict[str, Any]:
    """The Job that is a pilot. It runs once: whatever ends its pod ends it."""
    labels = {
        "app.kubernetes.io/name": "powermean",
        "app.kubernetes.io/component": "pilot",
        POOL_LABEL: pool,
        PILOT_LABEL: order.pilot_id,
    }
    queue = {QUEUE_LABEL: section.queue} if section.queue else {}
    limit = {} if order.time_limit_s is None else {"activeDeadlineSeconds": order.time_limit_s}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": order.pilot_id, "labels": labels | queue},
        "spec": {
            **limit,
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "ttlSecondsAfterFinished": KEPT_S,
            "podFailurePolicy": DISRUPTED,
            "template": _pod(order, section, labels),
        },
    }


def _pod(order: PilotOrder, section: KubernetesSection, labels: Mapping[str, str]) -> dict[str, Any]:
    """The operator's template with what makes it a pilot."""
    template = copy.deepcopy(section.template)
    template.setdefault("metadata", {}).setdefault("labels", {}).update(labels)
    spec: dict[str, Any] = template["spec"]
    spec["restartPolicy"] = "Never"
    spec["terminationGracePeriodSeconds"] = section.stop_s
    spec.setdefault("automountServiceAccountToken", False)
    spec.setdefault("enableServiceLinks", False)  # they would set POWERMEAN_... variables of their own
    spec.setdefault("volumes", []).append(
        {"name": "powermean-secrets", "secret": {"secretName": order.pilot_id}}
    )
    container: dict[str, Any] = spec["containers"][0]
    container.setdefault("name", "worker")
    container.setdefault("command", ["python", "-m", "worker"])
    given = {**order.environment, **{f"{name}{SUFFIX}": f"{SECRETS}/{name}" for name in order.secrets}}
    container.setdefault("env", []).extend({"name": name, "value": value} for name, value in given.items())
    mount = {"name": "powermean-secrets", "mountPath": SECRETS, "readOnly": True}
    container.setdefault("volumeMounts", []).append(mount)
    if order.shape.gpus:
        limits = container.setdefault("resources", {}).setdefault("limits", {})
        limits[section.gpu_resource] = order.shape.gpus
    return template


def secret_of(order: PilotOrder, pool: str, job_uid: str | None = None) -> dict[str, Any]:
    """What only the worker may know; with the Job's uid it is removed with the Job."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": order.pilot_id, "uid": job_uid}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": order.pilot_id,
            "labels": {"app.kubernetes.io/name": "powermean", POOL_LABEL: pool},
            "ownerReferences": [owner] if job_uid else [],
        },
        "stringData": dict(order.secrets),
    }


def _read(kind: type[Answer], answer: httpx.Response) -> Answer:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the answer"
        raise PoolError(f"Kubernetes answered no {kind.__name__}: {place}: {first['msg']}") from error


def _refusal(answer: httpx.Response, section: KubernetesSection) -> str:
    """In the API server's own words, with what to do about it."""
    try:
        said = str(json.loads(answer.content)["message"])
    except (ValueError, KeyError, TypeError):
        said = answer.content[:200].decode(errors="replace").strip() or "nothing more"
    remedy = {
        401: f"; the token in {section.token_file} is not valid there",
        403: "; give the server's service account the Role of the Helm chart",
    }.get(answer.status_code, "")
    said = said[:300].encode(errors="replace").decode()  # what is no text can't be told
    return f"Kubernetes: {answer.status_code}, {said}{remedy}"


def _own_api() -> str:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise PoolError("the server does not run in a Kubernetes cluster: set kubernetes.api_url")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _own_namespace() -> str:
    return _text_of(ACCOUNT / "namespace", "; or set kubernetes.namespace")


def _token_of(file: Path) -> str:
    """The bearer token; an error never quotes it, for every user sees it."""
    token = _text_of(file)
    if not re.fullmatch(r"[!-~]+", token):
        raise PoolError(f"{file}: holds no bearer token, which is one word of ASCII")
    return token


def _text_of(file: Path, remedy: str = "") -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not text"
        raise PoolError(f"{file}: {why}{remedy}") from error


def _trust(ca_file: Path, url: str) -> ssl.SSLContext | bool:
    if not url.startswith("https:"):
        return False
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise PoolError(f"{ca_file}: no certificates can be read from it: {error}") from error
