"""URLs of devices: what they say, and what is refused (RUN-02)."""

from __future__ import annotations

import pytest

from edgekit.bench.runners.url import DeviceUrl, parse
from edgekit.errors import UsageError


def fields(url: DeviceUrl) -> tuple[str, str, str, int | None, str]:
    """Everything but the text and the options."""
    return url.scheme, url.user, url.host, url.port, url.folder


def test_urls_say_where_a_device_is() -> None:
    for text, expected in {
        "local:": ("local", "", "", None, ""),
        "ssh://bench-3": ("ssh", "", "bench-3", None, ""),
        "ssh://pi@bench-3:2222/data/tmp": ("ssh", "pi", "bench-3", 2222, "/data/tmp"),
        "ssh://pi@[fe80::1%eth0]:22/": ("ssh", "pi", "fe80::1%eth0", 22, ""),
        "adb://emulator-5554": ("adb", "", "emulator-5554", None, ""),
        "adb://192.168.1.4:5555/sdcard/x": ("adb", "", "192.168.1.4:5555", None, "/sdcard/x"),
        "fake:phone-1": ("fake", "", "phone-1", None, ""),
    }.items():
        assert fields(parse(text)) == expected
    url = parse("ssh://a?config=/etc/a%20b")
    assert url.option("config") == "/etc/a b" and url.option("other") == ""


@pytest.mark.parametrize(
    "text",
    [
        "ssh://-oProxyCommand=touch pwned",
        "ssh://-oProxyCommand=x@host",
        "ssh://pi@-host",
        "ssh://a@b@host",
        "ssh://user:secret@host",
        "ssh://$(id)",
        "ssh://host;reboot",
        "ssh://ho st",
        "ssh://host\nother",
        "ssh://pi@",
        "ssh://",
        "ssh:host",
        "ssh://host:0",
        "ssh://host:65536",
        "ssh://host:22x",
        "ssh://host:",
        "ssh://host/a/../b",
        "ssh://host/~/x",
        "ssh://host//",
        "ssh://host?proxy=x",
        "ssh://host?config",
        "adb://",
        "adb://-s",
        "adb://a b",
        "adb://a;reboot",
        "adb://serial/..",
        "adb://serial?config=x",
        "fake:",
        "fake:-x",
        "local:x",
        "telnet://host",
        "host",
        "",
    ],
)
def test_run_02_what_is_no_url_of_a_device_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "local:" in str(caught.value) or "form is" in str(caught.value)
    assert "secret" not in str(caught.value)
