"""The engine's laws hold for both ways of decoding; the one for CUDA runs here without graphs."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from powermean.artefacts import ArtefactStore
from powermean.end_tokens import end_tokens
from powermean.engine_selection import context_length
from rollout.engine import Fence
from rollout.transformers.engine import Limits, TransformersEngine
from rollout.transformers.slots import Slots
from rollout.weights import WeightSource
from tests.support.tiny_engines import JOB, MakeEngine


@pytest.fixture(params=["tree", "slots"])
def make_engine(
    request: pytest.FixtureRequest, tiny_folder: Path, store: ArtefactStore, shared_memory: Path
) -> MakeEngine:
    def make(folder: Path = tiny_folder, max_batch_tokens: int = 16384) -> TransformersEngine:
        model = AutoModelForCausalLM.from_pretrained(folder)
        context = context_length(model.config.get_text_config().to_dict())
        assert context is not None
        return TransformersEngine(
            model,
            AutoTokenizer.from_pretrained(folder),
            Fence(JOB, 1, 0),
            WeightSource(store, shared_memory),
            Limits(context, max_batch_tokens),
            end_tokens=end_tokens(folder),
            slots=Slots(model, graphs=False) if request.param == "slots" else None,
        )

    return make
