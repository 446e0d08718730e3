"""The command line of the rollout service, and what its client drags in."""

import subprocess
import sys

import pytest

from rollout.settings import parse_settings

NEEDED = ["--model", "m", "--job-id", "job-1", "--public-key", "k.pub"]


def test_the_nodes_command_line_is_understood() -> None:
    flags = (
        "--engine transformers --model /m --dtype bfloat16 --device cuda --job-id job-1 --attempt 3 "
        "--public-key /k.pub --artefacts-url file:///a --host 127.0.0.1 --port 0 --ready-file /r.json "
        "--max-model-len 512"
    )
    settings = parse_settings(flags.split())
    assert (settings.attempt, settings.dtype, settings.max_model_len) == (3, "bfloat16", 512)
    assert str(settings.ready_file) == "/r.json"
    assert parse_settings(NEEDED).host == "127.0.0.1"
    assert parse_settings(NEEDED).batch_tokens < settings.batch_tokens
    assert parse_settings([*NEEDED, "--max-batch-tokens", "7"]).batch_tokens == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "m", "--job-id", "j"], "--public-key"),
        ([*NEEDED, "--attempt", "0"], "--attempt: "),
        ([*NEEDED, "--device", "tpu"], "--device: "),
        ([*NEEDED, "--transfer", "gloo"], "--transfer: "),
        ([*NEEDED, "--max-batch-tokens", "many"], "--max-batch-tokens: "),
        ([*NEEDED, "--host", "0.0.0.0"], "--allowed-host"),
        ([*NEEDED, "--allowed-host", "*"], "must name a host"),
        ([*NEEDED, "--surprise"], "--surprise"),
        (["--model", "m", "--public-key", "k"], "--job-id is needed"),
        (["--model", "m", "--public-key", "k", "--engine", "vllm"], "--max-adapters of at least 1"),
        (["--model", "m", "--public-key", "k", "--max-adapters", "2"], "--engine vllm"),
        ([*NEEDED, "--engine", "transformers", "--max-adapters", "1"], "uses merged weights"),
        ([*NEEDED, "--max-lora-rank", "513"], "--max-lora-rank: "),
    ],
)
def test_a_wrong_flag_is_named(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_settings(flags)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_without_a_job_the_service_is_shared() -> None:
    settings = parse_settings(
        ["--model", "m", "--public-key", "k", "--engine", "vllm", "--max-adapters", "2", "--jobs-file", "j"]
    )
    assert (settings.job_id, settings.max_adapters, str(settings.jobs_file)) == (None, 2, "j")
    private = parse_settings([*NEEDED, "--max-adapters", "1", "--max-lora-rank", "32"])
    assert (private.job_id, private.engine, private.max_lora_rank) == ("job-1", "auto", 32)


def test_allowed_hosts_add_to_loopback() -> None:
    settings = parse_settings(
        [*NEEDED, "--host", "0.0.0.0", "--allowed-host", "Node-1", "--allowed-host", "n2"]
    )
    assert settings.hosts == {"127.0.0.1", "localhost", "[::1]", "node-1", "n2"}


@pytest.mark.slow
def test_the_client_needs_no_engine_and_the_service_in_front_of_vllm_no_torch() -> None:
    script = (
        "import sys, rollout.client\n"
        "assert not {'torch', 'transformers', 'fastapi', 'rollout.engine'} & set(sys.modules)\n"
        "import rollout.__main__\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
