"""Rules files: what is wrong in one is named with its rule, its key, and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

from edgekit import schemas
from edgekit.cli.main import main
from edgekit.errors import BadData, TrustError
from edgekit.telemetry.rules import KINDS, read_rules

RATE = '[[rule]]\nname = "r"\nkind = "error_rate"\n'
SECRET = "a-secret-of-the-webhook"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return path


def test_a_rule_of_each_kind(tmp_path: Path) -> None:
    more = {
        "error_rate": "limit = 0.02\nwhere = { model = 'net', app = '2.0' }\nfor_minutes = 30",
        "crash_rate": "limit = 0.02\nclear = 0.01",
        "fallback_rate": "limit = 0.3\ndays = 7\nleast_requests = 500",
        "latency": "percentile = 99\nlimit_ms = 50",
        "drift": "where = { model = 'net' }",
        "canary": "control = '1.0'\ncanary = '1.1'",
        "silence": "hours = 6",
    }
    assert set(more) == set(KINDS)
    text = "".join(f"[[rule]]\nname = '{k}'\nkind = '{k}'\n{v}\n" for k, v in more.items())
    rules = {rule.name: rule for rule in read_rules(written(tmp_path, text)).rules}
    first = rules["error_rate"]
    assert (first.for_s, first.clear_s, first.where) == (1800, 1800, {"model": "net", "app": "2.0"})
    assert first.settings["clear"] == pytest.approx(0.016)
    assert rules["crash_rate"].settings["clear"] == 0.01
    assert rules["latency"].settings["clear_ms"] == pytest.approx(40)
    assert len({rule.digest for rule in rules.values()}) == len(rules)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no rule"),
        ("[[rule]\n", "is no TOML"),
        ("[[alert]]\n", r"unknown key 'alert'\. .*rule, webhook"),
        ("rule = 3\n", "rules are tables"),
        ("[[rule]]\nkind = 'error_rate'\n", r"rule 1: name is None; small letters"),
        ("[[rule]]\nname = 'A b'\n", r"rule 1: name is 'A b'"),
        ("[[rule]]\nname = 'r'\n", r"rule 1 \(r\): unknown kind 'None'.*canary, crash_rate, drift"),
        ("[[rule]]\nname = 'r'\nkind = 'eror_rate'\n", "Did you mean 'error_rate'"),
        (RATE, r"rule 1 \(r\): limit is missing; allowed: a number between 0 and 1"),
        (RATE + "limit = 2\n", r"limit is 2; allowed: a number between 0 and 1"),
        (RATE + "limit = true\n", "limit is True"),
        (RATE + "limit = '3%'\n", "limit is '3%'"),
        (RATE + "limit = nan\n", "limit is nan"),
        (RATE + "limt = 0.1\n", r"of kind error_rate: unknown key 'limt'. Did you mean 'limit'"),
        (RATE + "limit = 0.1\nclear = 0.2\n", "clear is 0.2; allowed: up to its limit, 0.1"),
        (RATE + "limit = 0.1\ndays = 36\n", "days is 36; allowed: a whole number from 1 to 35"),
        (RATE + "limit = 0.1\nleast_devices = 1\n", "least_devices is 1; allowed: .* from 2"),
        (RATE + "limit = 0.1\nfor_minutes = -1\n", "for_minutes is -1"),
        (RATE + "limit = 0.1\nwhere = { os = 'x' }\n", "where: unknown column 'os'"),
        (RATE + "limit = 0.1\nwhere = { app = 2 }\n", "where.app is 2; allowed: a text"),
        (RATE + "limit = 0.1\nwhere = 'net'\n", "where is 'net'; allowed: a table of model"),
        (RATE + "limit = 0.1\n" + RATE + "limit = 0.2\n", "two rules are named 'r'"),
        ("[[rule]]\nname = 'd'\nkind = 'drift'\n", r"\(d\): where.model is missing"),
        ("[[rule]]\nname = 'd'\nkind = 'drift'\nagainst = 'x'\n", "allowed: days, bundle"),
        ("[[rule]]\nname = 'c'\nkind = 'canary'\ncontrol = '1'\ncanary = '1'\n", "another version"),
        ("[[rule]]\nname = 'l'\nkind = 'latency'\npercentile = 99\nlimit_ms = 5\nsource = 'x'\n",
         "source is 'x'; allowed: device, cloud"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadData, match=said):
        read_rules(written(tmp_path, text))


@pytest.mark.parametrize(
    ("webhook", "said"),
    [
        ("", "url is no URL"),
        ("url = 'ftp://a.example/'", "url is no URL"),
        ("url = 'https://u:p@a.example/'", "holds a password"),
        ("url = 'https://a.example:x/'", "url cannot be read"),
        ("url = 'https://a.example/a b'", "percent-encoded"),
        ("url = 'http://a.example/'", "in clear text"),
        ("uri = 'https://a.example/'", "unknown key 'uri'. Did you mean 'url'"),
        ("url = 'https://a.example/'\ntimeout_s = 0", "timeout_s is 0"),
        ("url = 'https://a.example/'\nallow_http = 1", "allow_http is 1; allowed: true, false"),
        ("url = 'https://a.example/'\nsecret_env = 'NOT_THERE'", "no NOT_THERE in the environment"),
        ("url = 'https://a.example/'\nsecret_env = 'SHORT'", "a secret has 16 to"),
        ("url = 'https://a.example/'\nsecret_file = 'none'", "no secret file"),
        ("url = 'https://a.example/'\nsecret_env = 'A'\nsecret_file = 'b'", "one of them"),
    ],
)
def test_a_wrong_webhook_is_named(
    tmp_path: Path, webhook: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORT", "short")
    with pytest.raises(BadData, match=said):
        read_rules(written(tmp_path, f"[webhook]\n{webhook}\n{RATE}limit = 0.1\n"))


def test_a_secret_is_read_and_shown_to_nobody(tmp_path: Path) -> None:
    text = f"[webhook]\nurl = 'https://a.example/h?x=1'\nsecret_file = 's'\n{RATE}limit = 0.1\n"
    path = written(tmp_path, text)
    (tmp_path / "s").write_text(SECRET + "\n")
    (tmp_path / "s").chmod(0o640)
    with pytest.raises(TrustError, match="others may read the secret"):
        read_rules(path)
    (tmp_path / "s").chmod(0o600)
    rules = read_rules(path)
    assert rules.webhook is not None and rules.webhook.secret == SECRET.encode()
    assert (rules.webhook.host, rules.webhook.port, rules.webhook.target) == (
        "a.example", 443, "/h?x=1"
    )  # fmt: skip
    assert SECRET not in repr(rules) + repr(rules.webhook)
    plain = f"[webhook]\nurl = 'http://a.example'\nallow_http = true\n{RATE}limit = 0.1\n"
    assert read_rules(written(tmp_path, plain)).webhook is not None


def test_the_command_checks_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, RATE + "limit = 0.1\n")
    assert main(["telemetry", "check", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    schemas.validate(document)
    assert [row["beyond"] for row in document["rules"]] == [None]
    written(tmp_path, RATE + "limit = 10\n")
    assert main(["telemetry", "check", str(path)]) == 7
    assert "rule 1 (r): limit is 10; allowed: a number between 0 and 1" in capsys.readouterr().err
