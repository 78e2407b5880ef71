"""Images that a list names by addresses, and archives far away, from servers on loopback."""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import containers
import web_server
from genenc_core import api, errors, spec
from genenc_core.images.containers import remote_objects
from genenc_core.images.labels import reading
from genenc_core.images.load.loader import ImageLoader
from genenc_core.images.sources import image_source, label_check, manifest
from genenc_core.inspection import inspect
from genenc_core.inspection import parameters as inspection_parameters
from genenc_core.run import driver, parameters, status
from genenc_core.system import web

FRAMES = containers.frames(4)
PNGS = [containers.png(frame) for frame in FRAMES]
PREPROCESSING = spec.Preprocessing(height=FRAMES[0].shape[0], width=FRAMES[0].shape[1])


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[web_server.Site]:
    """A server with four images in two folders."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("/a/0.png", "/a/1.png", "/b/é 2.png", "/b/3.png")
    with web_server.serving(files=dict(zip(names, PNGS, strict=True))) as found:
        yield found


def write_list(folder: Path, *entries: str, more: str = "") -> Path:
    path = folder / "list.csv"
    path.write_text("url,label\n" + "".join(f'"{each}",{at}{more}\n' for at, each in enumerate(entries)))
    return path


def listed(images: Path | str, out: Path, **given: object) -> manifest.Manifest:
    column = "url" if str(images).endswith(".csv") else None
    source = image_source.open_source(str(images), image_column=column)
    return manifest.write_manifest(out / "listed.manifest", source, **given)  # type: ignore[arg-type]


def load(found: manifest.Manifest) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    pixels: dict[int, np.ndarray] = {}
    reasons: dict[int, str] = {}
    with ImageLoader(found, PREPROCESSING, workers=1, batch=4) as loader:
        for batch in loader.iter_batches(0, found.rows):
            images = (image for part in batch.parts for image in part)
            pixels |= {row: np.array(image.numpy()) for row, image in zip(batch.rows.tolist(), images, strict=True)}
            reasons |= {each.row: each.reason for each in batch.unreadable}
            batch.release()
    return pixels, reasons


def same(pixels: dict[int, np.ndarray], *wanted: int) -> None:
    assert {*pixels} == {*range(len(wanted))}
    for row, at in enumerate(wanted):
        np.testing.assert_array_equal(pixels[row].transpose(1, 2, 0), FRAMES[at])


def test_a_list_of_addresses_and_files(site: web_server.Site, tmp_path: Path) -> None:
    (tmp_path / "near.png").write_bytes(PNGS[1])
    entries = [f"{site.url}/a/0.png", "near.png", f"{site.url}/b/é 2.png", f"{site.url}/b/3.png?size=1"]
    (tmp_path / "points.csv").write_text("image,point,x,y\na/0.png,nose,3,4\nnear.png,nose,5,6\n")
    points = reading.read_points(tmp_path / "points.csv")
    found = listed(write_list(tmp_path, *entries), tmp_path, points=points)
    rows = found.read(0, found.rows)
    assert rows.image_ids == entries
    assert rows.paths == [entries[0], str(tmp_path / "near.png"), *entries[2:]]
    assert rows.bytes.tolist() == list(map(len, PNGS))
    assert rows.mtime_ns[0] == web_server.TIME * 10**9
    assert rows.points[:2, 0, 0].tolist() == [3, 5]
    assert found.columns == ("label",)
    assert site.asked == {"HEAD": 3}
    pixels, reasons = load(found)
    assert reasons == {}
    same(pixels, 0, 1, 2, 3)
    assert (
        manifest.describe_difference(found, listed(tmp_path / "list.csv", tmp_path, points=points)) == "no difference"
    )


@pytest.mark.parametrize("form", ["heads", "sizes"])
def test_servers_that_do_not_say_sizes_are_read(site: web_server.Site, tmp_path: Path, form: str) -> None:
    setattr(site, form, False)
    found = listed(write_list(tmp_path, f"{site.url}/a/0.png"), tmp_path)
    assert found.read(0, 1).bytes.tolist() == [len(PNGS[0])]
    same(load(found)[0], 0)


def test_faults_that_pass_are_waited_for(site: web_server.Site, tmp_path: Path) -> None:
    site.faults = {"/a/0.png": [503, "drop"], "/a/1.png": [429]}
    entries = [f"{site.url}/a/0.png", f"{site.url}/a/1.png"]
    found = listed(write_list(tmp_path, *entries), tmp_path)
    assert found.read(0, 2).bytes.tolist() == list(map(len, PNGS[:2]))
    site.faults = {"/a/0.png": ["cut", 500], "/a/1.png": ["drop"]}
    pixels, reasons = load(found)
    assert reasons == {}
    same(pixels, 0, 1)


def test_files_that_change_go_or_are_not_there(site: web_server.Site, tmp_path: Path) -> None:
    entries = [f"{site.url}{name}" for name in (*site.files, "/none.png")]
    found = listed(write_list(tmp_path, *entries), tmp_path)
    other = bytearray(PNGS[0])
    other[-1] ^= 1
    site.files["/a/0.png"] = bytes(other)  # of the same size and time
    site.files["/a/1.png"] = PNGS[1][:-9]
    del site.files["/b/é 2.png"]
    pixels, reasons = load(found)
    assert {*pixels} == {3}
    assert "replaced since planned: its ETag was" in reasons[0]
    assert "changed since planned: was" in reasons[1]
    assert reasons[2] == reasons[4] == "cannot be read: there is no such file: 404 Not Found"


def test_redirects_are_followed_within_reason(site: web_server.Site, tmp_path: Path) -> None:
    site.faults = {"/x.png": ["/a/0.png"] * 2, "/y.png": ["/y.png"] * 9, "/z.png": ["file:///etc/passwd"] * 9}
    found = listed(write_list(tmp_path, f"{site.url}/x.png"), tmp_path)
    same(load(found)[0], 0)
    client = web.Web(web.Patience(tries=1))
    with pytest.raises(web.WebError, match="more than 5 other addresses"):
        client.request("GET", f"{site.url}/y.png")
    with pytest.raises(web.WebError, match="not of the web"):
        client.request("GET", f"{site.url}/z.png")


def test_a_password_is_not_sent_to_another_server(site: web_server.Site) -> None:
    site.user = "me:word"
    with web_server.serving() as other:
        other.faults = {"/x.png": [f"http://localhost:{site.url.rpartition(':')[2]}/a/0.png"]}
        with pytest.raises(web.WebError, match="needs a user and a password"):
            web.Web().request("GET", other.url.replace("//", "//me:word@") + "/x.png")
    assert web.Web().request("GET", site.url.replace("//", "//me:word@") + "/a/0.png").body == PNGS[0]


def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_objects, "_ASKED", web.Patience(tries=1))
    with web_server.serving() as gone:
        pass
    found = listed(write_list(tmp_path, f"{gone.url}/a.png"), tmp_path)
    assert found.read(0, 1).bytes.tolist() == [-1]


def test_a_fault_of_the_network_is_not_the_images(site: web_server.Site, tmp_path: Path) -> None:
    found = listed(write_list(tmp_path, f"{site.url}/a/0.png"), tmp_path)
    site.faults = {"/a/0.png": [401] * 9}
    with pytest.raises(OSError, match=r"it needs a user and a password.*netrc"):
        load(found)


def test_an_inspection_and_a_dataset(site: web_server.Site, tmp_path: Path) -> None:
    site.signed = True
    place = write_list(tmp_path, f"{site.url}/a/0.png?sig=good", f"{site.url}/a/1.png?sig=good")
    options = {"image_column": "url", "weights": "random:0", "image_size": "32"}
    given = {"images": str(place), "model": "tiny_models:conv", "out": str(tmp_path / "look"), **options}
    found = inspect.inspect(inspection_parameters.InspectParameters.model_validate(given))
    assert "PNG" in json.dumps(found.as_json())
    assert "sig=good" not in json.dumps(found.as_json())
    with pytest.raises(errors.InputError, match="names images by addresses, and datasets are made of image files"):
        api.update(tmp_path / "set", place, "tiny_models:conv", **options)


SECRETS = ("hunter22", "sig=good", "Xq7signature")


def test_credentials_are_nowhere_in_a_run_and_come_from_the_list_again(site: web_server.Site, tmp_path: Path) -> None:
    site.user, site.signed = "me:hunter22", True
    start = site.url.replace("//", "//me:hunter22@")
    query = "sig=good&X-Amz-Signature=Xq7signature&X-Amz-Date=20260101T000000Z&v=2"
    entries = [f"{start}{name}?{query}" for name in ("/a/0.png", "/a/1.png", "/none.png")]
    (tmp_path / "lists").mkdir()
    place = write_list(tmp_path / "lists", *entries)
    given = {
        "images": str(place),
        "image_column": "url",
        "out": str(tmp_path / "run"),
        "model": "tiny_models:conv",
        "weights": "random:0",
        "image_size": "32",
        "device": "cpu",
        "shard_rows": 2,
        "max_failures": "100%",
    }
    done = driver.extract(parameters.ExtractParameters.model_validate(given))
    assert status.verify_run(done.run, content=True).ok
    ids = done.run.manifest.read(0, 3).image_ids
    assert ids == [f"{site.url}{name}?v=2" for name in ("/a/0.png", "/a/1.png", "/none.png")]
    assert api.Run(done.run).status().ok == 2
    recorded = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    for secret in SECRETS:
        assert any(secret in target for _, target in site.seen) or secret == "hunter22"
        assert [path for path in recorded if secret.encode() in path.read_bytes()] == []
    manifest_text = json.dumps(done.run.manifest._read_table(0, 3).to_pylist())
    assert not any(secret in manifest_text for secret in SECRETS)
    sizes = label_check._sizes(done.run.manifest, [0, 1], None)
    assert [size.shown for size in sizes.values()] == [FRAMES[0].shape[1::-1]] * 2
    # New signatures: the same run, which goes on with them.
    write_list(tmp_path / "lists", *(each.replace("20260101", "20270101") for each in entries))
    driver.extract(parameters.ExtractParameters.model_validate(given))
    write_list(tmp_path / "lists", f"{site.url}/other.png")
    with pytest.raises(errors.InputError, match=r"is signed, and the list .* no longer has it") as refused:
        load(manifest.Manifest.open(done.run.manifest.path))
    assert not any(secret in str(refused.value) for secret in SECRETS)


def test_addresses_that_are_refused(site: web_server.Site, tmp_path: Path) -> None:
    for images, words in (
        ("https://me:word@host/a.png", "holds credentials, or is signed: .*netrc"),
        ("https://host/a.tar?X-Amz-Signature=12", "holds credentials, or is signed"),
        ("https://host/photos", "neither an image nor a .tar, and a web server has no list"),
        ("s3://bucket/a.tar.gz", "a compressed archive"),
        ("pipe:curl -s https://host/a.tar", "is a command, whose output cannot be read twice"),
    ):
        with pytest.raises(errors.InputError, match=words):
            image_source.open_source(images)
    with pytest.raises(errors.InputError, match=r"'ftp://host/a.png' is a URL \(ftp://\)"):
        listed(write_list(tmp_path, "ftp://host/a.png"), tmp_path)
    with pytest.raises(errors.InputError, match=r"contains the image .* twice"):
        listed(write_list(tmp_path, f"{site.url}/a/0.png?sig=1", f"{site.url}/a/0.png?sig=2"), tmp_path)


def test_one_image(site: web_server.Site, tmp_path: Path) -> None:
    found = listed(f"{site.url}/a/1.png", tmp_path)
    assert found.read(0, 1).image_ids == [f"{site.url}/a/1.png"]
    same(load(found)[0], 1)


def archive(names: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as opened:
        for name, data in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def shards(site: web_server.Site) -> web_server.Site:
    """Two archives whose members are much larger than their headers."""
    large = b"\x89PNG" + bytes(2**18)
    for at in (0, 1):
        site.files[f"/data/train-{at:04}.tar"] = archive(
            {f"n/{'x' * 120}{at}.png": PNGS[2 * at], "n/1.cls": b"3", "n/large.png": large, "n/9.png": PNGS[2 * at + 1]}
        )
    return site


def test_archives_are_listed_by_their_headers_and_read_by_parts(shards: web_server.Site, tmp_path: Path) -> None:
    found = listed(f"{shards.url}/data/train-{{0000..0001}}.tar", tmp_path)
    rows = found.read(0, found.rows)
    assert [name.replace("x" * 120, "") for name in rows.image_ids] == [
        f"train-{at:04}.tar/n/{name}" for at in (0, 1) for name in (f"{at}.png", "large.png", "9.png")
    ]
    assert rows.paths[0] == f"{shards.url}/data/train-0000.tar"
    assert shards.sent < 2 * 60_000  # of half a megabyte
    assert {kind: count for kind, (count, _) in found.left_out.items()} == {".cls": 2}
    pixels, reasons = load(found)
    assert {*reasons} == {1, 4}
    for row, at in ((0, 0), (2, 1), (3, 2), (5, 3)):
        np.testing.assert_array_equal(pixels[row].transpose(1, 2, 0), FRAMES[at])


def test_archives_that_changed_or_are_damaged(shards: web_server.Site, tmp_path: Path) -> None:
    place = f"{shards.url}/data/train-0000.tar"
    found = listed(place, tmp_path)
    whole = shards.files["/data/train-0000.tar"]
    shards.files["/data/train-0000.tar"] = whole[:3000] + b"x" + whole[3001:]
    pixels, reasons = load(found)
    assert pixels == {}
    assert all("replaced since planned: its ETag" in each for each in reasons.values())
    for cut, words in (
        (len(whole) - 10240, "truncated tar|does not end"),
        (700, "truncated|damaged"),
        (0, "damaged|truncated"),
    ):
        shards.files["/data/train-0000.tar"] = whole[:cut]
        with pytest.raises(errors.InputError, match=words):
            listed(place, tmp_path)
    shards.files["/data/train-0000.tar"] = whole
    shards.ranges = False
    with pytest.raises(errors.InputError, match="gives whole files only, no parts of them: download it"):
        listed(place, tmp_path)
    assert listed(f"{tmp_path}/local.tar", tmp_path).rows == 3 if (tmp_path / "local.tar").write_bytes(whole) else None
    with pytest.raises(errors.InputError, match="there is no such file: 404"):
        listed(f"{shards.url}/none.tar", tmp_path)


def test_archives_in_s3(s3: object, tmp_path: Path) -> None:
    import uuid

    import obstore

    from genenc_core.system import s3 as access

    key = f"tars/{uuid.uuid4().hex[:12]}"
    store = access.open_store(s3.bucket, key)  # type: ignore[attr-defined]
    for at in (0, 1):
        obstore.put(store, f"train-{at}.tar", archive({f"{at}/0.png": PNGS[2 * at], f"{at}/1.png": PNGS[2 * at + 1]}))
    place = f"s3://{s3.bucket}/{key}"  # type: ignore[attr-defined]
    for images in (f"{place}/train-{{0..1}}.tar", f"{place}/train-*.tar"):
        found = listed(images, tmp_path)
        assert found.read(0, 4).image_ids == [f"train-{at}.tar/{at}/{n}.png" for at in (0, 1) for n in (0, 1)]
        pixels, reasons = load(found)
        assert reasons == {}
        same(pixels, 0, 1, 2, 3)
    entry = f"{place}/photo.png"
    obstore.put(store, "photo.png", PNGS[3])
    found = listed(write_list(tmp_path, entry, f"{place}/none.png"), tmp_path)
    assert found.read(0, 2).image_ids == [entry, f"{place}/none.png"]
    pixels, reasons = load(found)
    np.testing.assert_array_equal(pixels[0].transpose(1, 2, 0), FRAMES[3])
    assert "there is no such object" in reasons[1]
    obstore.delete(store, [item["path"] for page in obstore.list(store) for item in page])


@pytest.fixture
def bucket(site: web_server.Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of Google Cloud Storage, on loopback."""
    pytest.importorskip("obstore")
    account = {
        "gcs_base_url": site.url,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    site.files = {f"/our-bucket/photos/{at}.png": data for at, data in enumerate(PNGS)}
    site.files["/our-bucket/photos/notes.txt"] = b"x"
    return "gs://our-bucket"


def test_a_bucket_of_google(bucket: str, site: web_server.Site, tmp_path: Path) -> None:
    for images, wanted in ((f"{bucket}/photos", [0, 1, 2, 3]), (f"{bucket}/photos/[12].png", [1, 2])):
        found = listed(images, tmp_path)
        assert found.read(0, found.rows).image_ids == [f"{at}.png" for at in wanted]
        pixels, reasons = load(found)
        assert reasons == {}
        same(pixels, *wanted)
    found = listed(write_list(tmp_path, f"{bucket}/photos/3.png", f"{site.url}/our-bucket/photos/0.png"), tmp_path)
    same(load(found)[0], 3, 0)
    site.files["/our-bucket/photos/3.png"] = PNGS[2]
    assert "since planned" in load(found)[1][0]
    with pytest.raises(errors.InputError, match="no images found in 'gs://our-bucket/none'"):
        listed(f"{bucket}/none", tmp_path)


@pytest.mark.parametrize(
    ("url", "clean", "had"),
    [
        ("https://h/a.png", "https://h/a.png", False),
        ("https://h/a.png?id=7&v=2#x", "https://h/a.png?id=7&v=2", False),
        ("HTTPS://u:p@h:8/a.png", "https://h:8/a.png", True),
        ("https://h/a.png?X-Amz-Date=1&X-Amz-Signature=2&id=7", "https://h/a.png?id=7", True),
        ("https://h/a.png?X-Goog-Date=1&X-Goog-Signature=2", "https://h/a.png", True),
        ("https://h/a.png?sv=1&st=2&se=3&sp=r&sig=4", "https://h/a.png", True),
        ("https://h/a.png?Expires=1&Signature=2&Key-Pair-Id=3", "https://h/a.png", True),
        ("https://h/a.png?token=1", "https://h/a.png", True),
    ],
)
def test_what_is_recorded_of_an_address(url: str, clean: str, had: bool) -> None:
    assert web.without_credentials(url) == (clean, had)
    assert not re.search("Signature|token|sig=", web.without_credentials(url)[0])
