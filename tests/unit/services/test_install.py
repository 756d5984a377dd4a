"""Filling an environment: uv is told what pip's configuration says, and a file shared between two folders is tried, not guessed."""

from __future__ import annotations

from pathlib import Path

from services.install import can_link, uv_settings

CONFIGURED = """\
:env:.find-links='/opt/wheels /opt/more'
:env:.disable-pip-version-check='1'
global.cert='/etc/ssl/ca.pem'
global.extra-index-url='\\nhttps://one.example/simple\\nhttps://two.example/simple'
global.find-links='/opt/wheels'
global.index-url='https://global.example/simple'
install.index-url='https://install.example/simple'
install.no-deps='false'
"""


def test_what_pip_is_told_uv_is_told() -> None:
    """Lists are joined as uv splits them, nothing is named twice, and of two indexes the one that pip would take counts."""
    assert uv_settings(CONFIGURED) == {
        "UV_FIND_LINKS": "/opt/wheels,/opt/more",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_DEFAULT_INDEX": "https://install.example/simple",
        "SSL_CERT_FILE": "/etc/ssl/ca.pem",
    }


def test_without_a_configuration_uv_goes_by_its_own() -> None:
    assert uv_settings("") == {}


def test_linking_is_tried(tmp_path: Path) -> None:
    """On one file system it works, on another it does not; nothing is left behind."""
    (tmp_path / "environment").mkdir()
    assert can_link(tmp_path / "cache", tmp_path / "environment")
    assert not can_link(Path("/dev/shm"), tmp_path / "environment")
    assert not list((tmp_path / "cache").iterdir()) + list((tmp_path / "environment").iterdir())
