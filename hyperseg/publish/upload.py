"""Send a network to the Hugging Face Hub: configuration, weights and model card in one commit."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import hyperseg
from hyperseg._files import printable
from hyperseg.evaluation import Evaluation
from hyperseg.models import HyperSeg, load
from hyperseg.models.hub import LIBRARY, LOG_IN, PREFIX, HubName, hub_errors, hub_name, hub_package, hub_reason
from hyperseg.models.released import is_offline
from hyperseg.models.storage import CONFIG_FILE, WEIGHTS_FILE
from hyperseg.publish.card import PublishError, is_unedited, model_card

CARD_FILE = "README.md"


@dataclass(frozen=True)
class Pushed:
    """What a push did: the address of the repository, its newest commit, and whether there is anything new."""

    url: str
    commit: str
    created: bool
    changed: bool


def push(
    folder: str | os.PathLike[str],
    repository: str,
    license: str,
    license_link: str | None = None,
    evaluation: Evaluation | None = None,
    private: bool = False,
    replace_card: bool = False,
) -> Pushed:
    """Send a network to the Hugging Face Hub, as one commit to the branch main; the repository is made if needed.

    Args:
        folder: what :func:`hyperseg.save` wrote.
        repository: "OWNER/NAME".
        license: of the weights, as the Hub abbreviates it. It has no default: only their owner knows, and the terms of
            the data that they were trained on may restrict it.
        license_link: address of the licence's text, needed if ``license`` is "other".
        evaluation: the network's scores, for the card.
        private: make a new repository that only its owner can see.
        replace_card: replace the card that is there, even if somebody edited it.

    Raises:
        CheckpointError: the folder has no network that can be loaded, or the Hub cannot be reached or refuses it.
        PublishError: nobody is logged in, the evaluation is not of this network, or something there would be lost.
    """
    name = repository_name(repository)
    network, weights = load_folder(folder)
    card = model_card(network, name.repository, license, license_link, evaluation)
    hub = hub_package("hyperseg push")
    if is_offline() or hub.constants.HF_HUB_OFFLINE:
        raise PublishError("the network is turned off (HYPERSEG_OFFLINE or HF_HUB_OFFLINE); allow it to push")
    if hub.get_token() is None:
        raise PublishError(f"nobody is logged in at {hub.constants.ENDPOINT}; {LOG_IN}. The token must be for writing")
    api = hub.HfApi(**LIBRARY)
    with hub_errors(name):
        _validate(card)
        found = _repository(api, name)
        if found is not None:
            _check_visibility(name, found.private, private)
            if not replace_card:
                _check_card(hub, name, found)
        else:
            api.create_repo(name.repository, private=private or None)
    with hub_errors(name), _with_hint(name, created=found is None):
        add = hub.CommitOperationAdd
        config = json.dumps(network.config.to_dict(), indent=2, allow_nan=False) + "\n"
        commit = api.create_commit(
            name.repository,
            [add(CONFIG_FILE, config.encode()), add(WEIGHTS_FILE, weights), add(CARD_FILE, str(card).encode())],
            commit_message=f"Upload {network.config.name} by hyperseg {hyperseg.__version__}",
            parent_commit=None if found is None else found.sha,
        )
    changed = found is None or commit.oid != found.sha
    return Pushed(f"{api.endpoint}/{name.repository}", commit.oid, found is None, changed)


def repository_name(text: str) -> HubName:
    """Parse "OWNER/NAME". Raises PublishError."""
    try:
        name = hub_name(text)
    except ValueError:
        name = None
    if name is None or name.revision is not None or text.startswith(PREFIX):
        raise PublishError(
            f"{printable(text)!r} cannot be a repository to push to; give OWNER/NAME: your account or organisation, "
            "and a name in letters, digits, '-', '_' and '.'"
        )
    return name


def load_folder(folder: str | os.PathLike[str]) -> tuple[HyperSeg, Path]:
    """Return the network that :func:`hyperseg.save` wrote to a folder, and the file with its weights.

    Raises:
        CheckpointError: it is damaged, or has values that are not finite.
        PublishError: it is something else.
    """
    path = Path(folder)
    if not path.is_dir():
        kind = "a file" if path.exists() else "not there"
        raise PublishError(f"{printable(path)} is {kind}; give a folder that hyperseg.save wrote ({_convert()})")
    if not (path / WEIGHTS_FILE).is_file():
        final = path / "final"
        hint = f"; {printable(final)} does" if (final / WEIGHTS_FILE).is_file() else ""
        raise PublishError(f"{printable(path)} has no {WEIGHTS_FILE}; give a folder that hyperseg.save wrote{hint}")
    return load(path), path / WEIGHTS_FILE


def _convert() -> str:
    return 'of another file: hyperseg.save(hyperseg.load("FILE"), "FOLDER")'


def _validate(card: Any) -> None:
    """Have the Hub check the card's metadata, before anything is made. Raises PublishError."""
    try:
        card.validate()
    except ValueError as error:
        if getattr(error, "response", None) is not None:
            raise
        raise PublishError(f"the Hub refuses the card: {_problems(str(error))}") from None


def _problems(text: str) -> str:
    """Return the messages in the Hub's JSON about a card."""
    try:
        return printable("; ".join(each["message"] for each in json.loads(text)["errors"]))
    except (ValueError, KeyError, TypeError):
        return printable(" ".join(text.split()))


def _repository(api: Any, name: HubName) -> Any:
    """Return what the Hub says about a repository; None if it does not exist."""
    from huggingface_hub import errors

    try:
        return api.model_info(name.repository)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        return None


def _check_visibility(name: HubName, is_private: bool | None, private: bool) -> None:
    if private and not is_private:
        raise PublishError(
            f"{name.repository} exists and is public, so --private cannot hold; change that in its settings on the "
            "Hub, or take another name"
        )


def _check_card(hub: ModuleType, name: HubName, found: Any) -> None:
    """Check that no card is replaced that somebody wrote or edited. Raises PublishError."""
    if not any(file.rfilename == CARD_FILE for file in found.siblings or []):
        return
    path = hub.hf_hub_download(name.repository, CARD_FILE, revision=found.sha, **LIBRARY)
    if not is_unedited(Path(path).read_text(encoding="utf-8", errors="replace")):
        raise PublishError(
            f"the card of {name.repository} ({CARD_FILE}) was written or edited by somebody, and would be lost; "
            "--replace-card replaces it, --dry-run shows the new one"
        )


@contextmanager
def _with_hint(name: HubName, created: bool) -> Iterator[None]:
    """Say what a failed commit leaves, or means."""
    try:
        yield
    except Exception as error:
        if getattr(getattr(error, "response", None), "status_code", None) == 412:
            raise PublishError(f"{name.repository} was changed meanwhile; look at it, and push again") from None
        if created:
            made = f"{name.repository} was made, but has no files yet"
            raise PublishError(f"{made}: it {hub_reason(error, name)}; then push again") from error
        raise
