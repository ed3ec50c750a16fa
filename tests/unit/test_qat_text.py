"""Quantization-aware training of texts' models: tables, norms, attention."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit._torchvision import torchvision
from edgekit.compress.evaluate import evaluate
from edgekit.compress.graph import aten, graph_module
from edgekit.compress.qat import QatSettings, qat
from edgekit.compress.render import render
from edgekit.compress.train import TrainSettings
from edgekit.model import Model

sys.path.insert(0, str(Path(__file__).parent))
try:
    from qat_models import Tensors, quantized
finally:
    sys.path.pop(0)

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS, LENGTH = 40, 8


def sentences(count: int) -> Tensors:
    """Words of which most, or not, are from the upper half; masked to 4 to 8 of them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, WORDS, (count, LENGTH), generator=generator)
    lengths = torch.randint(4, LENGTH + 1, (count,), generator=generator)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    upper = ((ids >= WORDS // 2) * mask).sum(1)
    return Tensors({"input_ids": ids * mask, "attention_mask": mask}, (2 * upper > lengths).long())


@pytest.fixture(scope="module")
def model() -> Model:
    """A BERT of one layer with a classifier, its weights random."""
    torchvision()  # transformers imports it, which may need help beside a CPU build of torch
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        num_labels=2,
    )
    torch.manual_seed(0)
    example = torch.ones(1, LENGTH, dtype=torch.long)
    return Model.from_module(
        BertForSequenceClassification(config).eval(),
        {"input_ids": example, "attention_mask": example.clone()},
        name="bert",
    )


@pytest.mark.slow
@pytest.mark.parametrize("tables", [False, True])
def test_a_bert_learns_and_its_plan_renders(model: Model, tables: bool) -> None:
    data = sentences(320)
    start = quantized(model, data)
    train = TrainSettings(epochs=4, batch=32, rate=1e-2)
    settings = QatSettings(train=train, soft=0, tables=tables)
    made = qat(model, start, data.part(0, 256), settings, held=data.part(256, 320))
    losses = [point["loss"] for point in made.curve]
    assert losses[-1] < 0.9 * losses[0]

    plan = made.trained.plan
    before = {e.node: e for e in start.plan.edges}
    nodes = graph_module(start.program).graph.nodes
    read = {str(n.args[0]) for n in nodes if n.target is aten.embedding.default}
    assert any(e.node in read for e in plan.edges)
    assert all(e == before[e.node] for e in plan.edges if e.node in read) == (not tables)

    feeds = {n: v.numpy()[:, None] for n, v in data.part(256, 264).inputs.items()}
    answers = []
    for form in ("fake", "qdq", "qdq-folded"):
        module = render(made.trained.program, plan, form)  # type: ignore[arg-type]
        answers.append(evaluate(module, feeds, list(feeds), ["logits"])["logits"])
    step = max(e.scale[0] for e in plan.activations().values())
    for other in answers[1:]:
        assert np.abs(other - answers[0]).max() <= 2 * step
