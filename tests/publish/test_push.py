"""Networks sent to a server on this machine in place of the Hub: one commit, and what is refused before or after."""

import json

import pytest
import torch

import hyperseg
from hyperseg.models import CheckpointError
from hyperseg.models.hub import HubError
from hyperseg.publish import PublishError, upload
from hyperseg.publish import push as push_network
from hyperseg.publish.card import is_unedited
from tests import golden

NAME = "me/streets"


@pytest.fixture(scope="module")
def network():
    return golden.golden_model("hyperseg-s-camvid").eval()


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    """The folder of the network."""
    return hyperseg.save(network, tmp_path_factory.mktemp("own"))


@pytest.fixture
def quick(network, monkeypatch):
    """Have the network of the folder known, so that it is not built anew."""
    monkeypatch.setattr("hyperseg.publish.upload.load", lambda path: network)


@pytest.fixture
def me(hub, monkeypatch):
    """The server, with the user logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    return hub


def push(folder, name=NAME, **options):
    return push_network(folder, name, options.pop("license", "mit"), **options)


def test_there_and_back(me, saved, network):
    done = push(saved)
    repository = me.repositories[NAME]
    assert done.url == f"{me.url}/{NAME}"
    assert (done.commit, done.created, done.changed) == (repository.refs["main"], True, True)
    assert repository.messages == ["by hand", f"Upload hyperseg-s-camvid by hyperseg {hyperseg.__version__}"]
    assert set(repository.files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert repository.files["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    assert repository.files["config.json"] == (saved / "config.json").read_bytes()
    assert is_unedited(repository.files["README.md"].decode())
    assert not repository.private
    found = hyperseg.load(f"hf-hub:{NAME}").state_dict()
    assert all(torch.equal(value, found[key]) for key, value in network.state_dict().items())


def test_again(me, saved, quick):
    first = push(saved, private=True)
    assert me.repositories[NAME].private
    again = push(saved, private=True)
    assert (again.commit, again.created, again.changed) == (first.commit, False, False)
    third = push(saved, license="apache-2.0")  # only the card differs, and it is ours
    assert (third.created, third.changed) == (False, True)
    assert len(me.repositories[NAME].commits) == 3


def test_a_public_repository_does_not_become_private(me, saved, quick):
    push(saved)
    with pytest.raises(PublishError, match=f"{NAME} exists and is public, so --private cannot hold; change that in"):
        push(saved, private=True)


@pytest.mark.parametrize("card", [b"# My network\n", None])
def test_an_edited_card_is_kept(me, saved, quick, card):
    push(saved)
    repository = me.repositories[NAME]
    repository.commit({"README.md": card or repository.files["README.md"].replace(b"license: mit", b"license: x")})
    before = repository.refs["main"]
    with pytest.raises(PublishError, match=rf"the card of {NAME} \(README.md\) was written or edited .*--replace-card"):
        push(saved)
    assert repository.refs["main"] == before
    assert push(saved, replace_card=True).changed
    assert is_unedited(repository.files["README.md"].decode())


def test_a_change_meanwhile(me, saved, quick, monkeypatch):
    push(saved)
    check = upload._check_card

    def slow(*args):
        check(*args)
        me.repositories[NAME].commit({"README.md": b"# Mine\n"})

    monkeypatch.setattr(upload, "_check_card", slow)
    with pytest.raises(PublishError, match=f"{NAME} was changed meanwhile; look at it, and push again"):
        push(saved, license="apache-2.0")
    assert me.repositories[NAME].files["README.md"] == b"# Mine\n"


def test_nobody_is_logged_in(hub, saved, quick):
    with pytest.raises(PublishError, match=rf"nobody is logged in at {hub.url}; log in \(hf auth login, .*for writing"):
        push(saved)
    assert hub.requests == []


def test_logins_that_are_not_enough(hub, saved, quick, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(HubError, match=r"may not be used with this login \(401: Invalid credentials"):
        push(saved)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(HubError, match=r"may not be used in this way \(403: .*rights to create a model under me"):
        push(saved)
    assert hub.repositories == {}
    hub.create(NAME)
    with pytest.raises(HubError, match=r"\(403: You don't have the rights to write here\); is the token for it"):
        push(saved)


def test_a_licence_that_the_hub_does_not_know(me, saved, quick):
    with pytest.raises(PublishError, match=r'the Hub refuses the card: "license" must be one of \[apache-2.0, mit\]'):
        push(saved, license="no-such")
    assert me.repositories == {}


def test_a_server_that_fails_half_way(me, saved, quick):
    me.failures["POST /api/models/me/streets/commit"] = (500, "Oops")
    with pytest.raises(
        PublishError, match=rf"{NAME} was made, but has no files yet: it .*500 \(Oops\).*then push again"
    ):
        push(saved)
    with pytest.raises(HubError, match=r"cannot be used now: .* reported 500 \(Oops\); try again later"):
        push(saved)
    del me.failures["POST /api/models/me/streets/commit"]
    assert push(saved).changed


def test_offline(me, saved, quick, monkeypatch):
    monkeypatch.setenv("HYPERSEG_OFFLINE", "1")
    with pytest.raises(PublishError, match=r"the network is turned off \(HYPERSEG_OFFLINE or HF_HUB_OFFLINE\)"):
        push(saved)


def test_no_network(me, saved, quick, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"hf-hub:me/streets failed: ConnectError: .*; is there a network"):
        push(saved)


def test_folders_of_something_else(me, saved, tmp_path):
    with pytest.raises(PublishError, match=r"nothing is not there; give a folder that hyperseg.save wrote"):
        push(tmp_path / "nothing")
    (tmp_path / "official.pth").touch()
    with pytest.raises(PublishError, match=r"official.pth is a file; give a folder .*hyperseg.save.hyperseg.load"):
        push(tmp_path / "official.pth")
    with pytest.raises(PublishError, match=r"has no model.safetensors; give a folder that hyperseg.save wrote$"):
        push(tmp_path)
    (tmp_path / "final").symlink_to(saved)
    with pytest.raises(PublishError, match=r"has no model.safetensors; .*/final does$"):
        push(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        push(tmp_path / "damaged")
    assert me.requests == []


@pytest.mark.parametrize("name", ["streets", "hf-hub:me/streets", "me/streets@main", "me/a b", "", "me/a/b"])
def test_names_of_repositories(me, saved, quick, name):
    with pytest.raises(
        PublishError, match=r"cannot be a repository to push to; give OWNER/NAME: your account or organ"
    ):
        push(saved, name)


def test_config_json_follows_the_weights(me, saved, quick, tmp_path):
    """The copy in the weights decides: an edited config.json is not sent."""
    folder = tmp_path / "edited"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(saved / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"name": "edited"}))
    push(folder)
    assert me.repositories[NAME].files["config.json"] == (saved / "config.json").read_bytes()
