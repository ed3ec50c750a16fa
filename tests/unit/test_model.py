"""Model: what it learns from a module, what it exports, and what it refuses to export."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import pytest
import torch
from torch import Tensor, nn

from edgekit._torchvision import ensure_importable
from edgekit.errors import BadData, EdgekitError, UnsupportedError, UsageError
from edgekit.model import Model
from edgekit.runtime.preprocess import ImagePreprocess, TextPreprocess

ROOT = Path(__file__).resolve().parents[2]


class Conv(nn.Module):
    """Batch norm, dropout and an activation: everything that train mode changes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(self.drop(pooled))


def conv_model(seed: int = 0, **options: Any) -> Model:
    return Model.from_module(Conv(seed), {"x": torch.zeros(1, 3, 8, 8)}, **options)


def module(function: Callable[..., Any], **parts: Any) -> nn.Module:
    """A module in eval mode whose forward() is a function of this file."""
    kind = type("Made", (nn.Module,), {"forward": function})
    made: nn.Module = kind()
    for name, part in parts.items():
        if isinstance(part, Tensor):
            made.register_buffer(name, part)
        else:
            setattr(made, name, part)
    return made.eval()


# -- eval mode ------------------------------------------------------------------------------------


def test_a_module_in_train_mode_is_copied_and_the_callers_left_alone() -> None:
    own = Conv().train()
    model = Model.from_module(own, {"x": torch.zeros(1, 3, 8, 8)})
    assert own.training and own.norm.training
    assert not any(part.training for part in model.module.modules())
    assert torch.equal(own.norm.running_mean, torch.zeros(4))  # learning did not touch it
    assert replace(model, module=own).module is not own


def test_a_module_in_eval_mode_is_taken_as_it_is() -> None:
    own = Conv().eval()
    assert Model.from_module(own, {"x": torch.zeros(1, 3, 8, 8)}).module is own


# -- signature ------------------------------------------------------------------------------------


def test_shapes_dtypes_layout_and_labels_are_learnt() -> None:
    model = conv_model(labels=list("abcde"), license="MIT", notes=["tiny"])
    (x,), (output,) = model.signature.inputs, model.signature.outputs
    assert (x.name, x.shape, x.dtype, x.layout) == ("x", (1, 3, 8, 8), "float32", "NCHW")
    assert (output.name, output.shape, output.labels) == ("output", (1, 5), tuple("abcde"))
    assert (model.license, model.notes) == ("MIT", ("tiny",))


@pytest.mark.parametrize(
    ("shape", "given", "layout"),
    [
        ((1, 8, 9, 3), None, "NHWC"),
        ((1, 7, 8, 9), None, ""),
        ((1, 7, 8, 9), "NCHW", "NCHW"),
        ((1, 3, 8, 9), {"x": "NHWC"}, "NHWC"),
        ((1, 3, 8), "NCHW", ""),
    ],
)
def test_layout(shape: tuple[int, ...], given: Any, layout: str) -> None:
    model = Model.from_module(
        module(lambda self, x: x * 2), {"x": torch.zeros(shape)}, input_layout=given
    )
    assert model.signature.inputs[0].layout == layout


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Scored:
    score: Tensor
    extra: Tensor | None


class Keys(TypedDict):
    first: Tensor
    second: Tensor


def annotated(self: nn.Module, x: Tensor) -> Keys:
    return (x + 1, x * 2)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("forward", "names"),
    [
        (lambda self, x: x * 2, ("output",)),
        (lambda self, x: (x * 2,), ("output",)),
        (lambda self, x: (x * 2, x + 1), ("output_0", "output_1")),
        (lambda self, x: [x * 2, x + 1], ("output_0", "output_1")),
        (
            lambda self, x: {"logits": x * 2, "hidden": (x, x + 1)},
            ("logits", "hidden_0", "hidden_1"),
        ),
        (lambda self, x: Pair(x * 2, x + 1), ("left", "right")),
        (lambda self, x: Scored(x * 2, None), ("score",)),
        (lambda self, x: {"a b": x * 2, "c": None}, ("a_b",)),
        (annotated, ("first", "second")),
    ],
)
def test_outputs_are_flattened_and_named(
    forward: Callable[..., Any], names: tuple[str, ...]
) -> None:
    model = Model.from_module(module(forward), {"x": torch.zeros(2, 3)})
    assert tuple(spec.name for spec in model.signature.outputs) == names
    inputs = model.example_inputs()
    from_program = model.program().module()(*inputs)
    assert type(from_program) is tuple and len(from_program) == len(names)
    for mine, exported in zip(model.run(*inputs), from_program, strict=True):
        assert torch.equal(mine, exported)


def test_inputs_stand_in_the_order_of_forward_and_placeholders_carry_their_names() -> None:
    def forward(
        self: nn.Module, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        assert mask is None and types is not None
        return ids * 2 + types

    given = {"types": torch.ones(1, 4), "ids": torch.zeros(1, 4)}
    model = Model.from_module(module(forward), given)
    assert [spec.name for spec in model.signature.inputs] == ["ids", "types"]
    assert model.program().graph_signature.user_inputs == ("ids", "types")
    ids, types = model.example_inputs()
    assert torch.equal(model.run(ids, types)[0], ids * 2 + types)


def test_keyword_only_and_variadic_parameters() -> None:
    def keyword(self: nn.Module, x: Tensor, *, scale: Tensor) -> Tensor:
        return x * scale

    def variadic(self: nn.Module, *tensors: Tensor) -> Tensor:
        return tensors[0] - tensors[1]

    two = {"x": torch.ones(1, 2), "scale": torch.ones(1, 2)}
    for forward in (keyword, variadic):
        model = Model.from_module(module(forward), two)
        assert model.program().graph_signature.user_inputs == ("x", "scale")
    assert model.run(torch.ones(1, 2), torch.zeros(1, 2))[0].tolist() == [[1.0, 1.0]]


def test_the_largest_id_is_the_last_row_of_the_embedding_that_is_looked_up() -> None:
    def forward(self: Any, ids: Tensor, types: Tensor, plain: Tensor) -> Tensor:
        rows = self.words(ids.view(-1)) + self.kinds(types.view(-1))
        return rows.sum(1)[None] + plain

    made = module(forward, words=nn.Embedding(77, 4), kinds=nn.Embedding(2, 4))
    ids = torch.zeros(1, 9, dtype=torch.long)
    types = torch.zeros(1, 9, dtype=torch.int32)
    model = Model.from_module(made, {"ids": ids, "types": types, "plain": ids + 5})
    assert [spec.high for spec in model.signature.inputs] == [76, 1, 5]


# -- example inputs -------------------------------------------------------------------------------


def test_example_inputs_are_deterministic_and_fit() -> None:
    def forward(self: Any, ids: Tensor, attention_mask: Tensor, pixels: Tensor) -> Tensor:
        return self.words(ids).sum(-1) * attention_mask + pixels

    made = module(forward, words=nn.Embedding(5, 2))
    given = {
        "ids": torch.zeros(1, 400, dtype=torch.long),
        "attention_mask": torch.zeros(1, 400, dtype=torch.bool),
        "pixels": torch.zeros(1, 400, dtype=torch.uint8),
    }
    model = Model.from_module(made, given)
    before = torch.random.get_rng_state()
    first, again = model.example_inputs(), model.example_inputs()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    ids, mask, pixels = first
    assert set(ids.tolist()[0]) == set(range(5))
    assert mask.dtype == torch.bool and mask.all()
    assert pixels.dtype == torch.uint8 and pixels.max() > 200
    assert not torch.equal(ids, model.example_inputs(seed=1)[0])


# -- program and digest ---------------------------------------------------------------------------


def test_the_program_is_kept_and_has_no_trace_of_training() -> None:
    model = conv_model()
    program = model.program()
    assert model.program() is program
    called = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert "aten.batch_norm.default" in called and "aten.conv2d.default" in called
    assert not any("dropout" in name or "assert" in name for name in called)
    assert [n.name for n in program.graph.find_nodes(op="placeholder")][-1] == "x"
    (x,) = model.example_inputs()
    assert torch.equal(program.module()(x)[0], model.run(x)[0])


DIGEST = """
    import torch
    from edgekit.model import Model

    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Dropout())
    print(Model.from_module(net, {"input": torch.zeros(2, 4)}).digest())
"""


def test_the_digest_is_the_same_in_another_process() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Dropout())
    mine = Model.from_module(net, {"input": torch.zeros(2, 4)}, name="other name").digest()
    script = textwrap.dedent(DIGEST)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == mine
    assert len(mine) == 64


def test_the_digest_tells_models_apart() -> None:
    def scaled(factor: float) -> Model:
        return Model.from_module(module(lambda self, x: x * factor), {"x": torch.zeros(1, 3, 8, 8)})

    preprocess = ImagePreprocess(height=8, width=8)
    several = [
        conv_model(),
        conv_model(seed=1),
        conv_model(labels=list("abcde")),
        conv_model(preprocess=preprocess),
        conv_model(preprocess=replace(preprocess, antialias=False)),
        scaled(2.0),
        scaled(2.5),
        Model.from_module(Conv(), {"x": torch.zeros(2, 3, 8, 8)}),
    ]
    assert len({model.digest() for model in several}) == len(several)
    assert conv_model().digest() == conv_model(name="another", license="MIT").digest()


def test_one_changed_weight_changes_the_digest() -> None:
    changed = Conv().eval()
    with torch.no_grad():
        changed.norm.running_var[2] += 1e-6
    model = Model.from_module(changed, {"x": torch.zeros(1, 3, 8, 8)})
    assert model.digest() != conv_model().digest()


# -- what is refused ------------------------------------------------------------------------------

F = nn.functional


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Shortcut(nn.Module):
    """Rounds while it is traced, as some models leave checks of values out then."""

    def forward(self, x: Tensor) -> Tensor:
        return x.round() if torch.compiler.is_exporting() else x.abs()


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return x * 2


def writes_buffer(self: Any, x: Tensor) -> Tensor:
    self.state.add_(1)
    return x + self.state


def writes_input(self: Any, x: Tensor) -> Tensor:
    x[:, :1].mul_(2)
    return x + 1


REFUSED: list[tuple[str, nn.Module, str]] = [
    ("dropout", module(lambda self, x: F.dropout(x)), "draws random numbers: node 'dropout'"),
    ("noise", module(lambda self, x: x + torch.rand_like(x)), "aten.rand_like.default"),
    ("sampling", module(lambda self, x: x + torch.bernoulli(x.sigmoid())), "aten.bernoulli"),
    (
        "batch statistics",
        module(lambda self, x: self.norm(x), norm=nn.BatchNorm1d(4, track_running_stats=False)),
        "statistics of the batch",
    ),
    ("constant output", module(lambda self, x: (x, torch.ones(3))), "does not depend on any input"),
    ("number output", module(lambda self, x: (x, 3)), "output '1' is a int"),
    ("shape of values", module(lambda self, x: x.nonzero()), "shape that depends"),
    ("buffer", module(writes_buffer, state=torch.zeros(1)), "writes to its buffer 'state'"),
    ("input", module(writes_input), "writes to its input 'x'"),
    ("counter", Counting().eval(), "differently from call to call"),
    ("random.random", module(lambda self, x: x * random.random()), "differently from call to call"),
    ("branch", Branching().eval(), "decides by a value that it computes from its input"),
    ("item", module(lambda self, x: x * float(x.sum())), "decides by a value"),
    ("numpy", module(lambda self, x: torch.as_tensor(x.numpy() * 2)), "cannot be exported"),
]


@pytest.mark.parametrize(("made", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_num_06_what_cannot_be_exported_faithfully_is_refused(
    made: nn.Module, message: str
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        Model.from_module(made, {"x": torch.ones(2, 4)}, name="mine").program()
    assert message in str(caught.value)
    assert caught.value.exit_code == 5
    assert caught.value.hint


def test_num_06_a_branch_frozen_by_tracing_is_found_on_another_input() -> None:
    model = Model.from_module(Shortcut().eval(), {"x": torch.ones(2, 4)})
    with pytest.raises(UnsupportedError, match="does not answer as the module does"):
        model.program()


def test_the_message_names_the_users_line() -> None:
    line = Branching.forward.__code__.co_firstlineno + 1
    model = Model.from_module(Branching().eval(), {"x": torch.ones(2, 4)})
    with pytest.raises(UnsupportedError, match=rf"test_model.py:{line}, in forward: if x.sum"):
        model.program()


def test_a_custom_operator_without_a_shape_is_named() -> None:
    @torch.library.custom_op("edgekit_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    model = Model.from_module(module(lambda self, x: twice(x)), {"x": torch.ones(2, 4)})
    with pytest.raises(UnsupportedError, match=r"edgekit_test[:.]+twice"):
        model.program()


def test_a_module_exported_in_train_mode_is_refused() -> None:
    program = torch.export.export(Conv().train(), (torch.zeros(2, 3, 8, 8),))
    model = Model.from_module(program.module(), {"x": torch.zeros(2, 3, 8, 8)})
    with pytest.raises(UnsupportedError, match="statistics of the batch"):
        model.program()


@pytest.mark.parametrize(
    ("examples", "options", "kind", "message"),
    [
        ({"y": torch.zeros(1, 3, 8, 8)}, {}, UsageError, "Known: x"),
        ({}, {}, UsageError, "needs an example"),
        ({"x": [1.0]}, {}, UsageError, "is a list"),
        ({"x": torch.tensor(1.0)}, {}, UnsupportedError, "no batch dimension"),
        ({"x": torch.zeros(1, 4, 8, 8)}, {}, BadData, "does not run on its example inputs"),
        ({"x": torch.zeros(1, 3, 8, 8).double()}, {}, BadData, "does not run"),
        ({"x": torch.zeros(1, 3, 8, 8)}, {"labels": ["a"]}, BadData, "1 labels"),
        (
            {"x": torch.zeros(1, 3, 8, 8)},
            {"preprocess": ImagePreprocess(height=9, width=9)},
            BadData,
            "(3, 9, 9)",
        ),
        (
            {"x": torch.zeros(1, 3, 8, 8)},
            {"preprocess": TextPreprocess(("[PAD]", "[UNK]", "[CLS]", "[SEP]"))},
            BadData,
            "attention_mask",
        ),
    ],
)
def test_wrong_examples_labels_and_preprocessing(
    examples: Any, options: dict[str, Any], kind: type[EdgekitError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        Model.from_module(Conv(), examples, **options)
    assert type(caught.value) is kind
    assert message in str(caught.value)


def test_a_missing_parameter_is_named() -> None:
    def forward(self: nn.Module, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale

    with pytest.raises(UsageError, match="also needs 'scale'"):
        Model.from_module(module(forward), {"x": torch.zeros(1, 2)})


def test_dtypes_that_no_target_carries_are_refused() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.complex64):
        with pytest.raises(UnsupportedError, match="input 'x' is"):
            Model.from_module(module(lambda self, x: x), {"x": torch.zeros(1, 2, dtype=dtype)})
    with pytest.raises(UnsupportedError, match="output 'output' is float64"):
        Model.from_module(module(lambda self, x: x.double()), {"x": torch.zeros(1, 2)})


def test_labels_need_a_single_flat_output() -> None:
    made = module(lambda self, x: (x * 2, x * 3))
    with pytest.raises(UsageError, match="single output"):
        Model.from_module(made, {"x": torch.zeros(1, 2)}, labels=["a", "b"])


def test_a_transformer_with_a_dictionary_of_outputs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries' own, while they are imported
        ensure_importable()
        transformers = pytest.importorskip("transformers")
        net_type = transformers.DistilBertForSequenceClassification
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        n_layers=1, vocab_size=99, dim=32, hidden_dim=64, n_heads=2
    )
    net = net_type(config)
    ids = torch.zeros(1, 12, dtype=torch.long)
    model = Model.from_module(
        net,
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        labels=["no", "yes"],
    )
    assert [spec.name for spec in model.signature.outputs] == ["logits"]
    assert model.signature.inputs[0].high == 98
    program = model.program()
    assert program.graph_signature.user_inputs == ("input_ids", "attention_mask")
    # The mask is not frozen at all ones: the program agrees with a padded sentence too.
    padded = torch.tensor([[1] * 7 + [0] * 5])
    words = torch.arange(12)[None]
    expected = net.eval()(words, attention_mask=padded).logits
    assert torch.allclose(program.module()(words, padded)[0], expected, atol=1e-6)
