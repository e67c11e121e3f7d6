"""A real browser without a window; the tests are skipped where there is none."""

import os
import shutil

import pytest

NEEDS = (
    "no Chromium with its driver: `apt-get install chromium chromium-driver` (or Chrome and "
    "chromedriver on PATH) and `pip install 'jaxstab[browser]'`, then `make test-browser`"
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason=NEEDS)
    paths = [path for path in map(shutil.which, NAMES) if path]
    driver = shutil.which("chromedriver")
    if not paths or not driver:
        if os.environ.get("JAXSTAB_BROWSER") == "required":
            pytest.fail(NEEDS)
        pytest.skip(NEEDS)
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    folder = tmp_path_factory.mktemp("profile")
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={folder}")
    options.add_argument("--window-size=1200,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    started = webdriver.Chrome(options=options, service=service)
    started.set_script_timeout(60)
    yield started
    started.quit()
