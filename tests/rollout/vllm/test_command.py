"""The command that vLLM is started by."""

from pathlib import Path

from rollout.vllm.command import VllmOptions, server_command, server_environment


def test_gpus_and_sleep_are_flags_of_vllms(tmp_path: Path) -> None:
    command = server_command(VllmOptions(tmp_path, "bfloat16", tensor_parallel=4, sleep=True), tmp_path)
    assert command[command.index("--tensor-parallel-size") + 1] == "4"
    assert "--enable-sleep-mode" in command
    plain = server_command(VllmOptions(tmp_path, "bfloat16"), tmp_path)
    assert not {"--tensor-parallel-size", "--enable-sleep-mode"} & set(plain)


def test_vllm_is_started_with_the_back_end_of_the_channel(tmp_path: Path) -> None:
    for method, back_end in (("gloo", "powermean_gloo"), ("nccl", "nccl"), ("ipc", "ipc")):
        options = VllmOptions(tmp_path, "float32", transfer=method)  # type: ignore[arg-type]
        command = server_command(options, tmp_path)
        assert command[command.index("--weight-transfer-config") + 1] == f'{{"backend": "{back_end}"}}'
        assert ("VLLM_ALLOW_INSECURE_SERIALIZATION" in server_environment(options, tmp_path)) == (
            method == "ipc"
        )
    assert "--weight-transfer-config" not in server_command(VllmOptions(tmp_path, "float32"), tmp_path)
