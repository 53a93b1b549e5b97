"""Networks on the Hugging Face Hub: ``hf-hub:OWNER/NAME`` is a repository with the two files of ``hyperseg.save``.

``hf-hub:OWNER/NAME@REVISION`` is a branch, a tag or a commit of it. The package huggingface_hub, which timm requires,
downloads the files to its own cache, and its settings hold: ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN``,
``HF_HUB_OFFLINE``. ``HYPERSEG_OFFLINE=1`` turns downloads off here too. Nothing in the files is executed.
"""

import contextlib
import errno
import json
import logging
import re
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import hyperseg
from hyperseg._files import printable
from hyperseg._text import brief
from hyperseg.models.config import CONFIG_FILE, WEIGHTS_FILE, HyperSegConfig
from hyperseg.models.errors import CheckpointError
from hyperseg.models.released import is_offline

if TYPE_CHECKING:
    import torch

    from hyperseg.models.hyperseg import HyperSeg

PREFIX = "hf-hub:"
LIBRARY = {"library_name": "hyperseg", "library_version": hyperseg.__version__}  # named in each request
_MOST_BYTES = 2 * 10**9  # the published networks have at most 160 MB
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_REVISION = r"(?!/)[^\s@~^:?*\[\\]+"


class HubError(CheckpointError):
    """The Hub cannot be reached, refuses something or has something else. The message says what to do."""


@dataclass(frozen=True)
class HubName:
    """A repository of the Hub, "OWNER/NAME", and a branch, tag or commit of it; None: its branch main."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub_name(text: str) -> bool:
    """Return whether a text names something on the Hub, rightly or not: it begins with ``hf-hub:``."""
    return text.startswith(PREFIX)


def hub_name(text: str) -> HubName:
    """Parse ``hf-hub:OWNER/NAME`` or ``hf-hub:OWNER/NAME@REVISION``.

    Raises:
        HubError: it is something else.
    """
    repository, at, revision = text.removeprefix(PREFIX).partition("@")
    _, _, name = repository.partition("/")
    valid = re.fullmatch(f"{_PART}/{_PART}", repository) is not None
    if not valid or any(each in repository for each in ("--", "..")) or name.endswith(".git"):
        alone = re.fullmatch(_PART, repository) is not None
        reason = "it has no OWNER/" if alone else f"{printable(repository)!r} cannot be a repository"
        raise HubError(
            f"{printable(text)} is not understood: {reason}; give {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION, "
            "in letters, digits, '-', '_' and '.', as in the repository's address"
        )
    if at and (not re.fullmatch(_REVISION, revision) or ".." in revision):
        raise HubError(
            f"{printable(text)} is not understood: {printable(revision)!r} cannot be a revision; "
            "give a branch, a tag or a commit after the @, or leave the @ out"
        )
    return HubName(repository, revision or None)


def load_from_hub(name: HubName, device: "str | torch.device" = "cpu", check_finite: bool = True) -> "HyperSeg":
    """Load a network from the Hub; what the cache does not have is downloaded.

    Args:
        name: of the repository.
        device, check_finite: as in :func:`hyperseg.load`.

    Raises:
        CheckpointError: the repository cannot be read, or has no network of ours. The message says what to do.
    """
    from hyperseg.models.storage import load_own_format

    folder = hub_folder(name)
    try:
        return load_own_format(folder, device, check_finite)
    except CheckpointError as error:
        raise CheckpointError(f"{name} cannot be loaded: {error}") from None


def hub_folder(name: HubName) -> Path:
    """Return the folder in huggingface_hub's cache with both files of a network, of the same commit.

    If the Hub cannot be reached, that is the newest commit in the cache.

    Raises:
        HubError: there is no such network, or it cannot be downloaded. The message says what to do.
    """
    hub = hub_package(str(name))
    about: dict[str, Any] = {"repo_id": name.repository, "local_files_only": is_offline(), **LIBRARY}
    with hub_errors(name):
        # The small file first: it says whether the large one is worth its download.
        config = Path(hub.hf_hub_download(filename=CONFIG_FILE, revision=name.revision, **about))
        _check_config(config, name)
        commit = config.parent.name
        if not isinstance(hub.try_to_load_from_cache(name.repository, WEIGHTS_FILE, revision=commit), str):
            if not _offline(hub):
                _check_size(hub, name, commit)
            hub.hf_hub_download(filename=WEIGHTS_FILE, revision=commit, **about)
    return config.parent


def hub_package(purpose: str) -> ModuleType:
    """Return huggingface_hub, imported on first use.

    Args:
        purpose: what needs it, for the message.

    Raises:
        HubError: it cannot be imported.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(
            f"{purpose} needs the package huggingface_hub, which cannot be imported ({brief(error)}): "
            "pip install huggingface_hub"
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def hub_errors(name: HubName) -> Iterator[None]:
    """Turn what huggingface_hub raises into HubErrors that say what to do; show its progress bars on terminals only."""
    try:
        with brief_attempts(), _bars_on_terminals():
            yield
    except CheckpointError:
        raise
    except Exception as error:  # huggingface_hub documents no common base, and its HTTP library has changed
        raise HubError(f"{name} {hub_reason(error, name)}") from error


@contextlib.contextmanager
def brief_attempts() -> Iterator[None]:
    """Have huggingface_hub not try for a minute where its server's name has no address, and warn once if it tries."""
    hub = hub_package("a network on the Hugging Face Hub")
    constants: Any = hub.constants
    warnings = _Once()
    logger = logging.getLogger("huggingface_hub.utils._http")
    logger.addFilter(warnings)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or unreachable() is not None
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logger.removeFilter(warnings)


class _Once(logging.Filter):
    """Lets one message pass: those of the further attempts say the same."""

    def __init__(self) -> None:
        super().__init__()
        self._passed = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the message is the first one."""
        passes, self._passed = not self._passed, True
        return passes


def unreachable() -> str | None:
    """Return why the Hub cannot be reached: its name has no address; None if it has one, or if a proxy looks it up."""
    endpoint = hub_package("a network on the Hugging Face Hub").constants.ENDPOINT
    host = urllib.parse.urlsplit(endpoint).hostname
    if host is None or urllib.request.getproxies().keys() & {"https", "http", "all"}:
        return None
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        return f"{host} could not be found ({brief(error)}); is there a network?"
    return None


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    import huggingface_hub

    utils: Any = huggingface_hub.utils  # which says in no other way that it exports these functions
    if sys.stderr.isatty() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def hub_reason(error: Exception, name: HubName) -> str:
    """Return why something failed: the predicate of a message whose subject is the repository."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    endpoint = hub.constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"is gated: its owner decides who may download it. Ask for access at {endpoint}/{name.repository}" + (
            "" if hub.get_token() else f", then {LOG_IN}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "its owner has not given this account access" if hub.get_token() else f"{LOG_IN} if you have access"
        return f"does not exist at {endpoint}, or it is private: check the name, or {hint}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {printable(name.revision or 'main')}; give one of its branches, tags or commits"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if _offline(hub):
            return (
                f"is not in the cache ({printable(hub.constants.HF_HUB_CACHE)}), and downloads are turned off "
                "(--offline, HYPERSEG_OFFLINE or HF_HUB_OFFLINE); allow them once"
            )
        if (found := unreachable()) is not None:
            return f"is not in the cache, and {found}"
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if getattr(cause, "response", None) is not None:
            return hub_reason(cause, name)
        return f"is not in the cache, and {endpoint} could not be reached ({brief(cause)}); {_NETWORK}"
    if isinstance(error, errors.EntryNotFoundError):
        return f"is no HyperSeg network: a file is missing. {_EXPECTED}"
    if status == 401:
        return f"may not be used with this login (401: {_said(error)}); {LOG_IN} again"
    if status == 403:
        return f"may not be used in this way (403: {_said(error)}); is the token for it, and for writing?"
    if status is not None:
        return f"cannot be used now: {endpoint} reported {status} ({_said(error)}); try again later"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        where = printable(error.filename or hub.constants.HF_HUB_CACHE)
        return f"cannot be kept: {where} cannot be written ({error.strerror}); HF_HOME can name another folder"
    return f"failed: {type(error).__name__}: {brief(error)}; {_NETWORK}"


LOG_IN = "log in (hf auth login, or a token in HF_TOKEN)"
_NETWORK = "is there a network, and is HF_ENDPOINT right if it is set?"
_EXPECTED = f"Expected are {CONFIG_FILE} and {WEIGHTS_FILE}, as hyperseg.save and hyperseg push write them"


def _said(error: Exception) -> str:
    """Return the server's own message."""
    said = getattr(error, "server_message", None)
    return printable(" ".join(str(said).split())) if said else "without a message"


def _offline(hub: ModuleType) -> bool:
    return is_offline() or bool(hub.constants.HF_HUB_OFFLINE)


def _check_config(file: Path, name: HubName) -> None:
    """Check that a repository's configuration is of one of our networks. Raises HubError."""
    try:
        HyperSegConfig.from_dict(json.loads(file.read_bytes()))
    except OSError as error:
        raise HubError(f"{name}: {printable(file)} cannot be read ({brief(error)})") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise HubError(
            f"{name} is no HyperSeg network: its {CONFIG_FILE} is of something else, or damaged ({brief(error)}). "
            f"{_EXPECTED}"
        ) from None


def _check_size(hub: ModuleType, name: HubName, commit: str) -> None:
    """Check before the download that the weights are not far larger than any network. Raises HubError."""
    size = hub.get_hf_file_metadata(hub.hf_hub_url(name.repository, WEIGHTS_FILE, revision=commit)).size
    if size is not None and size > _MOST_BYTES:
        raise HubError(
            f"{name} is not downloaded: its {WEIGHTS_FILE} has {size / 1e9:.1f} GB, and networks have less than "
            f"{_MOST_BYTES / 1e9:.0f} GB; if it is right, get it by hf download and load the folder"
        )
