"""Packages of the npm registry: where they are asked for, and that only the pinned archive is used."""

import io
import tarfile

import pytest

from snugtune.errors import UserInputError
from snugtune.export import npm

CONTENT = {"package/dist/code.js": b"export {};", "package/../../evil.js": b"evil", "/etc/evil": b"evil"}


def write_archive(path):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in CONTENT.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("package/link.js")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """A registry's folder with the archive of one pinned package."""
    monkeypatch.setenv("SNUGTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    archive = tmp_path / "scope-name-1.2.3.tgz"
    write_archive(archive)
    package = {
        "version": "1.2.3",
        "integrity": npm._integrity(archive),
        "files": {"dist/code.js": "a/code.js"},
    }
    monkeypatch.setattr(npm, "pinned", lambda: {"@scope/name": package})
    return package, archive


def test_only_the_files_that_are_named_leave_an_archive(pinned, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    npm.copy_packages(folder, tmp_path)
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")] == ["a/code.js"]
    assert not (tmp_path / "evil.js").exists()
    pinned[0]["files"] = {"link.js": "link.js"}
    with pytest.raises(npm.RegistryError, match=r"holds no file link\.js"):
        npm.copy_packages(folder, tmp_path)


def test_another_archive_is_not_used(pinned, tmp_path):
    _, archive = pinned
    with archive.open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserInputError, match=r"is not @scope/name 1\.2\.3 as published"):
        npm.copy_packages(tmp_path, tmp_path)
    archive.unlink()
    with pytest.raises(UserInputError, match=r"make it there: npm pack @scope/name@1\.2\.3"):
        npm.copy_packages(tmp_path, tmp_path)


class Answer(io.BytesIO):
    def __enter__(self):
        return self


def test_it_is_fetched_once_and_only_if_it_is_the_pinned_one(pinned, tmp_path, monkeypatch):
    _, archive = pinned
    asked = []

    def answer(request, timeout):
        asked.append((request.full_url, request.get_header("Authorization")))
        return Answer(archive.read_bytes() + (b"" if len(asked) > 1 else b"more"))

    monkeypatch.setattr(npm.urllib.request, "urlopen", answer)
    (tmp_path / "npmrc").write_text(
        "registry=https://all.invalid/\n@scope:registry=https://own.invalid/npm\n//own.invalid/npm/:_authToken=${TOKEN}\n"
    )
    monkeypatch.setenv("TOKEN", "secret")
    with pytest.raises(npm.RegistryError, match="is not what was published"):
        npm.copy_packages(tmp_path / "out")
    assert list((tmp_path / "cache" / "npm").iterdir()) == []
    npm.copy_packages(tmp_path / "out")
    npm.copy_packages(tmp_path / "again")
    assert asked == [("https://own.invalid/npm/@scope/name/-/name-1.2.3.tgz", "Bearer secret")] * 2


def test_a_registry_out_of_reach_is_one_sentence(pinned, tmp_path, monkeypatch):
    def refuse(request, timeout):
        raise npm.urllib.error.URLError("no route to host")

    monkeypatch.setattr(npm.urllib.request, "urlopen", refuse)
    with pytest.raises(
        npm.RegistryError, match=r"cannot be fetched .*no route to host.*npm pack.*--npm-package-dir"
    ):
        npm.copy_packages(tmp_path / "out")


def test_which_registry_is_asked(pinned, tmp_path, monkeypatch):
    assert npm.registry_of("some") == ("https://registry.npmjs.org/", None)
    (tmp_path / "npmrc").write_text('; a comment\nregistry = "https://mirror.invalid/npm"\n')
    assert npm.registry_of("some")[0] == "https://mirror.invalid/npm/"
    monkeypatch.setenv("npm_config_registry", "https://other.invalid")
    assert npm.registry_of("some")[0] == "https://other.invalid/"
    monkeypatch.setenv("npm_config_registry", "ftp://other.invalid")
    with pytest.raises(UserInputError, match="must begin with https"):
        npm.registry_of("some")
