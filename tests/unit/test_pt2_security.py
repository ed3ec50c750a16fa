"""Attacks on `.pt2` files. Each is made here; where torch falls for it, a test shows that too.

The canary is an empty file that the planted code would create.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.errors import BadData, EdgekitError, TrustError, UnsupportedError
from edgekit.sources import _vetted, pt2
from edgekit.sources._pt2_graph import clean_program
from edgekit.sources.pt2 import load_pt2, rebuild

Members = dict[str, bytes]
MODEL = "archive/models/model.json"
WEIGHTS = "archive/data/weights/model_weights_config.json"
CONSTANTS = "archive/data/constants/model_constants_config.json"
SAMPLES = "archive/data/sample_inputs/model.pt"


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * torch.tensor([1.0, -1.0])


class Command:
    """Unpickling it runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.fixture(scope="module")
def honest() -> bytes:
    """A file as torch.export.save writes it, with a dynamic batch of 4 in the example."""
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(
            Net().eval(), (torch.ones(4, 3),), dynamic_shapes={"x": {0: batch}}
        )
    sink = io.BytesIO()
    torch.export.save(program, sink)
    return sink.getvalue()


@pytest.fixture
def members(honest: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(honest)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def archive_of(members: Members) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return sink.getvalue()


def put(tmp_path: Path, data: bytes, name: str = "model.pt2") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def edited(members: Members, name: str, change: Callable[[Any], None]) -> bytes:
    """The archive with one of its JSON documents changed."""
    document = json.loads(members[name])
    change(document)
    return archive_of({**members, name: json.dumps(document).encode()})


def torch_falls_for(data: bytes, canary: Path) -> bool:
    """Whether torch's own loader runs the planted command; the canary is taken away again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Exception):  # the command has run by then, or it has not
            torch.export.load(io.BytesIO(data)).module()
    ran = canary.exists()
    canary.unlink(missing_ok=True)
    return ran


def refused(data: bytes, tmp_path: Path, canary: Path | None = None) -> EdgekitError:
    with pytest.raises((TrustError, BadData, UnsupportedError)) as caught:
        load_pt2(put(tmp_path, data))
    assert canary is None or not canary.exists()
    return caught.value


def test_an_honest_file_loads_and_computes(honest: bytes, tmp_path: Path) -> None:
    model = load_pt2(put(tmp_path, honest, "net.pt2"))
    assert model.name == "net"
    assert [(s.name, s.shape) for s in model.signature.inputs] == [("x", (4, 3))]
    program = torch.export.load(io.BytesIO(honest)).module()
    (inputs,) = model.example_inputs()
    assert torch.equal(model.run(inputs)[0], program(inputs))
    assert model.program().graph_signature.user_inputs == ("x",)


# -- SEC-01: pickles in the archive ---------------------------------------------------------------


def pickled(canary: Path) -> bytes:
    sink = io.BytesIO()
    torch.save(Command(f"touch {canary}"), sink)
    return sink.getvalue()


@pytest.mark.parametrize("config", [WEIGHTS, CONSTANTS])
@pytest.mark.parametrize("flag", [True, 1, "yes"])
def test_sec_01_weights_flagged_as_pickles(
    members: Members, tmp_path: Path, canary: Path, config: str, flag: object
) -> None:
    document = json.loads(members[config])
    entry = next(iter(document["config"].values()))
    entry["use_pickle"] = flag
    payload = f"{config.rpartition('/')[0]}/{entry['path_name']}"
    data = archive_of({**members, config: json.dumps(document).encode(), payload: pickled(canary)})
    assert torch_falls_for(data, canary)
    assert "as a pickle" in str(refused(data, tmp_path, canary))


def test_sec_01_pickled_sample_inputs_are_never_read(
    members: Members, tmp_path: Path, canary: Path
) -> None:
    data = archive_of({**members, SAMPLES: pickled(canary)})
    assert torch_falls_for(data, canary)
    model = load_pt2(put(tmp_path, data))
    assert model.signature.inputs[0].shape == (4, 3)
    assert not canary.exists()


@pytest.mark.parametrize("prefix", ["custom_obj_0", "opaque_obj_0"])
def test_sec_01_custom_objects(members: Members, tmp_path: Path, canary: Path, prefix: str) -> None:
    document = json.loads(members[CONSTANTS])
    document["config"]["planted"] = {
        "path_name": prefix,
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": None,
    }
    data = archive_of(
        {
            **members,
            CONSTANTS: json.dumps(document).encode(),
            f"archive/data/constants/{prefix}": pickle.dumps(Command(f"touch {canary}")),
        }
    )
    if prefix.startswith("opaque"):
        assert torch_falls_for(data, canary)
    assert "custom objects" in str(refused(data, tmp_path, canary))


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_sec_01_the_old_pickled_form_of_weights(
    members: Members, tmp_path: Path, canary: Path, kind: str
) -> None:
    data = archive_of({**members, f"archive/data/{kind}/model.pt": pickled(canary)})
    assert torch_falls_for(data, canary)
    assert "old, pickled form" in str(refused(data, tmp_path, canary))


def test_sec_01_the_old_form_of_the_archive(tmp_path: Path, canary: Path) -> None:
    parts = ("program.json", "state_dict.pt", "constants.pt", "example_inputs.pt")
    members = {f"serialized_{part}": pickled(canary) for part in parts}
    refused(archive_of({"version": b"8.1", **members}), tmp_path, canary)


def test_sec_02_a_plain_pickle_by_another_name(tmp_path: Path, canary: Path) -> None:
    raw = pickle.dumps(Command(f"touch {canary}"))
    assert isinstance(refused(raw, tmp_path, canary), TrustError)
    assert isinstance(refused(pickled(canary), tmp_path, canary), TrustError)


def test_sec_02_compiled_code(members: Members, tmp_path: Path) -> None:
    for name in ("data/aotinductor/model/model.so", "data/aotinductor/model/model.cpp"):
        data = archive_of({**members, f"archive/{name}": b"\x7fELF"})
        assert "compiled code" in str(refused(data, tmp_path))


# -- code in the graph's JSON ---------------------------------------------------------------------


def first_node(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"][0]


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.load",
        "torch.ops.load_library",
        "torch.ops.aten.save.default",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten._print.default",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.add.__init__",
        "torch.ops.aten.add.Tensor.__call__",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation",
        "torch.ops.mine.op.default",
        "_operator.methodcaller",
        "_operator.attrgetter",
        "math.factorial",
        "#ext:op",
        "os.system",
        "",
    ],
)
def test_operators_that_are_none(members: Members, tmp_path: Path, target: str) -> None:
    def change(document: Any) -> None:
        first_node(document)["target"] = target

    error = refused(edited(members, MODEL, change), tmp_path)
    assert isinstance(error, (TrustError, UnsupportedError))
    assert repr(target) in str(error) or target.split(".")[-2] in str(error)


def test_a_function_outside_of_torchs_operators_would_be_called(
    members: Members, tmp_path: Path, canary: Path
) -> None:
    def change(document: Any) -> None:
        node = first_node(document)
        node["target"] = "torch.os.system"
        command = {"name": "", "arg": {"as_string": f"touch {canary}"}, "kind": 1}
        node["inputs"] = [command]

    refused(edited(members, MODEL, change), tmp_path, canary)


def test_names_that_are_code(members: Members, tmp_path: Path, canary: Path) -> None:
    text = members[MODEL].decode()
    name = f"x=__import__('os').system('touch {canary}')"
    data = archive_of({**members, MODEL: text.replace('"name": "x"', f'"name": "{name}"').encode()})
    assert "as Python" in str(refused(data, tmp_path, canary))


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('touch {canary}')",
        "().__class__.__base__.__subclasses__()",
        "Symbol('s0', positive=__import__('os').system('touch {canary}'))",
        "Integer(open('{canary}', 'w'))",
        "Mul(Integer(2), exec(\"open('{canary}', 'w')\"))",
        "lambda: 0",
        "Pow(Integer(9), Integer(99999999))",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Pow(Pow(Pow(Pow(Integer(9), Integer(8)), Integer(8)), Integer(8)), Integer(8))",
        "Integer(" + "9" * 4000 + ")",
        "9**9**9**9",
        "(" * 5000,
        "Symbol('__import__')",
        ["__import__('os').system('touch {canary}')"],
        {"__import__('os').system('touch {canary}')": 1},
    ],
)
def test_sizes_that_are_code(
    members: Members, tmp_path: Path, canary: Path, expression: Any
) -> None:
    planted = json.loads(json.dumps(expression).replace("{canary}", str(canary)))

    def change(document: Any) -> None:
        sizes = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = planted

    data = edited(members, MODEL, change)
    if str(expression).startswith("__import__"):
        assert torch_falls_for(data, canary)
    assert isinstance(refused(data, tmp_path, canary), TrustError)


def test_guards_that_are_code_are_dropped(members: Members, tmp_path: Path, canary: Path) -> None:
    def change(document: Any) -> None:
        document["guards_code"] = [f"__import__('os').system('touch {canary}') == 0"]

    load_pt2(put(tmp_path, edited(members, MODEL, change))).program()
    assert not canary.exists()


def test_modules_named_in_tree_specs_are_not_imported(
    members: Members, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text(f"open({str(canary)!r}, 'w').close(); Kind = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    context = {
        "default_factory_module": "planted",
        "default_factory_name": "Kind",
        "dict_context": [],
    }

    def change(document: Any) -> None:
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        spec = json.loads(signature["in_spec"])
        spec[1]["children_spec"][1] = {
            "type": "collections.defaultdict",
            "context": context,
            "children_spec": [],
        }
        signature["in_spec"] = json.dumps(spec)

    data = edited(members, MODEL, change)
    assert torch_falls_for(data, canary)
    load_pt2(put(tmp_path, data))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            lambda d: d["range_constraints"].update(u99999999={"min_val": 0, "max_val": 1}),
            TrustError,
        ),
        (
            lambda d: d["range_constraints"].update({"os.x": {"min_val": 0, "max_val": 1}}),
            TrustError,
        ),
        (lambda d: d["schema_version"].update(major=9), UnsupportedError),
        (lambda d: d["verifiers"].append("EVIL"), UnsupportedError),
        (lambda d: d["graph_module"].pop("graph"), BadData),
        (lambda d: d["graph_module"]["signature"]["input_specs"].pop(), BadData),
        (
            lambda d: d["graph_module"]["graph"].update(custom_obj_values={"x": {"name": "x"}}),
            TrustError,
        ),
        (lambda d: first_node(d).update(target=["torch.load"]), TrustError),
        (
            lambda d: first_node(d)["inputs"].append({"name": "y", "arg": {"as_int": "1"}}),
            TrustError,
        ),
        (
            lambda d: d["graph_module"]["signature"]["input_specs"][0]["parameter"].update(
                parameter_name="__class__"
            ),
            TrustError,
        ),
        (
            lambda d: d["graph_module"]["signature"]["input_specs"][0]["parameter"].update(
                parameter_name="absent"
            ),
            BadData,
        ),
    ],
)
def test_graphs_that_are_malformed(
    members: Members, tmp_path: Path, change: Callable[[Any], None], error: type[EdgekitError]
) -> None:
    assert type(refused(edited(members, MODEL, change), tmp_path)) is error


@pytest.mark.parametrize(
    "text", [b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[" * 100_000, b"\xff", b"", b"[]", b"9" * 9999]
)
def test_documents_that_two_parsers_read_differently(
    members: Members, tmp_path: Path, text: bytes
) -> None:
    for name in (MODEL, WEIGHTS, CONSTANTS):
        assert isinstance(refused(archive_of({**members, name: text}), tmp_path), BadData)


# -- SEC-02: tricks with the container ------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["archive/../x", "/etc/passwd", "archive//x", "archive/data/weights/..", "a\\b", "./x"]
)
def test_sec_02_unsafe_member_names(members: Members, tmp_path: Path, name: str) -> None:
    data = archive_of({**members, name: b"x"})
    assert isinstance(refused(data, tmp_path), TrustError)


@pytest.mark.parametrize(
    "name",
    [
        "archive/data/weights/evil.bin",
        "other/models/model.json",
        "archive/run.py",
        "archive/data/weights/weight_x",
    ],
)
def test_sec_02_unknown_members(members: Members, tmp_path: Path, name: str) -> None:
    assert isinstance(refused(archive_of({**members, name: b"x"}), tmp_path), TrustError)


def test_sec_02_duplicate_members(members: Members, tmp_path: Path) -> None:
    sink = io.BytesIO(archive_of(members))
    with zipfile.ZipFile(sink, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(zipfile.ZipInfo(MODEL), members[MODEL])
    assert "twice" in str(refused(sink.getvalue(), tmp_path))


def test_sec_02_compressed_members_and_so_zip_bombs(members: Members, tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("archive/extra/bomb", bytes(2**24))
    assert "compressed" in str(refused(sink.getvalue(), tmp_path))


def test_sec_02_bytes_that_belong_to_no_member(honest: bytes, tmp_path: Path) -> None:
    for data in (b"#!/bin/sh\n" + honest, honest + b"\0", honest[:-2] + b"\1\0x"):
        refused(data, tmp_path)
    # Bytes before the archive, with every offset moved to fit: two readers agree, we still don't.
    moved = io.BytesIO()
    moved.write(b"MZ" * 8)
    with zipfile.ZipFile(moved, "a") as archive:
        archive.writestr("archive/archive_format", "pt2")
    refused(moved.getvalue(), tmp_path)


def test_sec_02_local_headers_that_disagree_with_the_directory(
    members: Members, tmp_path: Path
) -> None:
    data = archive_of(members)
    name = MODEL.encode()
    swapped = data.replace(name, name.replace(b"model.json", b"other.json"), 1)
    assert "disagrees" in str(refused(swapped, tmp_path))
    central = data.rindex(b"PK\1\2")
    for offset, what in ((8, b"\x01\x00"), (10, b"\x08\x00"), (16, b"\0\0\0\0"), (20, b"\1\0\0\0")):
        changed = bytearray(data)
        changed[central + offset : central + offset + len(what)] = what
        assert isinstance(refused(bytes(changed), tmp_path), TrustError), offset


def test_sec_02_a_wrong_checksum(honest: bytes, tmp_path: Path) -> None:
    at = honest.index(b"schema_version")
    data = honest[:at] + b"SCHEMA" + honest[at + 6 :]
    assert "checksum" in str(refused(data, tmp_path))


def test_sec_02_cut_short_anywhere(honest: bytes) -> None:
    for length in range(0, len(honest), 97):
        with pytest.raises((BadData, TrustError)):
            rebuild(honest[:length], "cut.pt2")


def test_sec_02_flipped_bytes_never_get_past_the_reader(honest: bytes) -> None:
    rng = random.Random(20)
    kept = rebuild(honest, "honest.pt2")
    for _ in range(400):
        data = bytearray(honest)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            got = rebuild(bytes(data), "flipped.pt2")
        except (BadData, TrustError, UnsupportedError):
            continue
        assert got == kept  # a flip in padding, or in a date


def test_mutated_graphs_are_loaded_or_refused_and_nothing_else(members: Members) -> None:
    rng = random.Random(21)
    odd = [None, -1, 2**70, "", "os.system", [], {}, True, 1.5, {"as_expr": {}}, [[]], "\0"]

    def spots(value: Any) -> Iterator[tuple[Any, Any]]:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in list(items):
            yield value, key
            if isinstance(item, (dict, list)):
                yield from spots(item)

    for _ in range(300):
        document = json.loads(members[MODEL])
        holder, key = rng.choice(list(spots(document)))
        holder[key] = rng.choice(odd)
        with contextlib.suppress(BadData, TrustError, UnsupportedError):
            clean = clean_program(json.dumps(document).encode(), "mutated")
            for place, name in spots(clean.document):
                if name in ("target", "name", "as_name", "expr_str", "in_spec", "guards_code"):
                    assert place[name] != "os.system"


# -- SEC-03: sizes ---------------------------------------------------------------------------------


def huge(meta: Any) -> None:
    meta["sizes"] = [{"as_int": 2**20}, {"as_int": 2**20}]
    meta["strides"] = [{"as_int": 2**20}, {"as_int": 1}]


@pytest.mark.parametrize(
    "change",
    [
        huge,
        lambda meta: meta.update(storage_offset={"as_int": 10**6}),
        lambda meta: meta.update(storage_offset={"as_int": -1}),
        lambda meta: meta["strides"][0].update(as_int=10**6),
        lambda meta: meta["sizes"][0].update(as_int=-5),
        lambda meta: meta["sizes"].append({"as_int": 4}),
        lambda meta: meta["sizes"].append({"as_expr": {"expr_str": "exit()", "hint": None}}),
        lambda meta: meta.update(dtype=8),
        lambda meta: meta.update(dtype=99),
        lambda meta: meta.update(layout=1),
        lambda meta: meta.clear(),
    ],
)
def test_sec_03_weights_that_reach_beyond_their_bytes(
    members: Members, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    def change_all(document: Any) -> None:
        change(document["config"]["linear.weight"]["tensor_meta"])

    error = refused(edited(members, WEIGHTS, change_all), tmp_path)
    assert isinstance(error, (BadData, UnsupportedError))


def test_sec_03_an_empty_file_does_not_become_a_huge_tensor(
    members: Members, tmp_path: Path
) -> None:
    document = json.loads(members[WEIGHTS])
    huge(document["config"]["linear.weight"]["tensor_meta"])
    file = f"archive/data/weights/{document['config']['linear.weight']['path_name']}"
    data = archive_of({**members, WEIGHTS: json.dumps(document).encode(), file: b""})
    assert "holds 0" in str(refused(data, tmp_path))


def test_sec_03_paths_in_the_configuration_stay_in_the_archive(
    members: Members, tmp_path: Path
) -> None:
    for path in ("../../../etc/passwd", "/etc/passwd", "tensor_0", "weight_99", "weight_0\n"):

        def change(document: Any, path: str = path) -> None:
            document["config"]["linear.weight"]["path_name"] = path

        assert isinstance(refused(edited(members, WEIGHTS, change), tmp_path), TrustError)


def test_sec_03_sizes_in_the_end_record(honest: bytes) -> None:
    for offset in (8, 10, 12, 16):
        data = bytearray(honest)
        struct.pack_into("<H", data, len(data) - 22 + offset, 0xFFF0)
        with pytest.raises((BadData, TrustError)):
            rebuild(bytes(data), "end.pt2")
    with pytest.raises(TrustError, match="at most"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_vetted, "MAX_MEMBERS", 3)
        rebuild(honest, "many.pt2")
    with pytest.raises(TrustError, match="larger than"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pt2, "MAX_JSON_BYTES", 100)
        rebuild(honest, "long.pt2")


# -- SEC-10: what the path leads to ---------------------------------------------------------------


def test_sec_10_a_file_swapped_after_it_was_vetted_is_not_loaded(
    honest: bytes, members: Members, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, honest)
    vet = pt2.clean_program

    def vet_then_swap(*args: Any) -> Any:
        clean = vet(*args)
        path.write_bytes(archive_of({**members, SAMPLES: pickled(canary)}))
        return clean

    monkeypatch.setattr(pt2, "clean_program", vet_then_swap)
    assert load_pt2(path).signature.inputs[0].name == "x"
    assert not canary.exists()


def test_sec_10_pipes_devices_and_directories(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.pt2"
    os.mkfifo(pipe)
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "zero.pt2").symlink_to("/dev/zero")
    (tmp_path / "gone.pt2").symlink_to(tmp_path / "nothing")
    put(tmp_path, b"", "empty.pt2")
    for name in ("pipe", "folder", "zero", "gone", "empty"):
        with pytest.raises(BadData):
            load_pt2(tmp_path / f"{name}.pt2")


def test_sec_10_a_link_to_a_regular_file_is_followed(honest: bytes, tmp_path: Path) -> None:
    put(tmp_path, honest, "blob")
    link = tmp_path / "linked.pt2"
    link.symlink_to(tmp_path / "blob")
    assert load_pt2(link).name == "linked"
