"""A rollout engine inside the test's own process: the same calls as rollout.client.RolloutClient."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from powermean.contracts.rollout import (
    Completion,
    GenerateRequest,
    GenerateResponse,
    PublishRequest,
    VersionSpan,
)


class EngineDouble:
    """Samples token by token from its own copy of the model, which a publish replaces."""

    def __init__(self, folder: Path, shared_memory: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.version = 0
        self.published: list[PublishRequest] = []
        self._shared_memory = shared_memory

    def publish(self, request: PublishRequest, timeout_s: float) -> None:
        assert request.version > self.version
        for file in request.files:
            path = self._shared_memory / file.uri.removeprefix("shm:")
            assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
            missing = self.model.load_state_dict(load_file(path), strict=False)
            assert not missing.unexpected_keys
        self.version = request.version
        self.published.append(request)

    @torch.no_grad()
    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        chance = torch.Generator().manual_seed(request.sampling.seed or 0)
        completions = tuple(
            tuple(self._complete(prompt, request.sampling, chance) for _ in range(request.n))
            for prompt in request.prompts
        )
        return GenerateResponse(completions=completions, seconds=0.0)

    def _complete(self, prompt: tuple[int, ...], sampling: Any, chance: torch.Generator) -> Completion:
        ids, log_probs, ended = list(prompt), [], False
        while len(log_probs) < sampling.max_new_tokens and not ended:
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1]
            log_softmax = (logits / (sampling.temperature or 1.0)).log_softmax(-1)
            token = int(log_softmax.argmax())
            if sampling.temperature:
                token = int(torch.multinomial(log_softmax.exp(), 1, generator=chance))
            ids.append(token)
            log_probs.append(float(log_softmax[token]))
            text = self.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
            ended = token == self.tokenizer.eos_token_id or any(stop in text for stop in sampling.stop)
        made = ids[len(prompt) :]
        return Completion(
            token_ids=tuple(made),
            logprobs=tuple(log_probs),
            finish_reason="stop" if ended else "length",
            weight_versions=(VersionSpan(version=self.version, start=0, end=len(made)),),
        )
