"""Only regular files beneath the roots are reached."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmamil_sdk.errors import (
    SlideCorrupt,
    SlideNotFound,
    SlideUnreadable,
    SlideUriForbidden,
)
from cmamil_sdk.serving.paths import open_slide_file, resolve


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``root`` with slides, links and special files; ``outside`` beside it."""
    base = tmp_path_factory.mktemp("tree")
    root, outside = base / "root", base / "outside"
    (root / "deep" / "er").mkdir(parents=True)
    outside.mkdir()
    for file in (root / "a.svs", root / "deep" / "er" / "b c.svs", outside / "secret.svs"):
        file.write_text("pixels")
    (root / "link.svs").symlink_to(outside / "secret.svs")
    (root / "inner.svs").symlink_to(root / "a.svs")
    (root / "dangling.svs").symlink_to(outside / "nothing.svs")
    (root / "linked").symlink_to(outside)
    (root / "deep" / "up").symlink_to("..")
    os.mkfifo(root / "pipe.svs")
    (base / "alias").symlink_to(root)
    return base


@pytest.mark.parametrize(
    "uri",
    ["a.svs", "./a.svs", "{root}/a.svs", "file:{root}/a.svs", "file://{root}/a.svs",
     "file://localhost{root}/a.svs", "deep/er/b c.svs", "file://{root}/deep/er/b%20c.svs",
     "deep//er/./b c.svs", "FILE:{root}/a.svs"],
)  # fmt: skip
def test_slides_beneath_the_root_are_found(tree: Path, uri: str) -> None:
    found = resolve(uri.format(root=tree / "root"), [tree / "root"])
    assert found.path.read_text() == "pixels"
    assert not found.shown.startswith("/")


@pytest.mark.parametrize(
    "uri",
    ["../outside/secret.svs", "deep/../../outside/secret.svs", "deep/../a.svs", "..", "/",
     "{base}/outside/secret.svs", "/etc/passwd", "{root}/../outside/secret.svs", "{root}",
     "file:{root}/%2e%2e/outside/secret.svs", "file:{root}/..%2foutside%2fsecret.svs",
     "a.svs\0", "file:{root}/a.svs%00", "link.svs", "inner.svs", "dangling.svs",
     "linked/secret.svs", "deep/up/a.svs", "pipe.svs", "deep", "http://host/a.svs",
     "s3://bucket/a.svs", "file://elsewhere{root}/a.svs", "file:a.svs", "file:{root}/a.svs?x",
     "file:{root}/a.svs#x", "c:\\a.svs", "{root}extra/a.svs", "."],
)  # fmt: skip
def test_everything_else_is_forbidden(tree: Path, uri: str) -> None:
    with pytest.raises(SlideUriForbidden):
        resolve(uri.format(root=tree / "root", base=tree), [tree / "root"])


@pytest.mark.parametrize("uri", ["none.svs", "deep/none.svs", "a.svs/b", "x" * 300, "é☃.svs"])
def test_what_is_missing_beneath_the_root_is_not_found(tree: Path, uri: str) -> None:
    with pytest.raises(SlideNotFound):
        resolve(uri, [tree / "root"])


def test_answers_outside_do_not_depend_on_what_is_there(tree: Path) -> None:
    messages = []
    for name in ("secret.svs", "absent.svs"):
        with pytest.raises(SlideUriForbidden) as caught:
            resolve(f"{tree}/outside/{name}", [tree / "root"])
        messages.append(str(caught.value).replace(name, ""))
    assert messages[0] == messages[1]


def test_the_root_itself_may_be_a_link(tree: Path) -> None:
    alias = tree / "alias"
    for uri in ("a.svs", f"{alias}/a.svs", f"{tree}/root/a.svs"):
        assert resolve(uri, [alias]).name == "a.svs"


def test_roots_are_tried_in_turn(tree: Path) -> None:
    roots = [tree / "outside", tree / "root"]
    assert resolve("a.svs", roots).root == str(tree / "root")
    assert resolve("secret.svs", roots).root == str(tree / "outside")


def test_a_character_device_is_forbidden() -> None:
    with pytest.raises(SlideUriForbidden):
        resolve("null", [Path("/dev")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_slide_is_said_to_be_so(tree: Path) -> None:
    locked = tree / "root" / "locked.svs"
    locked.write_text("pixels")
    locked.chmod(0)
    with pytest.raises(SlideUnreadable):
        resolve("locked.svs", [tree / "root"])


def test_a_replaced_slide_is_noticed(tmp_path: Path) -> None:
    slide = tmp_path / "a.svs"
    slide.write_text("old")
    ref = resolve("a.svs", [tmp_path])
    os.close(open_slide_file(ref))
    (tmp_path / "new").write_text("new content")
    (tmp_path / "new").rename(slide)
    with pytest.raises(SlideCorrupt):
        open_slide_file(ref)


def test_a_slide_that_became_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    slide = tmp_path / "root" / "a.svs"
    slide.write_text("pixels")
    ref = resolve("a.svs", [tmp_path / "root"])
    slide.rename(tmp_path / "moved")
    slide.symlink_to(tmp_path / "moved")
    with pytest.raises(SlideUriForbidden):
        open_slide_file(ref)


_PART = st.one_of(
    st.sampled_from(
        ["..", ".", "", "root", "outside", "secret.svs", "a.svs", "link.svs", "linked", "deep",
         "up", "er", "%2e%2e", "%00", "\0", "inner.svs", "pipe.svs", "b c.svs"]
    ),
    st.text(max_size=6),
)  # fmt: skip


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    prefix=st.sampled_from(["", "/", "file:", "file://", "{root}/", "file:{root}/", "{base}/"]),
    parts=st.lists(_PART, max_size=6),
    quoted=st.booleans(),
)
def test_no_spelling_reaches_outside(
    tree: Path, prefix: str, parts: list[str], quoted: bool
) -> None:
    root = tree / "root"
    text = "/".join(parts)
    if quoted:
        text = quote(text.encode("utf-8", "surrogatepass"))
    uri = prefix.replace("{root}", str(root)).replace("{base}", str(tree)) + text
    try:
        found = resolve(uri, [root])
    except (SlideUriForbidden, SlideNotFound):
        return
    assert found.path.is_file() and not found.path.is_symlink()
    assert found.path.resolve() == found.path
    assert found.path.is_relative_to(root)
