"""Students made of their teachers: fewer layers, narrower, fewer words; encoders distilled."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekit._torchvision import ensure_importable
from edgekit.compress._checkpoint import digest_of
from edgekit.compress._matching import KINDS, Sides, captured
from edgekit.compress.distill import DistillSettings, Pair, distill
from edgekit.compress.student import layer_pairs, student_of
from edgekit.compress.train import TrainSettings
from edgekit.compress.vocabulary import trim_vocabulary
from edgekit.data.training import TextSet
from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.runtime.preprocess import TextPreprocess

pytestmark = pytest.mark.usefixtures("one_thread")

_PIECES = (
    "[PAD] [unused] [UNK] [CLS] [SEP] [MASK] a b ##a ##b play ##ing ##er stop loud quiet the music "
    "lamp turn on off volume up down rare ##rer ideal ! \u00e9"
)
WORDS = tuple(_PIECES.split())
TOKENIZER = TextPreprocess(vocab=WORDS, max_length=10)
TEXTS = ("turn the lamp on", "turn the lamp off", "play music", "stop playing music!", "volume up")
LABELS = (1, 0, 1, 0, 1)
COMMON: dict[str, Any] = {"vocab_size": len(WORDS) + 3, "max_position_embeddings": 12}


class Texts:
    """The texts over and over."""

    def __init__(self, preprocess: TextPreprocess = TOKENIZER, count: int = 40) -> None:
        made = [preprocess.apply(TEXTS[i % len(TEXTS)]) for i in range(count)]
        self.inputs = {
            name: torch.cat([torch.from_numpy(m[name]) for m in made]) for name in made[0]
        }
        self.y = torch.tensor([LABELS[i % len(TEXTS)] for i in range(count)])

    def __len__(self) -> int:
        return len(self.y)

    def batch(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        return {n: v[rows] for n, v in self.inputs.items()} | {"y": self.y[rows], "row": rows}


@cache
def hugging_face() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries' own, while they are imported
        ensure_importable()
        transformers = pytest.importorskip("transformers")
        for kind in ("Bert", "DistilBert", "Roberta", "AutoModel"):
            getattr(transformers, f"{kind}ForSequenceClassification")
    return transformers


def encoder(kind: str = "bert", seed: int = 0, layers: int = 4, **options: Any) -> Any:
    transformers = hugging_face()
    makers: dict[str, Any] = {
        "bert": (transformers.BertConfig, transformers.BertForSequenceClassification),
        "distilbert": (
            transformers.DistilBertConfig,
            transformers.DistilBertForSequenceClassification,
        ),
        "roberta": (transformers.RobertaConfig, transformers.RobertaForSequenceClassification),
    }
    config, model = makers[kind]
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_heads": 4, "hidden_dim": 48}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = model(config(**{**COMMON, **sizes, "num_hidden_layers": layers, **options}))
        for name, value in made.named_parameters():
            if value.dim() > 1:  # weights of 0.02 would hardly tell one layer from another
                nn.init.normal_(value, std=0.3)
            elif "LayerNorm.weight" in name or "layer_norm.weight" in name:
                nn.init.uniform_(value, 0.5, 1.5)
            else:
                nn.init.normal_(value, std=0.1)
    return made.eval()


def answers(model: Any, preprocess: TextPreprocess = TOKENIZER) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**Texts(preprocess).inputs).logits
    return logits


# -- fewer layers -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_a_student_is_the_teachers_own_layers_and_can_be_saved(kind: str, tmp_path: Path) -> None:
    transformers = hugging_face()
    teacher = encoder(kind)
    before = digest_of(teacher.state_dict())
    student: Any = student_of(teacher)
    assert type(student) is type(teacher) and student.config.num_hidden_layers == 2
    assert student.config.student_of == {"layers": [0, 2], "of": 4}
    torch.testing.assert_close(answers(student_of(teacher, range(4))), answers(teacher))

    # The very layers: the teacher without its layers 1 and 3 answers alike.
    holder = next(m for m in teacher.modules() if isinstance(m, nn.ModuleList))
    one, three = holder[1], holder[3]
    kept = [m for m in holder if m is not one and m is not three]
    del holder[:]
    holder.extend(kept)
    torch.testing.assert_close(answers(student), answers(teacher))

    student.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert digest_of(loaded.state_dict()) == digest_of(student.state_dict())
    torch.testing.assert_close(answers(loaded.eval()), answers(student))
    assert loaded.config.student_of == {"layers": [0, 2], "of": 4}
    again = encoder(kind)
    assert digest_of(again.state_dict()) == before
    assert not {p.data_ptr() for p in student.parameters()} & {
        p.data_ptr() for p in teacher.parameters()
    }


def test_what_cannot_be_a_student_is_refused() -> None:
    teacher = encoder()
    for layers, told in (((0, 4), "no layer 4"), ((-1,), "no layer -1"), ((), "none was asked")):
        with pytest.raises(UsageError, match=told):
            student_of(teacher, layers)
    for sizes, told in (
        ({"hidden_size": 40}, "hidden_size 40: the teacher's is 32"),
        ({"hidden_size": 20}, "no multiple of the teacher's heads of 8"),
        ({"hidden_size": 16, "heads": 1}, "none may be larger than the teacher's, of 8"),
        ({"intermediate_size": 49}, "allowed: 1 to 48"),
    ):
        with pytest.raises(UsageError, match=told):
            student_of(teacher, **sizes)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="Linear is no encoder that is known here"):
        student_of(nn.Linear(2, 2))
    with pytest.raises(UnsupportedError, match="AutoModelForSequenceClassification"):
        student_of(teacher.bert)


# -- narrower -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_a_narrower_student_has_its_sizes_and_starts_near(kind: str) -> None:
    teacher = encoder(kind, layers=2)
    wide: Any = student_of(teacher, (0, 1))
    kept, fitted = (
        student_of(wide, (0, 1), hidden_size=16, heads=4, samples=samples)
        for samples in (None, Texts().batch(torch.arange(40), None))
    )
    for student in (kept, fitted):
        config: Any = student.config
        assert (config.hidden_size, config.num_attention_heads) == (16, 4)
        inner = config.hidden_dim if kind == "distilbert" else config.intermediate_size
        assert inner == 24
    assert kept.config.student_of["hidden"] == "select"  # type: ignore[union-attr, index]
    assert fitted.config.student_of["hidden"] == "components"  # type: ignore[union-attr, index]
    distance = [
        float((answers(model) - answers(teacher)).norm() / answers(teacher).norm())
        for model in (fitted, kept)
    ]
    # Five texts say less than 16 dimensions, so that the fit can answer almost alike.
    assert distance[0] < 0.1 < distance[1]


def test_a_narrower_student_of_the_same_width_is_the_teacher() -> None:
    teacher = encoder(layers=2)
    same = student_of(teacher, (0, 1), hidden_size=32)
    torch.testing.assert_close(answers(same), answers(teacher), rtol=1e-5, atol=1e-5)
    again = [
        digest_of(
            dict(
                student_of(
                    teacher, hidden_size=16, samples=Texts().batch(torch.arange(9), None)
                ).state_dict()
            )
        )
        for _ in range(2)
    ]
    assert again[0] == again[1]


# -- comparisons of encoders --------------------------------------------------------------


def test_pairs_follow_the_layers_that_were_taken() -> None:
    teacher = encoder(layers=6)
    student = student_of(teacher)
    assert layer_pairs(student, teacher) == [
        Pair("bert.encoder.layer.2", "bert.encoder.layer.5", "cosine")
    ]
    every = layer_pairs(student, teacher, "attention", every=True, weight=3.0)
    assert [(p.student, p.teacher, p.weight) for p in every] == [
        (f"bert.encoder.layer.{i}.attention.self", f"bert.encoder.layer.{j}.attention.self", 1.0)
        for i, j in ((0, 1), (1, 3), (2, 5))
    ]
    with pytest.raises(UsageError, match="make it with student_of"):
        layer_pairs(teacher, teacher)
    with pytest.raises(UsageError, match="made of a teacher of 6 layers; this one has 3"):
        layer_pairs(student, student_of(teacher))
    with pytest.raises(UsageError, match="feature maps"):
        layer_pairs(student, teacher, "hint")


@pytest.mark.parametrize(
    ("kind", "match", "cache"),
    [
        ("bert", "hidden", "disk"),
        ("distilbert", "cosine", "off"),
        ("bert", "attention", "off"),
        ("distilbert", "relation", "disk"),
    ],
)
def test_an_encoders_layers_come_nearer(kind: str, match: Any, cache: Any) -> None:
    teacher = encoder(kind)
    student = student_of(teacher)
    pairs = layer_pairs(student, teacher, match, weight=5.0)
    trained = distill(
        student,
        teacher,
        Texts(),
        DistillSettings(alpha=0.0, cache=cache),
        train=TrainSettings(epochs=6, batch=8, rate=2e-3),
        layers=pairs,
    )
    assert trained.curve[-1]["loss"] < 0.8 * trained.curve[0]["loss"]


@pytest.mark.parametrize("match", ["hidden", "attention"])
def test_texts_of_many_lengths_are_kept(match: Any, tmp_path: Path) -> None:
    long = [f"{text} play the music loud" for text in TEXTS]
    said, labels = [*TEXTS * 16, *long * 3], [*LABELS * 16, *LABELS * 3]
    data = TextSet(said, labels, replace(TOKENIZER, max_length=12))
    assert {data.batch(torch.tensor([i]), None)["input_ids"].shape[1] for i in (0, 90)} == {8, 12}
    teacher, states = encoder(), []
    for kept in ("disk", "off"):
        student = student_of(teacher)
        distill(
            student,
            teacher,
            data,
            DistillSettings(cache=kept),  # type: ignore[arg-type]
            # AdamW would make as much of a gradient of rounding errors as of any other.
            train=TrainSettings(epochs=2, batch=8, rule="sgd", rate=1e-3, clip=1.0),
            layers=layer_pairs(student, teacher, match),
            cache=tmp_path,
        )
        states.append(student.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-4)


def test_narrower_encoders_are_compared_where_that_is_possible() -> None:
    teacher = encoder()
    student = student_of(teacher, hidden_size=16)

    def run(pair: Pair) -> None:
        train = TrainSettings(epochs=1, batch=8)
        distill(student, teacher, Texts(), DistillSettings(), train=train, layers=[pair])

    for match in ("hidden", "relation"):
        run(layer_pairs(student, teacher, match)[0])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="an angle needs two of one shape"):
        run(layer_pairs(student, teacher, "cosine")[0])
    with pytest.raises(UsageError, match=r"has 2 heads and the teacher's 4; match='relation'"):
        run(layer_pairs(student, teacher, "attention")[0])
    with pytest.raises(UsageError, match=r"3 relation heads do not divide the student's width"):
        run(layer_pairs(student, teacher, "relation", heads=3)[0])


def test_maps_are_those_that_the_network_attends_by() -> None:
    teacher = encoder()
    teacher.set_attn_implementation("eager")
    name = "bert.encoder.layer.1.attention.self"
    kind = KINDS["attention"]
    sites = kind.sites(teacher, name)
    inputs = Texts().inputs
    with torch.no_grad(), captured(teacher, sites) as found:
        wanted = teacher(**inputs, output_attentions=True).attentions[1]
    from edgekit.compress._matching import _scores

    scores = _scores(found[sites[0]], found[sites[1]], 4)
    padding = (inputs["attention_mask"] == 0)[:, None, None, :]
    torch.testing.assert_close(scores.masked_fill(padding, -1e9).softmax(-1), wanted)


def test_padding_does_not_count() -> None:
    teacher, student = encoder(), encoder(seed=1)
    inputs = Texts().inputs
    mask = inputs["attention_mask"]
    for match, name in (
        ("hidden", "bert.encoder.layer.1"),
        ("cosine", "bert.encoder.layer.1"),
        ("attention", "bert.encoder.layer.1.attention.self"),
        ("relation", "bert.encoder.layer.1.attention.self"),
    ):
        kind = KINDS[match]
        sites = kind.sites(student, name)
        outputs = []
        for network in (student, teacher):
            with torch.no_grad(), captured(network, sites) as found:
                network(**inputs)
            outputs.append([found[site].clone() for site in sites])
        matching = kind(Sides(student, teacher, name, name, (outputs[0], outputs[1])))
        apart = matching.distance(outputs[0], outputs[1], mask)
        assert float(matching.distance(outputs[1], outputs[1], mask)) == pytest.approx(0, abs=1e-6)
        for tensor in outputs[0]:
            tensor[mask == 0] += 7
        assert torch.allclose(matching.distance(outputs[0], outputs[1], mask), apart)
        assert not torch.allclose(matching.distance(outputs[0], outputs[1], None), apart)


def test_classes_of_another_name_are_refused() -> None:
    names = {0: "no", 1: "yes"}
    teacher = encoder(id2label=names, label2id={v: k for k, v in names.items()})
    student = encoder(seed=1, id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1})
    with pytest.raises(UsageError, match="student's classes are yes, no, the teacher's no, yes"):
        distill(student, teacher, Texts(), DistillSettings(), train=TrainSettings(epochs=1))


# -- fewer words --------------------------------------------------------------------------


def test_a_trimmed_vocabulary_gives_the_same_answers_for_its_texts() -> None:
    transformers = hugging_face()
    model = encoder(pad_token_id=0)
    made = trim_vocabulary(model, TOKENIZER, TEXTS)
    assert "rare" not in made.preprocess.vocab and "[unused]" not in made.preprocess.vocab
    assert {"[MASK]", "a", "##b", "!", "##ing", "lamp"} <= set(made.preprocess.vocab)
    assert made.preprocess.vocab == tuple(WORDS[i] for i in made.rows.tolist())
    assert (made.unknown, made.changed) == (0.0, 0)
    small: Any = made.model
    assert small.config.vocab_size == len(made.rows) == len(made.preprocess.vocab) < len(WORDS)
    torch.testing.assert_close(answers(small, made.preprocess), answers(model))
    for name, value in model.state_dict().items():
        wanted = value[made.rows] if "word_embeddings" in name else value
        assert torch.equal(small.state_dict()[name], wanted), name
    theirs = transformers.BertTokenizerFast(
        vocab={w: i for i, w in enumerate(made.preprocess.vocab)}
    )
    for text in (*TEXTS, "play rarer ideal\u00e9", "abab [MASK] loud?"):
        ids = theirs(text, padding="max_length", max_length=10, truncation=True)["input_ids"]
        assert made.preprocess.apply(text)["input_ids"][0].tolist() == ids
    # A word that is not covered any more is unknown, one of letters is not.
    apply = made.preprocess.apply
    unknown = made.preprocess.vocab.index("[UNK]")
    assert apply("rare")["input_ids"][0, 1] == unknown
    assert unknown not in apply("abba")["input_ids"][0].tolist()


def test_a_bound_keeps_the_most_frequent_pieces_and_says_what_it_cost() -> None:
    model = encoder("distilbert")
    whole = trim_vocabulary(model, TOKENIZER, TEXTS, letters=False)
    made = trim_vocabulary(model, TOKENIZER, TEXTS, letters=False, size=9, keep=["quiet"])
    assert len(made.preprocess.vocab) == 9 < len(whole.preprocess.vocab)
    # Special tokens, the one to keep, and of the five that occur twice the first three.
    assert {"quiet", "play", "the", "music"} < set(made.preprocess.vocab)
    # Unknown: turn, lamp, on; turn, lamp, off; stop, playing as one, "!"; volume, up.
    assert made.changed == 4 and made.unknown == 11 / 26
    often = trim_vocabulary(model, TOKENIZER, TEXTS, letters=False, at_least=2)
    assert "music" in often.preprocess.vocab and "volume" not in often.preprocess.vocab


def test_a_vocabulary_that_cannot_be_trimmed_is_refused() -> None:
    model = encoder()
    with pytest.raises(BadData, match="no texts"):
        trim_vocabulary(model, TOKENIZER, [])
    with pytest.raises(UsageError, match=r"size 7: 10 pieces stay in any case .*single letters"):
        trim_vocabulary(model, TOKENIZER, TEXTS, size=7)
    with pytest.raises(UsageError, match="no piece 'absent'"):
        trim_vocabulary(model, TOKENIZER, TEXTS, keep=["absent"])
    more = TextPreprocess(vocab=(*WORDS, "x", "y", "z", "zz"), max_length=10)
    with pytest.raises(BadData, match="belongs to another model"):
        trim_vocabulary(model, more, TEXTS)
