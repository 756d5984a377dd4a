"""Filling an environment: uv is told what pip's configuration says, a link between two folders is tried, and only what is unused goes."""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path

from services.install import can_link, remove, uv_settings

CONFIGURED = """\
:env:.find-links='/opt/wheels /opt/more'
:env:.disable-pip-version-check='1'
global.cert='/etc/ssl/our certificates.pem'
global.extra-index-url='\\nhttps://one.example/simple\\nhttps://two.example/simple'
global.find-links='/opt/wheels'
install.extra-index-url=''
global.proxy='http://proxy.example:3128'
global.index-url='https://global.example/simple'
install.index-url='https://install.example/simple'
install.no-deps='false'
"""


def test_what_pip_is_told_uv_is_told() -> None:
    """Lists are joined as uv splits them; what the environment says replaces what the command's section and the general one say."""
    assert uv_settings(CONFIGURED) == {
        "UV_FIND_LINKS": "/opt/wheels,/opt/more",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_DEFAULT_INDEX": "https://install.example/simple",
        "SSL_CERT_FILE": "/etc/ssl/our certificates.pem",
        "HTTP_PROXY": "http://proxy.example:3128",
        "HTTPS_PROXY": "http://proxy.example:3128",
    }


def test_without_a_configuration_uv_goes_by_its_own() -> None:
    assert uv_settings("") == {}


def test_linking_is_tried(tmp_path: Path) -> None:
    """On one file system it works, on another it does not; nothing is left behind."""
    (tmp_path / "environment").mkdir()
    assert can_link(tmp_path / "cache", tmp_path / "environment")
    assert not can_link(Path("/dev/shm"), tmp_path / "environment")
    assert not list((tmp_path / "cache").iterdir()) + list((tmp_path / "environment").iterdir())


def test_only_the_packages_of_the_environments_own_python_are_thinned_out(tmp_path: Path) -> None:
    """An environment that was made again with another version has two folders of packages."""
    venv.create(tmp_path, with_pip=False)
    mine = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path)}))
    other = tmp_path / "lib/python3.99/site-packages"
    for folder in (mine, other):
        (folder / "unused").mkdir(parents=True)
        (folder / "used").mkdir()
        (folder / "unused.txt").touch()
    remove(("unused", "*.txt"), tmp_path / "bin/python")
    assert [path.name for path in mine.iterdir()] == ["used"]
    assert len(list(other.iterdir())) == 3
