"""Prefect's pages as a person sees them, in Chromium driven by Playwright: the form, the run page, its artifacts.

Needs `pip install playwright` and a Chromium. Pictures are left in the folder named by GENENC_TESTS_PICTURES, if any.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

import pictures
import prefect_site
import task_runs
from prefect_site import Site, wait_for

pytestmark = [prefect_site.CAMPAIGN, pytest.mark.slow]


@pytest.fixture
def page() -> Iterator[Any]:
    """Return a page of a headless Chromium."""
    api = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1300, "height": 1000})
        opened.set_default_timeout(120_000)
        yield opened
        browser.close()


@pytest.fixture
def site(tmp_path: Path, filled_prefect_home: Path) -> Iterator[Site]:
    found = Site(tmp_path, filled_prefect_home)
    yield found
    found.close()


def keep(page: Any, name: str) -> None:
    """Leave a picture of the page."""
    if folder := os.environ.get("GENENC_TESTS_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_a_run_from_the_form_to_its_pictures(site: Site, page: Any, tmp_path: Path) -> None:
    cut = pictures.write_folder(tmp_path / "photos", 9) / "img_003.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    site.start("serve", "genenc_flows.entry", "serve", "--port", str(site.port))
    wait_for(lambda: "Ctrl-C ends" in site.log("serve").read_text())
    root = site.url.removesuffix("/api")
    with site.client() as client:
        deployment = client.read_deployment_by_name("extract_features/extract")

    page.goto(f"{root}/deployments/deployment/{deployment.id}/run")
    page.get_by_text("A folder, a quoted glob").wait_for()
    values = (str(tmp_path / "photos"), "tiny_models:conv", str(tmp_path / "run"), "", "random:0", "32")
    for at, value in enumerate(values):
        if value:
            page.locator("textarea").nth(at).fill(value)
    keep(page, "form")
    page.get_by_role("button", name="Submit").click()

    def begun() -> Any:
        with site.client() as client:
            return client.read_flow_runs()

    (run,) = wait_for(begun)
    state = site.final_state(run.id)
    assert (state.type, state.message) == (StateType.COMPLETED, "8 of 9 images stored, 1 unreadable")
    assert (tmp_path / "run" / "features.zarr").is_dir()

    page.goto(f"{root}/runs/flow-run/{run.id}")
    page.get_by_text("extract photos with tiny_models:conv").first.wait_for()
    page.get_by_text("Task Runs", exact=True).first.click()
    page.get_by_text("store shard 00000, rows 0-8").first.wait_for()
    keep(page, "run")
    with site.client() as client:
        shown = task_runs.artifacts(client, run.id)
    assert set(shown) == {"progress", "shards", "failed-images", "failed-thumbnails", "report"}
    for name, words in {
        "report": "8 of 9 images stored",
        "failed-thumbnails": "img_003.png",
        "failed-images": "img_003.png",
        "shards": "committed",
    }.items():
        page.goto(f"{root}/artifacts/artifact/{shown[name]['id']}")
        page.get_by_text(words).first.wait_for()
        if name in ("report", "failed-thumbnails"):
            (width,) = page.locator("img[src^='data:image/png']").evaluate_all(
                "all => all.map(one => one.naturalWidth)"
            )
            assert width >= 32
        keep(page, name)
