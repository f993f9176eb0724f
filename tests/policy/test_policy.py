import json

import pytest
import torch

from lightning_dqnlr.control.features import SCALE_FREE, FeatureSpec
from lightning_dqnlr.control.spec import ActionSpec, ControllerSpec, TrialSpec
from lightning_dqnlr.errors import ConfigurationError, PolicyFileError
from lightning_dqnlr.policy.network import QNetwork
from lightning_dqnlr.policy.policy import BUNDLED, RECORD, WEIGHTS, LRPolicy, combine, with_settings


def make_policy(spec=None, seed=0):
    spec = spec or ControllerSpec()
    torch.manual_seed(seed)
    network = QNetwork(len(spec.features), len(spec.actions), hidden=(16, 16))
    return LRPolicy(network, spec, {"note": "for a test"})


def edit(folder, **changes):
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, **changes}))


class TestSaveAndLoad:
    def test_a_loaded_policy_acts_exactly_like_the_saved_one(self, tmp_path):
        policy = make_policy()
        loaded = LRPolicy.load(policy.save(tmp_path / "mine"))
        observation = torch.randn(100, len(policy.spec.features))
        assert torch.equal(loaded.q_values(observation), policy.q_values(observation))
        assert (loaded.spec, loaded.record) == (policy.spec, policy.record)

    def test_a_controller_with_other_decision_times_survives(self, tmp_path):
        spec = ControllerSpec(
            features=FeatureSpec(("progress", "loss_change")),
            actions=ActionSpec((0.5, 1.0, 2.0)),
            decisions=24,
            decay="none",
        )
        assert LRPolicy.load(make_policy(spec).save(tmp_path)).spec == spec

    def test_either_file_names_the_policy(self, tmp_path):
        make_policy().save(tmp_path)
        for name in (WEIGHTS, RECORD):
            assert LRPolicy.load(tmp_path / name).record == {"note": "for a test"}

    def test_saving_over_a_policy_leaves_no_stray_files(self, tmp_path):
        make_policy(seed=0).save(tmp_path)
        make_policy(seed=1).save(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == [RECORD, WEIGHTS]

    def test_a_folder_that_cannot_be_made_is_a_clear_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigurationError, match="choose another folder"):
            make_policy().save(tmp_path / "file" / "policy")


class TestRefusals:
    def test_missing_folder(self, tmp_path):
        with pytest.raises(PolicyFileError, match=r"nowhere.*'default' for the bundled"):
            LRPolicy.load(tmp_path / "nowhere")

    def test_weights_left_behind(self, tmp_path):
        make_policy().save(tmp_path)
        (tmp_path / WEIGHTS).unlink()
        with pytest.raises(PolicyFileError, match="copy both"):
            LRPolicy.load(tmp_path)

    @pytest.mark.parametrize("name", [WEIGHTS, RECORD])
    def test_truncated_file(self, tmp_path, name):
        make_policy().save(tmp_path)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(PolicyFileError, match=r"truncated|damaged"):
            LRPolicy.load(tmp_path)

    def test_weights_of_another_save(self, tmp_path):
        make_policy(seed=0).save(tmp_path / "a")
        make_policy(seed=1).save(tmp_path / "b")
        (tmp_path / "a" / WEIGHTS).write_bytes((tmp_path / "b" / WEIGHTS).read_bytes())
        with pytest.raises(PolicyFileError, match="not saved together"):
            LRPolicy.load(tmp_path / "a")

    @pytest.mark.parametrize("content", ["[]", "{}", '{"format": "something-else"}', "\x00"])
    def test_foreign_json(self, tmp_path, content):
        make_policy().save(tmp_path)
        (tmp_path / RECORD).write_text(content)
        with pytest.raises(PolicyFileError, match=r"not a lightning-dqnlr policy|not JSON"):
            LRPolicy.load(tmp_path)

    def test_newer_format(self, tmp_path):
        make_policy().save(tmp_path)
        edit(tmp_path, format_version=2)
        with pytest.raises(PolicyFileError, match="format version 2"):
            LRPolicy.load(tmp_path)

    def test_another_feature_specification_is_refused_by_name(self, tmp_path):
        policy = make_policy()
        policy.save(tmp_path)
        controller = policy.spec.to_dict()
        controller["features"]["names"] = [*SCALE_FREE[:-1], "entropy_of_the_batch"]
        edit(tmp_path, controller=controller)
        with pytest.raises(PolicyFileError, match="entropy_of_the_batch"):
            LRPolicy.load(tmp_path)

    def test_a_network_of_another_shape(self, tmp_path):
        policy = make_policy()
        policy.save(tmp_path)
        edit(tmp_path, network={**policy.network.config, "hidden": [8]})
        with pytest.raises(PolicyFileError, match="does not fit this version"):
            LRPolicy.load(tmp_path)

    def test_network_and_specification_must_agree(self):
        with pytest.raises(ConfigurationError, match="observation size, actions"):
            LRPolicy(QNetwork(5, 7), ControllerSpec())


class TestAct:
    def test_greedy_takes_the_largest_q_value(self):
        policy = make_policy()
        observation = torch.randn(50, len(policy.spec.features))
        assert torch.equal(policy.act(observation), policy.q_values(observation).argmax(-1))

    def test_one_run_and_many_replicas_act_alike(self):
        policy = make_policy()
        observation = torch.randn(5, len(policy.spec.features))
        many = policy.act(observation)
        assert [policy.act(row).item() for row in observation] == many.tolist()

    def test_each_replica_explores_with_its_own_epsilon(self):
        policy = make_policy()
        observation = torch.randn(1, len(policy.spec.features)).expand(4000, -1)
        epsilon = torch.tensor([0.0, 1.0]).repeat(2000)
        generator = torch.Generator().manual_seed(0)
        greedy = policy.act(observation)
        other = policy.choose(observation, epsilon, generator).action != greedy
        assert not other[0::2].any()
        assert other[1::2].float().mean().item() == pytest.approx(6 / 7, abs=0.03)


class TestCombine:
    def test_it_acts_on_the_mean_of_the_q_values(self, tmp_path):
        members = [make_policy(seed=seed) for seed in (0, 1, 2)]
        both = LRPolicy.load(combine(members).save(tmp_path))
        observation = torch.randn(200, len(both.spec.features))
        mean = sum(m.q_values(observation) for m in members) / 3
        torch.testing.assert_close(both.q_values(observation), mean)
        assert not torch.equal(both.act(observation), members[0].act(observation))

    def test_an_ensemble_of_ensembles_weighs_every_network_alike(self):
        members = [make_policy(seed=seed) for seed in (0, 1, 2)]
        nested = combine([combine(members[:2]), members[2]])
        observation = torch.randn(20, len(nested.spec.features))
        torch.testing.assert_close(
            nested.q_values(observation), combine(members).q_values(observation)
        )

    def test_records_keep_what_differs_and_say_the_rest_once(self):
        first, second = make_policy(seed=0), make_policy(seed=1)
        first.record, second.record = {"reward": "r", "seed": 0}, {"reward": "r", "seed": 1}
        assert combine([first, second]).record == {
            "reward": "r",
            "members": [{"seed": 0}, {"seed": 1}],
        }

    def test_a_single_policy_is_refused(self):
        with pytest.raises(ConfigurationError, match="1 given; at least two"):
            combine([make_policy()])

    def test_two_that_differ_are_named_with_their_difference(self):
        other = make_policy(ControllerSpec(actions=ActionSpec((0.5, 1.0, 2.0))))
        other.name = "other"
        told = r"unnamed and other differ in actions \(.*0\.25, 0\.5.* against .*0\.5, 1\.0"
        with pytest.raises(ConfigurationError, match=told) as refused:
            combine([make_policy(), make_policy(), other])
        assert "features (" not in str(refused.value)  # they share these

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("collect", "CollectConfig(credit='interval', discount=1.0)"),
            ("collect", "CollectConfig(credit='final_score', discount=0.9)"),
            ("start", "optimizer"),
            ("circuit_breaker", False),
        ],
    )
    def test_values_that_mean_different_things_are_refused(self, field, value):
        first, second = make_policy(seed=0), make_policy(seed=1)
        alike = "CollectConfig(epsilon=0.1, credit='final_score', discount=1.0)"
        first.record = {"collect": alike, "start": "auto", "circuit_breaker": True}
        second.record = {**first.record, "collect": alike.replace("0.1", "0.2")}
        combine([first, second])
        second.record = {**first.record, field: value}
        with pytest.raises(ConfigurationError, match="mean different things"):
            combine([first, second])


class TestBundledPolicy:
    def test_its_features_and_actions_are_the_code_s(self):
        policy = LRPolicy.load()
        assert policy.spec == ControllerSpec()

    def test_all_bundled_policies_load_and_name_what_made_them(self):
        for name in BUNDLED:
            assert LRPolicy.load(name).record["inner_steps"] > 500_000

    def test_it_says_where_it_comes_from_and_how_good_it_is(self):
        policy = LRPolicy.load("default")
        record = policy.record
        assert record["inner_steps"] > 1_000_000
        assert len(record["members"]) == len(policy.network.networks)
        for member in record["members"]:
            assert "experiment=default" in member["overrides"]
        assert record["commit"]
        assert record["test"]["trained policy"]["regret_iqm"] < 0.5

    def test_its_network_needs_no_gradient(self):
        assert not any(p.requires_grad for p in LRPolicy.load().network.parameters())


def test_moments_of_one_run_are_not_counted_as_so_many_runs():
    """Two moments of one run, after 100 and 300 steps, and another run of 50 steps: 350."""
    members = [make_policy(seed=seed) for seed in range(3)]
    for policy, command, steps in zip(members, ("a", "a", "b"), (100, 300, 50), strict=True):
        policy.record = {"command": command, "inner_steps": steps, "minutes": steps / 100}
    record = combine(members).record
    assert (record["inner_steps"], record["minutes"]) == (350, 3.5)


def test_the_jobs_of_a_sweep_are_different_runs_though_their_command_is_one():
    members = [make_policy(seed=seed) for seed in range(2)]
    for policy, seed in zip(members, (1, 2), strict=True):
        overrides = [f"seed={seed}"]
        policy.record = {"command": "-m seed=1,2", "overrides": overrides, "inner_steps": 100}
    assert combine(members).record["inner_steps"] == 200


def test_trials_are_switched_on_and_off_by_a_setting_and_the_weights_stay():
    policy = make_policy()
    on = with_settings(policy, ['trials={"pause": 7}'])
    assert on.spec.trials == TrialSpec(pause=7)
    assert on.fingerprint != policy.fingerprint
    assert with_settings(on, ["trials=null"]).fingerprint == policy.fingerprint


def test_a_setting_that_is_an_object_is_asked_for_in_json():
    """A shell takes the quotes away from {"pause": 7}; the message must say what is missing."""
    with pytest.raises(ConfigurationError, match="trials must be an object in JSON, or null"):
        with_settings(LRPolicy.load("default"), ["trials={pause: 7}"])


@pytest.mark.parametrize(
    "text",
    [
        "decay_share",  # no value
        "decay_shape=0.3",  # no such field
        "features=[]",  # the network's shape depends on it
        "decay_share=2",  # out of range
        "decay_share=long",
        "cuts_in_decay=1",
        "decay=true",
        "trials=true",
        'trials={"factor": 3}',  # no action
    ],
)
def test_a_setting_that_would_not_do_what_it_says_is_refused(text):
    with pytest.raises(ConfigurationError):
        with_settings(LRPolicy.load("default"), [text])
