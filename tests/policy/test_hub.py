"""Policies on a Hub that runs here; the client is the real one, in processes of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_dqnlr.errors import ConfigurationError, MissingPackageError, PolicyFileError
from lightning_dqnlr.policy.card import card
from lightning_dqnlr.policy.hub import address_of
from lightning_dqnlr.policy.policy import LRPolicy

from .hub_server import Hub, Repository

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).parents[2]
POLICY = ROOT / "lightning_dqnlr" / "policy" / "classic"
FILES = {name: (POLICY / name).read_bytes() for name in ("policy.json", "policy.safetensors")}
RECORD, WEIGHTS = FILES.values()
LARGE = 2**40

# Calls by name; each answers with a policy's name and fingerprint, or with its error.
CALLS = """
import json, sys
from lightning_dqnlr import LRPolicy
from lightning_dqnlr.policy.policy import as_policy

def told(call):
    try:
        found = call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return found if isinstance(found, str) else [found.name, found.fingerprint]

calls = json.loads(sys.argv[1])
print("TOLD", json.dumps({name: told(lambda: eval(text)) for name, text in calls.items()}))
"""


def in_a_process(calls, address, cache, **more):
    place = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(calls)],
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **place, **more},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOLD")]
    assert lines, done.stderr
    return json.loads(lines[0].removeprefix("TOLD"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def online(cache):
    """What the calls answered, and the Hub after them."""
    with Hub() as hub:
        good = hub.repositories["org/good"] = Repository()
        good.tags["v1"] = good.commit({**FILES, "evil.py": b"raise SystemExit", "model.bin": b"0"})
        good.commit({"policy.json": b"{}", "policy.safetensors": WEIGHTS})
        contents = {
            "damaged": {**FILES, "policy.safetensors": WEIGHTS[:-8] + b"12345678"},
            "other": {"policy.json": b'{"format": "another"}', "policy.safetensors": WEIGHTS},
            "half": {"policy.json": RECORD},
            "large": FILES,
            "moving": FILES,
        }
        for name, files in contents.items():
            hub.repositories[f"org/{name}"] = Repository()
            hub.repositories[f"org/{name}"].commit(files)
        hub.repositories["org/large"].claimed["policy.safetensors"] = LARGE

        def move(request):
            """Another commit comes in between the two files."""
            if request == "GET /org/moving/resolve/main/policy.json":
                hub.repositories["org/moving"].commit({**FILES, "policy.safetensors": b"new"})

        hub.after = move
        calls = {
            "tag": 'LRPolicy.load("hf://org/good@v1")',
            "argument": 'LRPolicy.from_pretrained("org/good", revision="v1")',
            "as_policy": 'as_policy("hf://org/good@v1")',
            "main": 'LRPolicy.from_pretrained("org/good")',
            **{name: f'LRPolicy.load("hf://org/{name}")' for name in (*contents, "none")},
            "revision": 'LRPolicy.load("hf://org/good@nowhere")',
            "push": 'LRPolicy.load("classic").push_to_hub("me/mine", private=True, token="hf_x")',
            "pushed": 'LRPolicy.load("hf://me/mine")',
            "forbidden": 'LRPolicy.load("classic").push_to_hub("forbidden/mine", token="hf_x")',
        }
        yield in_a_process(calls, hub.address, cache), hub


def test_a_policy_of_a_revision_is_the_one_that_was_committed(online):
    told, hub = online
    name = f"org/good@{hub.repositories['org/good'].tags['v1'][:7]}"
    fingerprint = LRPolicy.load("classic").fingerprint
    assert told["tag"] == told["argument"] == told["as_policy"] == [name, fingerprint]
    assert told["main"][0] == "PolicyFileError", "the main branch holds another policy.json"


def test_only_the_two_files_of_a_policy_are_asked_for(online):
    _, hub = online
    asked = {request.rsplit("/", 1)[1] for request in hub.asked if " /org/" in request}
    assert asked == set(FILES)


def test_what_the_hub_gives_is_read_with_the_distrust_of_any_folder(online):
    told, _ = online
    assert told["damaged"][0] == told["other"][0] == told["half"][0] == "PolicyFileError"
    assert "truncated or was not saved together" in told["damaged"][1]
    assert "not a lightning-dqnlr policy" in told["other"][1]
    assert "does not give policy.safetensors" in told["half"][1]


def test_a_file_too_large_for_a_policy_is_not_downloaded(online):
    told, hub = online
    assert told["large"][0] == "PolicyFileError"
    assert f"{LARGE} bytes" in told["large"][1]
    downloads = [r for r in hub.asked if r.startswith("GET /org/large")]
    assert [r for r in downloads if r.endswith("safetensors")] == []


def test_both_files_are_of_one_commit_though_the_branch_moves_in_between(online):
    told, _ = online
    assert told["moving"][1] == LRPolicy.load("classic").fingerprint


def test_a_repository_or_a_revision_that_there_is_not_is_named(online):
    told, _ = online
    for name, address in (("none", "hf://org/none"), ("revision", "hf://org/good@nowhere")):
        kind, text = told[name]
        assert kind == "PolicyFileError"
        assert address in text
        assert "hf auth login" in text


def test_a_pushed_policy_comes_back_and_its_card_says_how_to_use_it(online):
    told, hub = online
    repository = hub.repositories["me/mine"]
    assert told["push"] == f"hf://me/mine@{repository.main}"
    assert told["pushed"] == [
        f"me/mine@{repository.main[:7]}", LRPolicy.load("classic").fingerprint,
    ]  # fmt: skip
    assert len(repository.commits) == 1, "a reader must never see half of it"
    files = repository.commits[repository.main]
    assert set(files) == {*FILES, "README.md"}
    assert files["README.md"].decode() == card(LRPolicy.load("classic"), "me/mine")
    assert repository.private


def test_a_hub_that_refuses_a_push_is_an_error_with_the_remedy(online):
    told, _ = online
    assert told["forbidden"][0] == "ConfigurationError"
    assert "token that may write" in told["forbidden"][1]


def test_what_is_in_the_cache_needs_no_network(online, cache):
    offline = {"HF_HUB_OFFLINE": "1"}
    calls = {"tag": 'LRPolicy.load("hf://org/good@v1")', "new": 'LRPolicy.load("hf://org/new")'}
    told = in_a_process(calls, "http://127.0.0.1:9", cache, **offline)
    assert told["tag"] == online[0]["tag"]
    assert told["new"][0] == "PolicyFileError"
    assert "needs the network" in told["new"][1]


@pytest.mark.parametrize(
    "text",
    ["hf://name", "hf://a/b/c", "hf://a/b@", "hf://../../etc", "hf://a b/c", "hf://a/b@x/../y"],
)
def test_an_address_of_another_form_is_refused_without_a_request(text):
    with pytest.raises(ConfigurationError, match="hf://org/name@revision"):
        LRPolicy.load(text)
    with pytest.raises(ConfigurationError, match="hf://org/name@revision"):
        address_of(text)


def test_two_revisions_are_refused_rather_than_one_of_them_left_out():
    assert address_of("hf://org/name@v1", "v1").revision == "v1"
    with pytest.raises(ConfigurationError, match="revision='v2'"):
        LRPolicy.from_pretrained("hf://org/name@v1", revision="v2")


def test_a_folder_of_that_name_is_read_and_no_hub_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    shutil.copytree(POLICY, tmp_path / "org" / "name")
    read = LRPolicy.from_pretrained("org/name")
    assert read.fingerprint == LRPolicy.load("classic").fingerprint
    assert LRPolicy.from_pretrained("default").name == "default"


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r"lightning-dqnlr\[hub\]"):
        LRPolicy.load("hf://org/name")


def test_a_card_has_the_records_figures_and_survives_any_record():
    policy = LRPolicy.load("default")
    text = card(policy, "org/name")
    iqm = policy.record["test"]["trained policy"]["regret_iqm"]
    assert f"| trained policy | {iqm:.3f} |" in text
    for record in ({}, {"test": 3, "validation": {"regret_iqm": "x"}, "members": [1, {}]}):
        policy.record = {**record, "note": "```\n# injected"}
        text = card(policy, "org/name")
        assert "holds no scores" in text
        assert text.count("```") == 4


def test_a_policy_of_the_hub_that_is_damaged_names_the_file():
    with pytest.raises(PolicyFileError, match=r"policy\.json cannot be read"):
        LRPolicy.from_pretrained(str(ROOT / "docs"))
