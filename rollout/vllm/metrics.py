"""The vLLM metrics that the rollout service passes on."""

from rollout.engine import EngineError
from rollout.vllm.server import VllmServer

PASSED_ON = frozenset(
    {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",  # at 1, completions are preempted and recomputed
        "vllm:num_preemptions",
        "vllm:generation_tokens",
        "vllm:prompt_tokens",
        "vllm:prefix_cache_queries",
        "vllm:prefix_cache_hits",
        "vllm:time_to_first_token_seconds",
        "vllm:inter_token_latency_seconds",
        "vllm:rl_weight_update_operation_duration_seconds",
    }
)
_HELP = "# HELP "


def passed_on(text: str) -> str:
    """The families of PASSED_ON in Prometheus text; each starts with its HELP line."""
    lines, wanted = [], False
    for line in text.splitlines():
        if line.startswith(_HELP):
            name = line.removeprefix(_HELP).partition(" ")[0]
            wanted = name.removesuffix("_total") in PASSED_ON
        if wanted:
            lines.append(line + "\n")
    return "".join(lines)


def vllms_own(server: VllmServer) -> str:
    """These metrics of a server; empty while it is down."""
    try:
        return passed_on(server.text("count", "/metrics"))
    except EngineError:
        return ""
