"""The transformers engine: any Hugging Face causal model, on a CPU or one GPU."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from powermean.contracts.rollout import (
    ChannelRequest,
    Completion,
    EngineState,
    GenerateRequest,
    GenerateResponse,
    HoldRequest,
    PublishRequest,
    VersionSpan,
)
from powermean.end_tokens import end_tokens
from powermean.engine_selection import context_length
from rollout.counting import Finished, nobody
from rollout.engine import EngineError, Fence, adapters_off, check_method, check_prompts
from rollout.shared_weights import float_types, mapped, replace_weights
from rollout.transformers.attention import decoding_attention
from rollout.transformers.checks import agrees, is_plain
from rollout.transformers.decoding import Decoder, Sampled, sample_batch
from rollout.transformers.prefill import Model, Prompt
from rollout.transformers.slot_decoder import SlotDecoder
from rollout.transformers.slots import Slots
from rollout.transformers.stopping import Detokenizer, Stopping
from rollout.transformers.tree_decoder import TreeDecoder
from rollout.weights import WeightSource

log = logging.getLogger(__name__)

NAME = "transformers"
DEFAULT_CONTEXT = 2048  # of a model whose config names none


@dataclass(frozen=True)
class Limits:
    """What bounds memory: prompt and completion of one row, and of all rows that are sampled together."""

    max_model_len: int
    max_batch_tokens: int


class TransformersEngine:
    """One model, sampled and updated in place; see Engine and EngineHost."""

    calls_at_once = 1

    def __init__(
        self,
        model: Model,
        tokenizer: Detokenizer,
        fence: Fence,
        weights: WeightSource,
        limits: Limits,
        name: str = "",
        *,
        end_tokens: frozenset[int],
        slots: Slots | None = None,
    ) -> None:
        """With `slots`, which are for CUDA, models of full attention are decoded in them."""
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._fence = fence
        self._weights = weights
        self._limits = limits
        self._name = name
        self._device = next(model.parameters()).device
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._end_tokens = end_tokens
        self._plain = is_plain(model)
        self._slots = slots if slots is not None and self._works_in(slots) else None
        self._whole = True  # False while weights of two versions are mixed
        self._can_share = self._device.type == "cpu" and len(float_types(model.state_dict())) == 1
        self._shared: tuple[int, int] | None = None  # device and inode of the trainer's weights, where mapped
        self._held = False  # while the trainer changes them

    def serving(self, job_id: str, attempt: int) -> "TransformersEngine":
        """See EngineHost."""
        self._fence.check_attempt(job_id, attempt)
        return self

    def state(self, _job_id: str | None = None) -> EngineState:
        """See Engine."""
        return EngineState(
            ready=self._whole,
            engine=NAME,
            model=self._name,
            version=self._fence.version,
            attempt=self._fence.attempt,
            max_model_len=self._limits.max_model_len,
            methods=("store", "shm", "in_place") if self._can_share else ("store", "shm"),
        )

    def metrics(self) -> str:
        """See EngineHost: the service counts all there is."""
        return ""

    def close(self) -> None:
        """See EngineHost: all of it is in this process."""

    def drop_adapter(self) -> None:
        """See Engine."""
        raise adapters_off()

    def open_channel(self, request: ChannelRequest) -> None:
        """See Engine. There is none."""
        check_method(request.method, self.state())

    def generate(
        self, request: GenerateRequest, cancelled: Event, finished: Finished = nobody
    ) -> GenerateResponse:
        """See Engine. With a seed the completions are a function of request and weights, bit for bit."""
        self._check(request)
        sampled: list[Sampled] = []
        for prompts, draws in self._batches(request):
            sampled += self._sample(prompts, draws, request, cancelled, finished)
        completions = [self._completion(one) for one in sampled]
        return GenerateResponse(
            completions=tuple(
                tuple(completions[start : start + request.n])
                for start in range(0, len(completions), request.n)
            ),
        )

    def publish(self, request: PublishRequest) -> None:
        """See Engine. Nothing is changed before all files are verified and fit the model."""
        if request.adapter is not None:
            raise adapters_off()
        if request.method == "in_place":  # of the version that is served, too: there is nothing to be copied
            fence = self._fence.advanced(request, again=not self._held)
            self._share(self._weights.in_place(request))
        else:  # version 0 is the folder's weights, but a fork may begin with others
            fence = self._fence.advanced(request, again=self._fence.version == 0)
            with self._weights.verified(request) as paths:
                self._load(paths)
        self._fence, self._held = fence, False

    def hold(self, request: HoldRequest) -> None:
        """See Engine. One call runs at a time, so none is completing anything now."""
        self._fence.advanced(request)
        self._held = True

    def _check(self, request: GenerateRequest) -> None:
        if not self._whole:
            raise EngineError(
                503, "weights_incomplete", "the last publish broke off in mid-copy", remedy="Publish again."
            )
        if self._held:
            raise EngineError(
                503, "weights_incomplete", "the trainer is changing the weights", remedy="Publish them."
            )
        check_prompts(request, self._limits.max_model_len, self._vocabulary)

    def _batches(self, request: GenerateRequest) -> Iterator[tuple[list[Prompt], Tensor]]:
        """(prompt of each row, its draws): rows in order, cut where memory or the model demands it."""
        new = request.sampling.max_new_tokens
        generator = torch.Generator()
        if request.sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(request.sampling.seed)
        rows: list[Prompt] = []
        draws: list[Tensor] = []
        width = 0
        for prompt, draw in _rows(request, generator):
            wider = max(width, len(prompt))
            too_many = (len(rows) + 1) * (wider + new) > self._limits.max_batch_tokens
            if rows and (too_many or (len(prompt) != len(rows[0]) and not self._plain)):
                yield rows, torch.stack(draws).to(self._device)
                rows, draws, wider = [], [], len(prompt)
            rows.append(prompt)
            draws.append(draw)
            width = wider
        yield rows, torch.stack(draws).to(self._device)

    def _sample(
        self,
        prompts: Sequence[Prompt],
        draws: Tensor,
        request: GenerateRequest,
        cancelled: Event,
        finished: Finished,
    ) -> list[Sampled]:
        stopping = Stopping(self._tokenizer, self._end_tokens, request.sampling.stop)
        try:
            with decoding_attention(self._model, grouped=self._plain):
                decoder = self._decoder(prompts, request.sampling.temperature, draws.shape[1])
                return sample_batch(decoder, draws, stopping, cancelled, finished)
        except EngineError:
            self._clear()  # a NaN left in the cache would spread, in spite of masks
            raise
        except torch.cuda.OutOfMemoryError as error:
            self._clear()
            raise EngineError(
                503,
                "out_of_memory",
                f"{len(prompts)} rows of this request do not fit the GPU's memory",
                remedy="Lower max_new_tokens, or start the engine with a smaller --max-batch-tokens.",
            ) from error

    def _decoder(self, prompts: Sequence[Prompt], temperature: float, new: int) -> Decoder:
        if self._slots is None:
            return TreeDecoder(self._model, prompts, temperature, plain=self._plain)
        return SlotDecoder(self._model, self._slots, prompts, temperature, new)

    def _clear(self) -> None:
        if self._slots is not None:
            self._slots.clear()

    def _works_in(self, slots: Slots) -> bool:
        with decoding_attention(self._model, grouped=self._plain):
            if self._plain and agrees(self._model, lambda p: SlotDecoder(self._model, slots, p, 1.0, 8)):
                return True
        log.warning("decoding without static memory, which is slower on a GPU: the model does not support it")
        return False

    def _completion(self, sampled: Sampled) -> Completion:
        size = len(sampled.token_ids)
        return Completion(
            token_ids=tuple(sampled.token_ids),
            logprobs=tuple(sampled.log_probs),
            finish_reason="stop" if sampled.stopped else "length",
            weight_versions=(VersionSpan(version=self._fence.version, start=0, end=size),),
        )

    @torch.no_grad()
    def _load(self, paths: Sequence[Path]) -> None:
        """Copy the files' tensors into the model. Weights that are tied may come under any of their names."""
        state = self._model.state_dict(keep_vars=True)
        where = _tensors(paths)
        _check_fit(state, where)
        self._whole = False
        if self._shared is not None:
            replace_weights(state, ((name, state[name].detach().clone()) for name in where))
            self._shared = None
        for path in paths:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (not a mapping)
                    state[name].copy_(file.get_tensor(name))
        self._whole = True

    def _share(self, path: Path) -> None:
        """Let the model's weights be the trainer's own, in this file, and let go of what they were in."""
        try:
            facts = path.stat()
            if self._shared == (facts.st_dev, facts.st_ino):
                return
            views = mapped(path)
        except (OSError, ValueError) as error:
            raise _mismatch(f"{path.name} is not a safetensors file: {error}") from error
        state = self._model.state_dict(keep_vars=True)
        _check_fit(state, {name: tuple(view.shape) for name, view in views.items()})
        for name, view in views.items():
            if view.dtype != state[name].dtype:
                raise _mismatch(f"{name} is {view.dtype}, the model's is {state[name].dtype}")
        replace_weights(state, views.items())
        self._shared, self._whole = (facts.st_dev, facts.st_ino), True


def load_engine(
    folder: Path,
    *,
    device: str,
    dtype: torch.dtype,
    fence: Fence,
    weights: WeightSource,
    max_model_len: int | None,
    max_batch_tokens: int,
) -> TransformersEngine:
    """The engine of a model folder.

    Raises EngineError (cuda_unavailable, unknown_model, out_of_memory, too_long) with the reason.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise EngineError(
            500,
            "cuda_unavailable",
            f"the engine is to run on {device}, but PyTorch sees no CUDA device",
            remedy="Use --device cpu, or install the CUDA build of PyTorch and the driver.",
        )
    try:
        ends = end_tokens(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: Model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(
            500,
            "unknown_model",
            f"the model in {folder} can't be loaded: {error}",
            remedy="It must be a causal language model that transformers knows, with safetensors weights.",
        ) from error
    try:
        model = model.to(device)
    except torch.cuda.OutOfMemoryError as error:
        raise EngineError(
            500, "out_of_memory", f"the model in {folder} does not fit the memory of {device}"
        ) from error
    context = context_length(model.config.get_text_config().to_dict())
    if max_model_len is not None and context is not None and max_model_len > context:
        raise EngineError(
            500, "too_long", f"--max-model-len {max_model_len} exceeds the model's context of {context}"
        )
    limits = Limits(max_model_len or context or DEFAULT_CONTEXT, max_batch_tokens)
    slots = Slots(model, graphs=True) if device != "cpu" else None
    return TransformersEngine(
        model, tokenizer, fence, weights, limits, folder.name, end_tokens=ends, slots=slots
    )


def _rows(request: GenerateRequest, generator: torch.Generator) -> Iterator[tuple[Prompt, Tensor]]:
    """The prompt of each completion and its draws [max_new_tokens]; those of places in between are skipped.

    On the CPU, where a generator's numbers are the same on every machine and however they are cut.
    """
    shape = request.n, request.sampling.max_new_tokens
    next_place = 0
    for place, prompt in zip(request.places or range(len(request.prompts)), request.prompts, strict=True):
        for _ in range(next_place, place):
            torch.rand(shape, generator=generator, dtype=torch.float64)
        for draw in torch.rand(shape, generator=generator, dtype=torch.float64):
            yield prompt, draw
        next_place = place + 1


def _tensors(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor in the files. Raises EngineError (weights_mismatch) for one in two files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _mismatch(f"{path.name} is not a safetensors file: {error}") from error
        if twice := shapes.keys() & found.keys():
            raise _mismatch(f"{min(twice)} is in two files")
        shapes |= found
    return shapes


def _check_fit(state: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises EngineError (weights_mismatch) unless every weight of the model is there once, in its shape."""
    if unknown := found.keys() - state.keys():
        raise _mismatch(f"the model has no weight {min(unknown)}")
    given = {_place(state[name]) for name in found}
    if len(given) < len(found):
        raise _mismatch("weights that are tied are there under two names")
    if missing := [name for name, weight in state.items() if _place(weight) not in given]:
        raise _mismatch(f"weight {missing[0]} is missing ({len(missing)} in all)")
    for name, shape in found.items():
        if shape != tuple(state[name].shape):
            raise _mismatch(f"{name} has shape {list(shape)}, the model's is {list(state[name].shape)}")


def _place(weight: Tensor) -> tuple[object, ...]:
    """Tells tied weights, which are one tensor under several names."""
    return weight.data_ptr(), weight.shape, weight.stride()


def _mismatch(message: str) -> EngineError:
    return EngineError(
        409,
        "weights_mismatch",
        message,
        remedy="Publish the whole state of the model that the engine was started with.",
    )
