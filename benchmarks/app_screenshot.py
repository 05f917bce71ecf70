"""Take the picture of the page to play with that the README shows: images as they grow.

    python -m benchmarks.app_screenshot smalti/digits docs/app.png

Serves the page of a run, draws with the first seed that was not shown yet, and takes the picture when about two thirds
of the codes are drawn. Needs Gradio, playwright and a Chromium.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from smalti.common.folder import replacing
from smalti.pipeline.growth import UNDRAWN

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1300, 1040
DRAWN = 0.65  # share of the first image that is no longer grey
WAIT = """
([grey, share]) => {
  const picture = document.querySelector('#sheet img'), canvas = document.createElement('canvas');
  if (!picture.complete) return false;
  const [width, height] = [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
  const context = canvas.getContext('2d', {willReadFrequently: true});
  context.drawImage(picture, 0, 0);
  const shades = context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 === 0);
  window.begun ||= shades.every(shade => shade === grey);
  if (!window.begun || shades.filter(shade => shade === grey).length >= (1 - share) * shades.length) return false;
  const sheet = document.querySelector('#sheet');
  sheet.replaceWith(sheet.cloneNode(true));  // what grows on is not shown, however long the picture takes
  return true;
}
"""


def take(address: str, path: Path) -> None:
    """Open the page, draw, and write the picture."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright, replacing(path) as aside:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(address)
        page.wait_for_selector("#sheet figure img")
        page.fill("#seed input", "20")
        page.click("#draw-button")
        page.wait_for_function(WAIT, arg=[UNDRAWN, DRAWN])
        aside.write_bytes(page.screenshot())
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "smalti.pipeline.app", arguments.run]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None  # it is a pipe
        try:
            take(server.stdout.readline().split()[-1], arguments.picture)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
