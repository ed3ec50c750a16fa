"""Sources: every kind of model that `load` takes, and what it says about the others."""

from __future__ import annotations

import json
import os
import random
import struct
import sys
import textwrap
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from edgekit import sources
from edgekit._torchvision import torchvision
from edgekit.errors import (
    BadData,
    EdgekitError,
    MissingDependency,
    StorageError,
    TrustError,
    UnsupportedError,
    UsageError,
)
from edgekit.model._adapter import flatten
from edgekit.sources.pt2 import load_pt2
from edgekit.sources.torchvision_zoo import RANDOM_WEIGHTS
from edgekit.sources.weights import load_weights

NET = """
    import torch
    from neighbour import WIDTH

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(WIDTH, 2)

        def forward(self, features):
            return {"logits": self.linear(features)}

    def build():
        return Net(), {"features": torch.zeros(1, WIDTH)}

    def ready():
        from edgekit.model import Model
        return Model.from_module(*build(), name="ready-made", labels=["no", "yes"])

    def only_module():
        return Net()

    def pair_of_wrong_things():
        return Net(), [torch.zeros(1, WIDTH)]

    def nothing():
        pass

    def needs(width):
        return Net()

    def fails():
        widths = {}
        return widths["wide"]

    def leaves():
        raise SystemExit(3)

    def wrong_name():
        return Net(), {"feature": torch.zeros(1, WIDTH)}
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 3\n")
    path = tmp_path / "nets.py"
    path.write_text(textwrap.dedent(NET))
    yield path  # type: ignore[misc]
    sys.modules.pop("neighbour", None)


# -- Python files and modules ---------------------------------------------------------------------


def test_a_function_in_a_file_gives_a_module_and_examples(nets: Path) -> None:
    model = sources.load(f"{nets}:build")
    assert model.name == "build"
    assert [spec.name for spec in model.signature.inputs] == ["features"]
    assert [spec.name for spec in model.signature.outputs] == ["logits"]
    assert model.program().graph_signature.user_inputs == ("features",)
    assert str(nets.parent) not in sys.path


def test_a_function_in_a_file_gives_a_model(nets: Path) -> None:
    model = sources.load(f"{nets}:ready")
    assert (model.name, model.signature.outputs[0].labels) == ("ready-made", ("no", "yes"))


def test_a_function_in_a_module(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(nets.parent)
    assert sources.load("nets:build").signature.inputs[0].shape == (1, 3)
    sys.modules.pop("nets", None)


def test_weights_go_into_what_the_function_gives(nets: Path, tmp_path: Path) -> None:
    given = {"linear.weight": torch.arange(6.0).view(2, 3), "linear.bias": torch.ones(2)}
    save_file(given, tmp_path / "w.safetensors")
    for function in ("build", "ready"):
        model = sources.load(f"{nets}:{function}", weights=tmp_path / "w.safetensors")
        assert model.run(torch.ones(1, 3))[0].tolist() == [[4.0, 13.0]]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("only_module", "gives a module (Net); wanted: an edgekit.Model, or a pair"),
        ("pair_of_wrong_things", "gives (a module (Net), a list)"),
        ("nothing", "gives nothing"),
        ("needs", "needs the arguments width"),
        ("biuld", "Did you mean 'build'"),
        ("WIDTH", "unknown function"),
        ("wrong_name", "Did you mean 'features'"),
        ("leaves", "SystemExit"),
    ],
)
def test_other_functions_are_told_apart(nets: Path, function: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        sources.load(f"{nets}:{function}")
    assert message in str(caught.value)


def line_of(path: Path, text: str) -> int:
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def test_an_error_in_the_users_code_is_told_with_file_and_line(nets: Path) -> None:
    line = line_of(nets, 'widths["wide"]')
    with pytest.raises(UsageError) as caught:
        sources.load(f"{nets}:fails")
    assert f"{nets}:{line}, in fails: KeyError: 'wide'" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_in_forward_is_told_with_file_and_line(nets: Path) -> None:
    text = nets.read_text().replace("torch.zeros(1, WIDTH)", "torch.zeros(1, WIDTH + 1)")
    nets.write_text(text)
    line = line_of(nets, "return {")
    with pytest.raises(BadData) as caught:
        sources.load(f"{nets}:build")
    assert f"{nets}:{line}, in forward" in str(caught.value)


def test_a_file_that_does_not_parse_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import torch\n\ndef build(:\n")
    with pytest.raises(UsageError, match=r"broken\.py:3: SyntaxError"):
        sources.load(f"{path}:build")


def test_absent_files_modules_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wanting.py").write_text("import not_a_package_that_exists\n")
    for spec, kind, message in (
        (f"{tmp_path}/none.py:build", UsageError, "there is no file"),
        ("no_such_package.nets:build", UsageError, "no Python module 'no_such_package'"),
        ("wanting:build", MissingDependency, "imports 'not_a_package_that_exists'"),
        ("not-a-module:build", UsageError, "neither a file nor the name"),
    ):
        with pytest.raises(kind, match=message):
            sources.load(spec)


# -- dispatch -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("net.onnx", UsageError, "PROGRAM.pt2, FILE.py:FUNCTION"),
        ("net", UsageError, "no such file"),
        ("net.pt2", UsageError, "there is no file"),
        ("net.py", UsageError, "net.py:FUNCTION"),
        ("net.pt", TrustError, "net.safetensors"),
        ("net.PTH", TrustError, "weights_only=True"),
        ("pytorch_model.bin", TrustError, "is a pickle"),
        ("last.ckpt", TrustError, "is a pickle"),
    ],
)
def test_what_is_not_taken_says_what_is(
    tmp_path: Path, name: str, kind: type[EdgekitError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        sources.load(str(tmp_path / name))
    assert message in str(caught.value)


def test_sec_01_a_pickle_is_refused_without_being_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "weights.pth"
    os.mkfifo(pipe)  # opening it would wait for ever
    with pytest.raises(TrustError):
        sources.load(str(pipe))
    with pytest.raises(TrustError):
        load_weights(pipe)


# -- torchvision ----------------------------------------------------------------------------------


def test_a_torchvision_model_has_the_same_random_weights_every_time() -> None:
    state = torch.random.get_rng_state()
    model = sources.load("torchvision:shufflenet_v2_x0_5")
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert model.digest() == sources.load("torchvision:shufflenet_v2_x0_5").digest()
    assert model.notes == (RANDOM_WEIGHTS,)
    assert model.signature.inputs[0].shape == (1, 3, 224, 224)
    assert model.preprocess is not None and model.preprocess.to_json()["resize_size"] == 256


def test_named_weights_bring_their_preprocessing_and_labels(tmp_path: Path) -> None:
    zoo = torchvision().models
    save_file(zoo.mobilenet_v3_small().state_dict(), tmp_path / "w.safetensors")
    model = sources.load(
        "torchvision:mobilenet_v3_small@IMAGENET1K_V1", weights=tmp_path / "w.safetensors"
    )
    assert model.signature.outputs[0].labels[:2] == ("tench", "goldfish")
    preset = zoo.MobileNet_V3_Small_Weights.IMAGENET1K_V1.transforms()
    pixels = torch.randint(0, 256, (300, 400, 3), dtype=torch.uint8)
    made = model.preprocess.apply(pixels.numpy())  # type: ignore[union-attr, arg-type]
    from PIL import Image

    wanted = preset(Image.fromarray(pixels.numpy()))
    assert torch.allclose(torch.from_numpy(made[0]), wanted, atol=1e-5)  # type: ignore[index]


def test_a_file_with_other_classes_builds_the_model_with_those(tmp_path: Path) -> None:
    zoo = torchvision().models
    net = zoo.mobilenet_v3_small(num_classes=7)
    save_file(net.state_dict(), tmp_path / "seven.safetensors")
    model = sources.load("torchvision:mobilenet_v3_small", weights=tmp_path / "seven.safetensors")
    assert model.signature.outputs[0].shape == (1, 7)
    assert model.notes == ("weights from seven.safetensors",)
    (x,) = model.example_inputs()
    assert torch.equal(model.run(x)[0], net.eval()(x))


def test_a_file_that_does_not_fit_is_told_by_its_keys(tmp_path: Path) -> None:
    state = torchvision().models.squeezenet1_1().state_dict()
    state["extra.weight"] = torch.zeros(1)
    state["features.0.bias"] = torch.full_like(state["features.0.bias"], float("nan"))
    state["features.0.weight"] = torch.zeros(1, 2)
    del state["classifier.1.bias"]
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(BadData) as caught:
        sources.load("torchvision:squeezenet1_1", weights=tmp_path / "odd.safetensors")
    message = str(caught.value)
    for part in (
        "lacks classifier.1.bias",
        "unknown to the model, extra.weight",
        "features.0.weight (1, 2) instead of (64, 3, 3, 3)",
        "NaN in features.0.bias",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("mobilnet_v2", UsageError, "Did you mean 'mobilenet_v2'"),
        ("mobilenet_v2@IMAGENET", UsageError, "Did you mean 'IMAGENET1K_V1'"),
        ("fasterrcnn_resnet50_fpn", UnsupportedError, "no picture classification"),
        ("quantized_mobilenet_v2", UnsupportedError, "no picture classification"),
        ("", UsageError, "unknown torchvision model"),
    ],
)
def test_torchvision_names_are_checked(name: str, kind: type[EdgekitError], message: str) -> None:
    with pytest.raises(kind) as caught:
        sources.load(f"torchvision:{name}")
    assert message in str(caught.value).replace("IMAGENET1K_V2'?", "IMAGENET1K_V1'?")


def test_weights_that_cannot_be_fetched_say_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(StorageError) as caught:
        sources.load("torchvision:squeezenet1_1@IMAGENET1K_V1")
    assert "download.pytorch.org" in caught.value.message
    assert "--weights" in caught.value.hint and str(tmp_path) in caught.value.hint
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_cached_download_that_is_code_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    canary = tmp_path / "canary"

    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {canary}",)

    entry = torchvision().models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save({"x": Planted()}, cache / entry.url.rpartition("/")[2])
    with pytest.raises(TrustError):
        sources.load("torchvision:squeezenet1_1@IMAGENET1K_V1")
    assert not canary.exists()


def test_a_segmentation_model_of_torchvision() -> None:
    model = sources.load("torchvision:lraspp_mobilenet_v3_large")
    assert [spec.name for spec in model.signature.outputs] == ["out"]
    assert model.signature.outputs[0].shape == (1, 21, 520, 520)


# -- safetensors ----------------------------------------------------------------------------------


def tensors_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(shape: list[Any], start: Any, stop: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_safetensors_as_the_reference_writes_them(tmp_path: Path) -> None:
    given = {
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
        "half": torch.randn(3, 2).half(),
        "brain": torch.randn(5).bfloat16(),
        "mask": torch.tensor([True, False]),
        "long": torch.arange(4),
    }
    save_file(given, tmp_path / "all.safetensors", metadata={"format": "pt"})
    read = load_weights(tmp_path / "all.safetensors")
    assert set(read) == set(given)
    assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in given.items())


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        (b"{}", b"", 100),
        (b"{}", b"", 2**63),
        (b"{}" + b" " * 10, b"", 101_000_000),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2 + b"}", bytes(4), None),
        (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
            None,
        ),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12), None),
        ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12), None),
        ({"a": entry([1], 0, 4)}, bytes(8), None),
        ({"a": entry([1], 0, 4)}, bytes(2), None),
        ({"a": entry([2**40, 2**40], 0, 4)}, bytes(4), None),
        ({"a": entry([2**32, 2**32], 0, 0)}, b"", None),
        ({"a": entry([-1, -1], 0, 4)}, bytes(4), None),
        ({"a": entry([1.0], 0, 4)}, bytes(4), None),
        ({"a": entry([True], 0, 4)}, bytes(4), None),
        ({"a": entry([1], 4, 0)}, bytes(4), None),
        ({"a": entry([1], 0, 4, "F99")}, bytes(4), None),
        ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), None),
        ({"a": [1, 2]}, bytes(4), None),
        ({"__metadata__": {"a": 1}}, b"", None),
        (b"[1]", b"", None),
        (b'{"\xff": 1}', b"", None),
        (b"[" * 10_000, b"", None),
        (b" {}", b"", None),
    ],
)
def test_sec_09_headers_that_lie(
    tmp_path: Path, header: Any, data: bytes, length: int | None
) -> None:
    path = tensors_file(tmp_path / "bad.safetensors", header, data, length)
    with pytest.raises(BadData):
        load_weights(path)


def test_sec_09_flipped_bytes_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.arange(4.0), "b": torch.zeros(2, 2)}, path)
    honest = path.read_bytes()
    rng = random.Random(9)
    for _ in range(200):
        data = bytearray(honest)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            assert sum(t.numel() for t in load_weights(path).values()) <= 16
        except (BadData, TrustError):
            continue


def test_weights_of_other_kinds_are_refused(tmp_path: Path, nets: Path) -> None:
    (tmp_path / "w.npz").write_bytes(b"x")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name, kind in (("w.npz", BadData), ("w.pth", TrustError), ("empty.safetensors", BadData)):
        with pytest.raises(kind):
            sources.load(f"{nets}:build", weights=tmp_path / name)


# -- .pt2: everything that torch.export.save writes loads (SEC-11) --------------------------------

Sides = namedtuple("Sides", "left right")
torch.utils._pytree._register_namedtuple(Sides, serialized_type_name="test_sources.Sides")


class Shared(nn.Module):
    """Shared, transposed, sliced, empty, scalar and boolean weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.turned = nn.Parameter(torch.randn(4, 4).t())
        self.sliced = nn.Parameter(torch.randn(8, 4)[2:6])
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("fleeting", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.second(self.first(x)) @ self.turned @ self.sliced * self.scalar
        return torch.cat([mixed * self.mask, self.empty]) * self.fleeting


def made(forward: Callable[..., Any], **parts: nn.Module) -> nn.Module:
    kind = type("Made", (nn.Module,), {"forward": forward})
    net: nn.Module = kind()
    net.linear = nn.Linear(4, 4)
    for name, part in parts.items():
        setattr(net, name, part)
    return net.eval()


def graded(self: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = self.linear(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.linear(y).float()


def optional(self: Any, x: Tensor, shift: Tensor | None = None, factor: int = 3) -> Tensor:
    return self.linear(x) * factor


def keyword(self: Any, x: Tensor, *, mask: Tensor) -> Tensor:
    return self.linear(x) * mask


def save(net: nn.Module, args: tuple[Any, ...], path: Path, **options: Any) -> None:
    """torch.export.save of a module, without what torch warns of on the way."""
    decomposed = options.pop("decomposed", False)
    kwargs, extra = options.pop("kwargs", {}), options.pop("extra_files", None)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(net, args, kwargs, **options)
        if decomposed:
            program = program.run_decompositions()
        torch.export.save(program, path, extra_files=extra)


X = torch.randn(2, 4)
CASES: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any], dict[str, Any]]] = {
    "shared": (Shared().eval(), (X,), {}, {}),
    "dictionary": (made(lambda self, x: {"a": self.linear(x), "b": (x * 2, x)}), (X,), {}, {}),
    "named tuple": (made(lambda self, x: Sides(self.linear(x), x * 2)), (X,), {}, {}),
    "list": (made(lambda self, x: [self.linear(x), x * 2]), (X,), {}, {}),
    "none in, none out": (made(lambda self, x, y: (self.linear(x), None)), (X, None), {}, {}),
    "constant argument": (made(optional), (X, None, 5), {}, {}),
    "keyword": (made(keyword), (X,), {"mask": torch.ones(2, 4)}, {}),
    "grad and autocast": (made(graded), (X,), {}, {}),
    "branch": (
        made(lambda self, x: torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t * 2, (x,))),
        (X,),
        {},
        {},
    ),
    "text arguments": (
        made(
            lambda self, x: torch.einsum(
                "ij,kj->ik", x, nn.functional.gelu(self.linear(x), approximate="tanh")
            ).div(2, rounding_mode="floor")
        ),
        (X,),
        {},
        {},
    ),
    "lstm": (
        made(lambda self, x: self.rnn(x)[0], rnn=nn.LSTM(4, 5, batch_first=True)),
        (torch.randn(2, 7, 4),),
        {},
        {},
    ),
    "attention": (
        made(lambda self, x: self.layer(x), layer=nn.TransformerEncoderLayer(4, 2, 8)),
        (torch.randn(2, 7, 4),),
        {},
        {},
    ),
    "dynamic batch": (
        made(lambda self, x: self.linear(x).view(x.shape[0] * 2, 2)),
        (X,),
        {},
        {"x": {0: Dim("batch", min=2, max=64)}},
    ),
    "dynamic picture": (
        made(
            lambda self, x: nn.functional.interpolate(
                x, size=(x.shape[2] * 2 + 1, x.shape[3] // 2)
            ).flatten(2)
        ),
        (torch.randn(1, 3, 8, 10),),
        {},
        {"x": {2: Dim.AUTO, 3: Dim.AUTO}},
    ),
    "dynamic power": (
        made(lambda self, x: x.expand(x.shape[0], x.shape[0], 4).reshape(-1, 4) * x.shape[0] ** 2),
        (X,),
        {},
        {"x": {0: Dim.AUTO}},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
def test_sec_11_whatever_torch_saves_is_loaded(tmp_path: Path, case: str, decomposed: bool) -> None:
    net, args, kwargs, dynamic = CASES[case]
    shapes = {**dynamic, **dict.fromkeys(kwargs)} if dynamic else None
    path = tmp_path / "my model (1) é.pt2"
    extra = {"notes/read me.txt": "hello"}
    options = {"kwargs": kwargs, "dynamic_shapes": shapes, "extra_files": extra}
    save(net, args, path, decomposed=decomposed, **options)
    model = load_pt2(path)

    tensors = [value for value in args if isinstance(value, Tensor)]
    shapes_given = [tuple(value.shape) for value in (*tensors, *kwargs.values())]
    assert [spec.shape for spec in model.signature.inputs] == shapes_given
    with torch.no_grad():
        wanted = flatten(net(*args, **kwargs))
    got = model.run(*tensors, *kwargs.values())
    for (_, mine), theirs in zip(wanted, got, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert model.program().graph_signature.user_inputs == tuple(
        spec.name for spec in model.signature.inputs
    )


def test_outputs_of_a_saved_program_keep_their_keys(tmp_path: Path) -> None:
    wanted = {"dictionary": ["a", "b_0", "b_1"], "named tuple": ["left", "right"]}
    for case, names in wanted.items():
        net, args, *_ = CASES[case]
        save(net, args, tmp_path / "net.pt2")
        assert [s.name for s in load_pt2(tmp_path / "net.pt2").signature.outputs] == names


def test_a_saved_program_has_the_digest_of_its_model(tmp_path: Path) -> None:
    net, args, *_ = CASES["shared"]
    save(net, args, tmp_path / "net.pt2")
    digests = {load_pt2(tmp_path / "net.pt2").digest() for _ in range(2)}
    assert len(digests) == 1


def test_a_program_saved_on_a_gpu_loads_on_the_cpu(tmp_path: Path) -> None:
    """The file is rewritten to say cuda, which is all that differs in one from a GPU."""
    import zipfile

    net, args, *_ = CASES["shared"]
    save(net, args, tmp_path / "cpu.pt2")
    with (
        zipfile.ZipFile(tmp_path / "cpu.pt2") as old,
        zipfile.ZipFile(tmp_path / "gpu.pt2", "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".json"):
                content = content.replace(
                    b'"type": "cpu", "index": null', b'"type": "cuda", "index": 0'
                )
                assert b"cuda" in content
            new.writestr(zipfile.ZipInfo(name), content)
    model = load_pt2(tmp_path / "gpu.pt2")
    assert torch.allclose(model.run(*args)[0], net(*args), atol=1e-6)


def test_a_saved_program_takes_no_other_weights(tmp_path: Path) -> None:
    net, args, *_ = CASES["list"]
    save(net, args, tmp_path / "net.pt2")
    with pytest.raises(UsageError, match="weights of its own"):
        sources.load(str(tmp_path / "net.pt2"), weights=tmp_path / "w.safetensors")


def test_the_same_file_serves_two_models_only_if_asked_by_name(tmp_path: Path) -> None:
    from torch.export.pt2_archive._package import package_pt2

    net, args, *_ = CASES["list"]
    program = torch.export.export(net, args)
    both = {"encoder": program, "decoder": program}
    package_pt2(str(tmp_path / "both.pt2"), exported_programs=both)
    with pytest.raises(BadData, match=r"2 programs \(decoder, encoder\)"):
        load_pt2(tmp_path / "both.pt2")
    package_pt2(str(tmp_path / "one.pt2"), exported_programs={"encoder": program})
    assert load_pt2(tmp_path / "one.pt2").name == "one"
