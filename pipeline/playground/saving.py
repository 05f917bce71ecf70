"""Buttons that save pictures of the page as PNG files: one as it is, pixel for pixel, several as one grid.

The browser makes the file from the pictures that it shows, so nothing is sent and the server writes nothing.
"""

from smalti.pipeline.reporting.markup import Html, tag

SCRIPT = """
const GAP = 2, MOST = 2 ** 24;  // pixels between pictures, and of a canvas: phones have no larger one

function gridOf(pictures) {
  const [width, height] = [pictures[0].naturalWidth, pictures[0].naturalHeight];
  const columns = Math.ceil(Math.sqrt(pictures.length)), rows = Math.ceil(pictures.length / columns);
  const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
  const across = columns * (width + GAP) - GAP, down = rows * (height + GAP) - GAP;
  const scale = Math.min(1, Math.sqrt(MOST / (across * down)));
  [canvas.width, canvas.height] = [Math.floor(across * scale), Math.floor(down * scale)];
  context.scale(scale, scale);
  pictures.forEach((each, i) =>
    context.drawImage(each, i % columns * (width + GAP), Math.floor(i / columns) * (height + GAP)));
  return canvas.toDataURL('image/png');
}
function say(button, told) {
  button.dataset.label ||= button.textContent;
  button.textContent = told;
  setTimeout(() => { button.textContent = button.dataset.label; }, 2500);
}
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-pictures]');
  if (!button) return;
  const pictures = [...document.querySelectorAll(button.dataset.pictures)];
  if (!pictures.length) return say(button, button.dataset.none);
  const link = document.createElement('a');
  link.href = pictures.length === 1 ? pictures[0].src : gridOf(pictures);
  link.download = button.dataset.file;
  link.click();
});
"""

STYLE = """
.tes-save { display: flex; flex-wrap: wrap; gap: .5rem; margin: .6rem 0 0; }
.tes-save button {
  font-size: .85rem; font-weight: 400; padding: .35rem .8rem; border-radius: 4px; cursor: pointer;
  color: var(--body-text-color); background: var(--button-secondary-background-fill);
  border: 1px solid var(--border-color-primary);
}
.tes-save button:hover { background: var(--button-secondary-background-fill-hover); }
"""


def save_button(label: str, pictures: str, file: str, none: str = "There is no picture yet") -> Html:
    """Return a button that saves pictures.

    Args:
        pictures: a CSS selector of the images.
        none: what the button says for a moment where it selects none.
    """
    return tag("button", label, type="button", data_pictures=pictures, data_file=file, data_none=none)


def save_buttons(*buttons: Html) -> Html:
    """Return a row of such buttons."""
    return tag("div", *buttons, class_="tes-save")
