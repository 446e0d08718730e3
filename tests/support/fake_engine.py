"""A rollout engine inside the test's own process: the same calls as rollout.client.RolloutClient."""

import hashlib
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from powermean.contracts.rollout import (
    Completion,
    GenerateRequest,
    GenerateResponse,
    HoldRequest,
    PublishMethod,
    PublishRequest,
    VersionSpan,
)
from rollout.client import EngineRefusedError
from rollout.shared_weights import mapped, replace_weights


class FakeEngine:
    """Samples all completions together from its own copy of the model, which a publish replaces."""

    methods: tuple[PublishMethod, ...] = ("store", "shm")

    def __init__(self, folder: Path, shared_memory: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.version = 0
        self.published: list[PublishRequest] = []
        self._shared_memory = shared_memory

    def publish(self, request: PublishRequest, timeout_s: float) -> None:
        assert request.version > self.version or self.version == 0
        assert request.adapter is None
        for file in request.files:
            path = self._shared_memory / file.uri.removeprefix("shm:")
            assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
            missing = self.model.load_state_dict(load_file(path), strict=False)
            assert not missing.unexpected_keys
        self.version = request.version
        self.published.append(request)

    def close(self) -> None:
        """Nothing is ever in flight when training ends."""

    @torch.no_grad()
    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        """All prompts must have the same number of tokens."""
        sampling = request.sampling
        chance = torch.Generator().manual_seed(sampling.seed or 0)
        ids = torch.tensor(request.prompts).repeat_interleave(request.n, 0)
        start, log_probs = ids.shape[1], torch.zeros(len(ids), 0)
        ends = [-1] * len(ids)  # number of tokens of each completion, once it is over
        while ids.shape[1] < start + sampling.max_new_tokens and min(ends) < 0:
            logits = self.model(input_ids=ids).logits[:, -1] / (sampling.temperature or 1.0)
            log_softmax = logits.log_softmax(-1)
            chosen = log_softmax.argmax(-1, keepdim=True)
            if sampling.temperature:
                chosen = torch.multinomial(log_softmax.exp(), 1, generator=chance)
            ids = torch.cat([ids, chosen], 1)
            log_probs = torch.cat([log_probs, log_softmax.gather(1, chosen)], 1)
            for row, made in enumerate(ids[:, start:].tolist()):
                if ends[row] < 0 and self._over(made, sampling.stop):
                    ends[row] = len(made)
        rows = [
            self._completion(ids[row, start:].tolist(), log_probs[row].tolist(), ends[row])
            for row in range(len(ids))
        ]
        groups = zip(*[iter(rows)] * request.n, strict=True)
        return GenerateResponse(completions=tuple(groups))

    def _over(self, made: list[int], stops: tuple[str, ...]) -> bool:
        text = self.tokenizer.decode(made, skip_special_tokens=True)
        return made[-1] == self.tokenizer.eos_token_id or any(stop in text for stop in stops)

    def _completion(self, tokens: list[int], log_probs: list[float], end: int) -> Completion:
        length = len(tokens) if end < 0 else end
        return Completion(
            token_ids=tuple(tokens[:length]),
            logprobs=tuple(log_probs[:length]),
            finish_reason="length" if end < 0 else "stop",
            weight_versions=(VersionSpan(version=self.version, start=0, end=length),),
        )


class InPlaceEngine(FakeEngine):
    """Samples from the trainer's own weights once they are published in place, and not while they change."""

    methods = ("store", "shm", "in_place")
    held: int | None = None  # until this version is published

    def publish(self, request: PublishRequest, timeout_s: float) -> None:
        if request.method != "in_place":
            super().publish(request, timeout_s)
            return
        assert self.held in (None, request.version)
        assert request.memory is not None
        state = self.model.state_dict(keep_vars=True)
        replace_weights(state, mapped(self._shared_memory / request.memory).items())
        self.version, self.held = request.version, None
        self.published.append(request)

    def hold(self, request: HoldRequest, timeout_s: float) -> None:
        assert request.version == self.version + 1
        self.held = request.version

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        if self.held is not None:
            raise EngineRefusedError(503, "weights_incomplete", "the trainer is changing the weights")
        return super().generate(request, timeout_s)


class FakeAdapterEngine(FakeEngine):
    """Takes LoRA adapters, as a shared engine does; before the first one it completes nothing."""

    def __init__(self, folder: Path, shared_memory: Path) -> None:
        super().__init__(folder, shared_memory)
        self.version = -1

    def publish(self, request: PublishRequest, timeout_s: float) -> None:
        assert request.version > self.version
        assert request.adapter is not None
        if not isinstance(self.model, PeftModel):
            config = LoraConfig(
                r=request.adapter.rank,
                lora_alpha=request.adapter.alpha,  # type: ignore[arg-type]
                target_modules=list(request.adapter.target_modules),
            )
            self.model = get_peft_model(self.model, config).eval()
        (file,) = request.files
        path = self._shared_memory / file.uri.removeprefix("shm:")
        found = set_peft_model_state_dict(self.model, load_file(path))
        assert not found.unexpected_keys
        assert not [name for name in found.missing_keys if "lora_" in name]
        self.version = request.version
        self.published.append(request)

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        if self.version < 0:
            raise EngineRefusedError(409, "adapter_missing", "the job has no adapter here")
        return super().generate(request, timeout_s)
