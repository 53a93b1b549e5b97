"""The model card of a network: README.md of its repository, with metadata that the Hugging Face Hub reads."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hyperseg
from hyperseg._files import printable
from hyperseg._text import brief, counted
from hyperseg.data.labels import LabelSet
from hyperseg.evaluation import Evaluation
from hyperseg.evaluation.results import percent
from hyperseg.models import ALIASES, VARIANTS, HyperSeg
from hyperseg.models.hub import PREFIX, HubError, hub_package
from hyperseg.models.state import weights_hash
from hyperseg.predict import label_set_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

_DATASETS = {"cityscapes": "Cityscapes", "camvid": "CamVid", "voc": "PASCAL VOC 2012"}
_MARK = "\n<!-- Written by hyperseg push. SHA-256 of all before this line: {} -->\n"
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


class PublishError(HubError):
    """A network cannot be published as asked. The message says what to do."""


def read_evaluation(path: str | os.PathLike[str]) -> Evaluation:
    """Read what ``hyperseg eval --json`` or a training run wrote.

    Raises:
        PublishError: the file cannot be read or is something else.
    """
    try:
        document = json.loads(Path(path).read_bytes())
        if not isinstance(document, dict):
            raise ValueError("this is no evaluation; give what hyperseg eval --json wrote")
        return Evaluation.from_document(document)
    except OSError as error:
        raise PublishError(f"{printable(path)} cannot be read ({brief(error)})") from None
    except (ValueError, RecursionError) as error:
        raise PublishError(f"{printable(path)}: {brief(error)}") from None


def check_evaluation(network: HyperSeg, evaluation: Evaluation) -> None:
    """Check that the scores of an evaluation are those of this network.

    Raises:
        PublishError: they are of another network, of random weights or of prediction files.
    """
    settings, name = evaluation.settings, network.config.name
    again = "give the evaluation of this folder: hyperseg eval --weights FOLDER --json FILE"
    if "model" not in settings:
        raise PublishError(f"the evaluation scores prediction files, so it says nothing about this network; {again}")
    if settings.get("random_weights"):
        raise PublishError(f"the evaluation scores random weights; {again}")
    if settings["model"] != name:
        raise PublishError(f"the evaluation is of {settings['model']}, and the folder has {name}; {again}")
    if settings.get("weights_hash") != weights_hash(network):
        weights = printable(str(settings.get("weights")))
        raise PublishError(f"the evaluation is of other weights of {name} ({weights}); {again}")


def model_card(
    network: HyperSeg,
    repository: str,
    license: str,
    license_link: str | None = None,
    evaluation: Evaluation | None = None,
) -> "ModelCard":
    """Return the model card of a network, built from what is known about it.

    Args:
        repository: "OWNER/NAME" on the Hub.
        license: of the weights, as the Hub abbreviates it, such as "cc-by-nc-4.0".
        license_link: address of its text, needed if ``license`` is "other".
        evaluation: its scores.

    Raises:
        PublishError: the evaluation is of something else, or the licence cannot be one.
        CheckpointError: huggingface_hub is missing.
    """
    if not _LICENCE.fullmatch(license):
        raise PublishError(
            f"the license {printable(license)!r} cannot be right; give the Hub's abbreviation, such as apache-2.0 or "
            "cc-by-nc-4.0 (https://huggingface.co/docs/hub/repositories-licenses), or other with the link to its text"
        )
    if license == "other" and license_link is None:
        raise PublishError("the license is other; give the link to its text too")
    if evaluation is not None:
        check_evaluation(network, evaluation)
    hub = hub_package("a model card")
    table = label_set_of(network.config)
    name = repository.partition("/")[2]
    dataset = network.config.dataset.lower()
    data = hub.ModelCardData(
        license=license,
        license_name=_slug(name) + "-license" if license == "other" else None,
        license_link=license_link,
        library_name="hyperseg",
        pipeline_tag="image-segmentation",
        tags=["hyperseg", "semantic-segmentation", "real-time", *([dataset] if dataset in _DATASETS else [])],
        metrics=["mean_iou"] if evaluation is not None else None,
        model_name=name if evaluation is not None else None,
        eval_results=None if evaluation is None else _results(evaluation),
    )
    sections = [
        _introduction(network, name),
        _usage(repository),
        _facts(network),
        _scores(evaluation),
        _classes(table, evaluation),
        _terms(network, license, license_link),
        _CITATION,
    ]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"
    text = str(hub.ModelCard(text))  # which formats the metadata in its own way
    return hub.ModelCard(text + _MARK.format(_digest(text)))


def is_unedited(card: str) -> bool:
    """Return whether the text of a card is as :func:`model_card` wrote it."""
    text, mark, rest = card.replace("\r\n", "\n").rpartition(_MARK.partition("{}")[0])
    return bool(mark) and rest.strip() == f"{_digest(text)} -->"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _results(evaluation: Evaluation) -> "list[EvalResult]":
    """Return the scores as the Hub's model index lists them, in percent."""
    from huggingface_hub import EvalResult

    data = evaluation.data
    kind = str(data["name"]).partition(" ")[0]
    about: dict[str, Any] = {
        "task_type": "image-segmentation",
        "task_name": "Semantic segmentation",
        "dataset_type": _slug(kind),
        "dataset_name": _DATASETS.get(kind, str(data["name"])),
        "dataset_split": str(data["split"]),
    }
    results = [
        EvalResult(
            **about,
            metric_type="mean_iou",
            metric_name=f"mIoU in percent, protocol {protocol}",
            metric_value=round(100 * scores["miou"], 2),
            metric_config=protocol,
        )
        for protocol, scores in sorted(evaluation.protocols.items(), reverse=True)  # standard first
    ]
    accuracy = round(100 * evaluation.pixel_accuracy, 2)
    return results + [
        EvalResult(**about, metric_type="accuracy", metric_name="Pixel accuracy in percent", metric_value=accuracy)
    ]


def _introduction(network: HyperSeg, name: str) -> str:
    config = network.config
    known = (
        f"the published network {_code(config.name)}"
        if config.name in VARIANTS
        else f"a network called {_code(config.name)}"
    )
    return (
        f"# {_cell(name)}\n\n"
        f"{known[0].upper()}{known[1:]} of HyperSeg (CVPR 2021): real-time semantic segmentation with convolution "
        "weights that the network generates for every patch of the image. The weights are in the format of the "
        "Python package `hyperseg`: `config.json` and `model.safetensors`. Nothing in them is executed."
    )


def _usage(repository: str) -> str:
    source = f"{PREFIX}{repository}"
    return (
        "## How to use it\n\n"
        f"    hyperseg predict street.jpg --weights {source}\n\n"
        "```python\n"
        "import hyperseg\n\n"
        f'model = hyperseg.load("{source}")  # a PyTorch module, in eval mode\n'
        "engine = hyperseg.build_engine(model, size=(1024, 2048))  # RGB uint8 frames -> labels\n"
        "```"
    )


def _facts(network: HyperSeg) -> str:
    config = network.config
    short = [alias for alias, name in ALIASES.items() if name == config.name]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    rows = {
        "network": _code(config.name) + (f" (`{short[0]}`)" if short else ""),
        "parameters": f"{parameters / 1e6:.1f} M",
        "encoder": _code(config.encoder),
        "encoder began with": _code(config.encoder_weights) if config.encoder_weights else "not recorded",
        "image size, height x width": "{}x{}; any other works".format(*config.resolution),
        "images are normalised by": f"mean {_numbers(config.mean)}, deviation {_numbers(config.std)} of RGB in [0, 1]",
        "classes": f"{config.num_classes} ({_DATASETS.get(config.dataset.lower(), 'of its own')})",
        "written by": f"hyperseg {hyperseg.__version__}",
    }
    return "## Network\n\n" + _table(("", ""), rows.items())


def _scores(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "## Scores\n\nNo scores were given with these weights."
    data, standard, official = evaluation.data, evaluation.protocols["standard"], evaluation.protocols["official"]
    count, total = len(evaluation.images), data["images"]
    counting = sum(value is not None for value in standard["per_class"])
    rows = {
        "mIoU, protocol standard": percent(standard["miou"])
        + f" (mean over the {counting} of {counted(len(evaluation.classes), 'class')} that are labelled or predicted)",
        "mIoU, protocol official": f"{percent(official['miou'])} (mean over all classes, absent ones as 0)",
        "pixel accuracy": percent(evaluation.pixel_accuracy),
    }
    if evaluation.boundary_iou is not None:
        ratio = f"within {evaluation.boundary_iou['ratio']:g} of the diagonal"
        rows["boundary IoU"] = f"{percent(evaluation.boundary_iou['miou'])} ({ratio})"
    rows |= {
        "data": f"{_cell(data['name'])}, split {_cell(data['split'])}: {_cell(data['form'])}",
        "images": f"{count}" if count == total else f"ONLY {count} of {total} are scored",
        "manifest of the data": _code(data["manifest_hash"][:16])
        if data["manifest_hash"]
        else "none: a file is missing",
        "evaluated": f"{_cell(evaluation.created)} by hyperseg {_cell(evaluation.version)}",
    }
    shown = {key: evaluation.settings[key] for key in _SETTINGS if evaluation.settings.get(key) not in (None, False)}
    rows |= {key.replace("_", " "): _cell(_text(value)) for key, value in shown.items()}
    return "## Scores\n\nIn percent, computed by `hyperseg eval`; nobody else has verified them.\n\n" + _table(
        ("", ""), rows.items()
    )


# Settings of an evaluation that scores depend on; paths of the machine stay out.
_SETTINGS = (
    "runs_as",
    "dtype",
    "size",
    "resize",
    "scales",
    "flip",
    "combine",
    "window",
    "stride",
    "trained_on",
    "steps",
)


def _classes(table: LabelSet, evaluation: Evaluation | None) -> str:
    heads = ["index", "class", "colour"]
    columns: list[Sequence[Any]] = [
        range(len(table)),
        [_cell(name) for name in table.classes],
        ["`#{:02x}{:02x}{:02x}`".format(*color) for color in table.colors],
    ]
    if evaluation is not None:
        heads += ["IoU standard", "IoU official"]
        names = [
            each["name"] for each in evaluation.classes
        ]  # the data set may lack one of the network's, such as Void
        for protocol in ("standard", "official"):
            found = dict(zip(names, evaluation.protocols[protocol]["per_class"], strict=True))
            columns.append([percent(found.get(name)) for name in table.classes])
    return "## Classes\n\n" + _table(heads, zip(*columns, strict=True))


def _terms(network: HyperSeg, license: str, link: str | None) -> str:
    named = f"[{license}]({link})" if link else license
    dataset = _DATASETS.get(network.config.dataset.lower())
    data = (
        f" The terms of {dataset}, whose classes it has, hold beside it if it was trained on that." if dataset else ""
    )
    return (
        f"## Licence\n\nThe weights are under the licence {named}, which their owner chose.{data} "
        "The code of `hyperseg` is under Apache-2.0."
    )


_CITATION = """## Citation

```bibtex
@inproceedings{nirkin2021hyperseg,
  title     = {{HyperSeg}: Patch-wise Hypernetwork for Real-time Semantic Segmentation},
  author    = {Nirkin, Yuval and Wolf, Lior and Hassner, Tal},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2021}
}
```"""


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _cell(value: Any) -> str:
    """Return a text for a cell of a table: one line, and nothing in it is Markdown or HTML."""
    line = printable(" ".join(str(value).split()))
    return re.sub(r"([\\|`*_<>\[\]#])", lambda found: f"&#{ord(found[0])};", line)


def _code(value: Any) -> str:
    """Return a text as code in a cell of a table."""
    return "`" + printable(" ".join(str(value).split())).replace("`", "'").replace("|", "\\|") + "`"


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else "yes" if value is True else str(value)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "custom"
