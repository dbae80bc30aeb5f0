"""What a user sees: TensorBoard and the report in headless Chromium, with the data of real runs."""

import re
from collections.abc import Iterator

import pytest
from browser import new_page, open_browser, serve_tensorboard
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser

# Patient: TensorBoard draws its cards one by one, on a machine that may be busy.
SOON = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(smoke) -> Iterator[str]:
    with serve_tensorboard(smoke["autoencoder"].parent) as address:
        yield address


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """A page without a network, whose errors fail the test that uses it."""
    page = new_page(browser)
    page.context.set_offline(True)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url[:80]) if request.url.startswith("http") else None)
    yield page
    page.context.close()
    assert errors == []


def open_tensorboard(browser: Browser, address: str, dashboard: str) -> Page:
    page = new_page(browser)
    page.goto(f"{address}/#{dashboard}")
    return page


def expect_loaded(page: Page, selector: str) -> None:
    """Every picture has arrived and can be decoded."""
    expect(page.locator(selector).first).to_be_visible(timeout=SOON)
    page.wait_for_function(
        "selector => [...document.querySelectorAll(selector)].every(image => image.complete && image.naturalWidth > 0)",
        arg=selector,
        timeout=SOON,
    )


def pixels(page: Page, plane: str) -> str:
    return page.locator(f"#{plane} canvas").evaluate("canvas => canvas.toDataURL()")


def move(page: Page, slider: str, value: float) -> None:
    page.locator(f"#{slider}").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def test_tensorboard_time_series(browser, address, tmp_path):
    """Curves stand in groups, and slices beside them."""
    page = open_tensorboard(browser, address, "timeseries")
    for group in ("train", "validation", "loss_parts", "slices"):
        expect(page.locator("metrics-card-group-toolbar").filter(has_text=group)).to_be_visible(timeout=SOON)
    runs = page.locator("runs-data-table, runs-table-component").first
    expect(runs).to_contain_text("autoencoder/tensorboard", timeout=SOON)
    expect(runs).to_contain_text("diffusion/tensorboard")

    for tag in ("train/loss", "train/learning_rate", "validation/ssim_oracle", "validation/val_loss"):
        page.get_by_role("combobox", name="Filter tags (regex)").fill(f"^{tag}$")
        card = page.locator("scalar-card").first
        expect(card).to_contain_text(tag, timeout=SOON)
        expect(card.locator("line-chart")).to_be_visible(timeout=SOON)
    page.get_by_role("combobox", name="Filter tags (regex)").fill("^slices/")
    expect(page.locator("image-card")).to_have_count(6, timeout=SOON)
    expect_loaded(page, "image-card img")
    path = tmp_path / "tensorboard.png"
    page.screenshot(path=path)
    assert path.stat().st_size > 10_000
    page.context.close()


def test_tensorboard_custom_charts(browser, address):
    page = open_tensorboard(browser, address, "custom_scalars")
    for category in ("training", "reconstruction beside a perfect denoiser's", "loss"):
        expect(page.locator("tf-category-paginated-view").filter(has_text=category).first).to_be_visible(timeout=SOON)
    expect(page.get_by_text("training and validation, by epoch")).to_be_visible(timeout=SOON)
    expect(page.locator("tf-line-chart-data-loader").first).to_be_visible(timeout=SOON)
    page.context.close()


def test_tensorboard_hparams(browser, address):
    """The settings of a run stand beside its metrics."""
    page = open_tensorboard(browser, address, "hparams")
    table = page.locator("tf-hparams-table-view")
    # of both stages, although they have different settings and metrics
    names = ("kl_weight", "precision", "validation/ssim_ratio", "validation/val_loss")
    for text in (*names, "autoencoder/tensorboard", "diffusion/tensorboard"):
        expect(table.get_by_text(text, exact=True).first).to_be_attached(timeout=SOON)
    page.context.close()


def test_report_of_training(page, smoke):
    """Curves, and the slices of the epoch that the slider is at."""
    page.goto((smoke["autoencoder"] / "report.html").as_uri())
    assert page.locator("img.curve").count() == 3
    expect_loaded(page, "img.curve")
    expect(page.locator(".frame:visible")).to_have_attribute("data-epoch", "2")
    move(page, "epoch", 0)
    expect(page.locator(".frame:visible")).to_have_attribute("data-epoch", "1")
    expect_loaded(page, ".frame:not([hidden]) img")


def test_report_slice_viewer(page, generated):
    """The viewer follows sliders, mouse, grey values and gallery."""
    page.goto((generated / "report.html").as_uri())
    expect(page.locator("#gallery button")).to_have_count(4)
    expect_loaded(page, "img.picture")
    views = ("axial", "coronal", "sagittal")
    before = {view: pixels(page, view) for view in views}

    move(page, "z", 20)
    assert pixels(page, "axial") != before["axial"]
    assert [pixels(page, view) for view in views[1:]] == [before[view] for view in views[1:]]
    assert "z = 20" in page.locator("label", has=page.locator("#z")).inner_text()

    # a click in the axial slice chooses the other two
    page.locator("#axial").click(position={"x": 100, "y": 120})
    assert all(pixels(page, view) != before[view] for view in views)
    page.locator("#axial").hover()
    page.mouse.wheel(0, 100)
    expect(page.locator("label", has=page.locator("#z"))).to_contain_text("z = 19")
    page.get_by_role("button", name="Reset").click()
    assert {view: pixels(page, view) for view in views} == before

    move(page, "width", 1.0)
    assert pixels(page, "axial") != before["axial"]
    page.locator("#gallery button").nth(2).click()
    expect(page.locator("#value")).to_contain_text("sphere_00002.nii.gz")
    expect(page.locator("#gallery button").nth(2)).to_have_attribute("aria-pressed", "true")
    assert re.search(r"r\s\d+\.\d\d", page.locator("#gallery button").nth(2).inner_text())


def test_report_on_narrow_screen(page, generated):
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto((generated / "report.html").as_uri())
    expect(page.locator("#gallery button")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
