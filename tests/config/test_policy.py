"""What a node's policy allows: every key of a run that a node would act on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.config.policy import Policy, RefusedError, policy_path, read_policy
from tests.conftest import flat_config

APP = f"sha256:{'0' * 64}"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder that runs may name files in, with a link that leads out of it."""
    (tmp_path / "site" / "parts").mkdir(parents=True)
    for name in ("site/rows.jsonl", "site/parts/a.jsonl", "secret.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "site" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (tmp_path / "site" / "out").symlink_to(tmp_path)
    # As a pattern the name of this link means the file after it; a run would read the link.
    (tmp_path / "site" / "out[1].jsonl").symlink_to(tmp_path / "secret.jsonl")
    (tmp_path / "site" / "out1.jsonl").write_text("{}")
    return tmp_path / "site"


def policy_of(site: Path, **keys: object) -> Policy:
    return Policy.model_validate(
        {
            "apps": [APP],
            "schemes": ["fedavg", "fedmoe", "combine"],
            "models": ["org/base"],
            "data-roots": [str(site)],
            "columns": ["text", "label"],
            "max-rounds": 50,
            "max-threads": 4,
            "keep-client-state": False,
        }
        | keys
    )


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"model.name": "org/base"},
        {"data.source": "nodes"},
        {"data.source": "{site}/rows.jsonl"},
        {"data.source": "{site}/rows.jsonl, {site}/parts/a.jsonl"},
        {"data.source": "{site}/parts/*.jsonl", "data.source-kind": "glob"},
        {"data.source": "{site}/parts", "data.source-kind": "folder"},
        {"num-server-rounds": 50},
        {"train.threads": 4},
        {"scheme": "combine", "combine.loss": "fedmoe"},
        {"data.chat-template": "{site}/chat.jinja"},
        {"data.chat-template": "always"},
        {"data.task": "multiple-choice", "data.options-field": '["text", "label"]'},
        {"data.task": "multiple-choice", "data.options-field": "text, label"},
    ],
)
def test_what_is_listed_is_allowed(site: Path, run: dict[str, object]) -> None:
    run = {k: v.replace("{site}", str(site)) if isinstance(v, str) else v for k, v in run.items()}
    policy_of(site).check_run(flat_config(**run))


@pytest.mark.parametrize(
    "key, run",
    [
        ("scheme", {"scheme": "evil.module:Class"}),
        ("scheme", {"scheme": "fcmoe"}),
        ("combine.experts", {"scheme": "combine", "combine.experts": "evil.module:Class"}),
        ("data.task", {"data.task": "causal-lm"}),
        ("model.name", {"model.name": "/etc"}),
        ("data.source", {"data.source": "/etc/shadow"}),
        ("data.source", {"data.source": "{site}/../secret.jsonl"}),
        ("data.source", {"data.source": "{site}/link.jsonl"}),
        ("data.source", {"data.source": "{site}/out/secret.jsonl"}),
        ("data.source", {"data.source": "rows.jsonl"}),
        ("data.source", {"data.source": "{site}/rows.jsonl, /etc/shadow"}),
        ("data.source", {"data.source": '["{site}/rows.jsonl", "/etc/shadow"]'}),
        ("data.source", {"data.source": "{site}/*.jsonl", "data.source-kind": "glob"}),
        ("data.source", {"data.source": "{site}", "data.source-kind": "folder"}),
        ("data.source", {"data.source": "/etc/*", "data.source-kind": "glob"}),
        ("data.source", {"data.source": "{site}/a\0b.jsonl"}),
        ("data.source", {"data.source": ","}),
        ("data.source", {"data.source": "/**/**/*", "data.source-kind": "glob"}),
        ("data.label-names-file", {"data.label-names-file": "/etc/passwd"}),
        ("data.text-field", {"data.text-field": "diagnosis"}),
        ("data.partition-by", {"data.partition-by": "ward"}),
        ("data.text-field", {"data.text-field": "text, label"}),
        ("data.source", {"data.source": "{site}/out[1].jsonl", "data.source-kind": "glob"}),
        ("data.chat-template", {"data.chat-template": "/etc/chat.jinja"}),
        ("num-server-rounds", {"num-server-rounds": 51}),
        ("train.threads", {"train.threads": 5}),
        ("keep-client-state", {"keep-client-state": True}),
    ],
)
def test_what_is_not_listed_is_refused_by_key(site: Path, key: str, run: dict[str, object]) -> None:
    run = {k: v.replace("{site}", str(site)) if isinstance(v, str) else v for k, v in run.items()}
    policy = policy_of(site, tasks=["classification"])
    with pytest.raises(RefusedError) as refused:
        policy.check_run(flat_config(**run))
    assert str(refused.value).startswith(f"this node's policy does not allow {key} = ")
    assert "secret.jsonl" not in str(refused.value).replace(str(run.get(key)), "")


def test_all_that_is_refused_is_named_at_once(site: Path) -> None:
    run = flat_config(**{"scheme": "fcmoe", "num-server-rounds": 99})
    found = list(policy_of(site).refusals(run))
    assert found == ["scheme = 'fcmoe'", "num-server-rounds = '99'"]


def test_a_value_that_is_repeated_is_cut(site: Path) -> None:
    (found,) = policy_of(site).refusals(flat_config(scheme="x" * 10_000))
    assert len(found) < 200


def test_what_must_not_leave_refuses_the_runs_that_need_it(site: Path) -> None:
    no_regions = policy_of(
        site,
        schemes=["fedavg", "fedalign", "grammerge", "calmerge"],
        **{"may-leave": ["update", "num-examples", "histogram", "metrics"]},
    )
    assert list(no_regions.refusals(flat_config())) == []
    (found,) = no_regions.refusals(flat_config(scheme="fedalign"))
    assert found == "regions to leave the node, which the run needs"
    for run in ({"head.closed-form": "after"}, *({"scheme": s} for s in ("grammerge", "calmerge"))):
        (found,) = no_regions.refusals(flat_config(**run))
        assert found == "feature-sums to leave the node, which the run needs"
    (found,) = no_regions.refusals(flat_config(**{"data.source": "nodes"}))
    assert found == "scores to leave the node, which the run needs"
    (found,) = no_regions.refusals(flat_config(**{"head.closed-form": "after"}))
    assert found == "feature-sums to leave the node, which the run needs"


def test_a_round_is_refused_without_a_number_of_the_node(site: Path) -> None:
    policy = policy_of(site, **{"min-examples": 20, "max-local-steps": 10})
    policy.check_round(20, 10)
    for examples, steps in ((19, 1), (20, 11)):
        with pytest.raises(RefusedError) as refused:
            policy.check_round(examples, steps)
        assert not any(character.isdigit() for character in str(refused.value))


@pytest.mark.parametrize(
    "text, fault",
    [
        ("shemes = []", "unknown key shemes; the keys are apps, schemes, "),
        ('schemes = ["fedavg"]', "apps is missing; `fedmoe node digest`"),
        ('apps = ["0677f6"]', "apps.0 = '0677f6'"),
        (f'apps = ["{APP}"]\nschemes = "fedavg"', "schemes = 'fedavg'"),
        (f'apps = ["{APP}"]\nmax-rounds = true', "max-rounds = True"),
        (f'apps = ["{APP}"]\nmin-examples = 0', "min-examples = 0"),
        (f'apps = ["{APP}"]\nmay-leave = ["everything"]', "may-leave.0 = 'everything'"),
        ("apps = [", "not TOML"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as error:
        read_policy(path)
    assert str(error.value).startswith(f"policy {path}: ")
    assert fault in str(error.value)


def test_a_policy_that_others_may_change_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f'apps = ["{APP}"]')
    path.chmod(0o620)
    with pytest.raises(ConfigError, match="chmod 0600"):
        read_policy(path)
    path.chmod(0o640)
    assert read_policy(path).apps == [APP]


def test_where_a_policy_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_POLICY", str(tmp_path / "named.toml"))
    assert policy_path(tmp_path / "given.toml") == tmp_path / "given.toml"
    assert policy_path() == tmp_path / "named.toml"
    monkeypatch.delenv("FEDMOE_POLICY")
    assert policy_path() is None or os.path.exists("/etc/fedmoe/policy.toml")


def test_a_policy_that_cannot_be_looked_for_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDMOE_POLICY", raising=False)
    default = "fedmoe_app.config.policy.DEFAULT_PATH"
    monkeypatch.setattr(default, tmp_path / "none" / "policy.toml")
    assert policy_path() is None
    # A link to itself: an error of the system for every user, also for root.
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setattr(default, tmp_path / "loop" / "policy.toml")
    with pytest.raises(ConfigError, match=r"policy .*policy\.toml: .*; let this user read it"):
        policy_path()


def test_a_node_that_asks_for_masked_sums_refuses_runs_without(site: Path) -> None:
    policy = policy_of(site, **{"secure-sum": "required"})
    assert list(policy.refusals(flat_config())) == ["privacy.secure-sum = 'False'"]
    assert not list(policy.refusals(flat_config(**{"privacy.secure-sum": True})))
    with pytest.raises(ValueError, match="allowed"):
        policy_of(site, **{"secure-sum": "maybe"})


@pytest.mark.parametrize("keys", [{"privacy.secure-sum": True}, {"privacy.dp": "fixed"}])
def test_with_masks_or_noise_only_the_update_leaves(keys: dict[str, object], site: Path) -> None:
    policy = policy_of(site, **{"may-leave": ["update"]})
    nodes = {"data.source": "nodes"}
    assert not list(policy.refusals(flat_config(**nodes | keys)))
    assert len(list(policy.refusals(flat_config(**nodes)))) == 4
    own = {"schemes": ["my.module:Class"], "may-leave": ["update"]}
    run = flat_config(**keys | {"scheme": "my.module:Class"})
    assert any("regions" in why for why in policy_of(site, **own).refusals(run))
