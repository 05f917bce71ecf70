"""A picture divided into places to click or to drag over: the code grid of an image, or the codes themselves.

Its value is {src, rows, columns, covered, chosen}: the picture as a data URI, the covered places, and one framed place.
A board to `cover` changes `covered` itself, and an event reads it from there; a board to `pick` reports the places that
were dragged over when the pointer is lifted.
"""

from collections.abc import Sequence
from typing import Any

from smalti.common.errors import UserError

TEMPLATE = (
    '<div class="tes-board ${mode}" role="img" aria-label="${told}"><img alt="" draggable="false"><div></div></div>'
)

SCRIPT = """
const board = element.querySelector('.tes-board'), picture = board.querySelector('img'), marks = board.querySelector('div');
let dragged = null, covering = false;

function mark(kind, place) {
  const {rows, columns} = props.value, each = document.createElement('i');
  each.className = kind;
  each.style.left = 100 * (place % columns) / columns + '%';
  each.style.top = 100 * Math.floor(place / columns) / rows + '%';
  return each;
}
function show() {
  const {src, rows, columns, covered, chosen} = props.value;
  if (picture.getAttribute('src') !== src) picture.src = src;
  board.style.setProperty('--rows', rows);
  board.style.setProperty('--columns', columns);
  marks.replaceChildren(
    ...covered.map(place => mark('covered', place)),
    ...(dragged ? [...dragged] : []).map(place => mark('dragged', place)),
    ...(chosen === null ? [] : [mark('chosen', chosen)]));
}
function placeAt(event) {
  const {rows, columns} = props.value, box = board.getBoundingClientRect();
  const clip = (share, number) => Math.min(number - 1, Math.max(0, Math.floor(share * number)));
  const row = clip((event.clientY - box.top) / box.height, rows);
  return row * columns + clip((event.clientX - box.left) / box.width, columns);
}
function over(place) {
  if (props.mode !== 'cover') { dragged.add(place); return show(); }
  const covered = new Set(props.value.covered);
  covering ? covered.add(place) : covered.delete(place);
  props.value = {...props.value, covered: [...covered]};
  show();
}
board.addEventListener('pointerdown', event => {
  if (event.button !== 0) return;
  event.preventDefault();
  board.setPointerCapture(event.pointerId);
  dragged = new Set();
  covering = !props.value.covered.includes(placeAt(event));
  over(placeAt(event));
});
board.addEventListener('pointermove', event => { if (dragged) over(placeAt(event)); });
board.addEventListener('pointercancel', () => { dragged = null; show(); });
board.addEventListener('pointerup', event => {
  if (!dragged) return;
  const places = [...dragged];
  dragged = null;
  if (props.mode !== 'cover') trigger('click', {places});
  show();
});
watch('value', show);
show();
"""

STYLE = """
.tes-board { position: relative; width: 100%; touch-action: none; user-select: none; cursor: crosshair; background: #fff; }
.tes-board img { display: block; width: 100%; height: auto; image-rendering: pixelated; pointer-events: none; margin: 0; }
.tes-board > div { position: absolute; inset: 0; pointer-events: none; }
.tes-board.paint > div, .tes-board.cover > div {
  background-image: linear-gradient(to right, #8886 1px, transparent 1px),
    linear-gradient(to bottom, #8886 1px, transparent 1px);
  background-size: calc(100% / var(--columns)) calc(100% / var(--rows));
}
.tes-board i { position: absolute; width: calc(100% / var(--columns)); height: calc(100% / var(--rows)); }
.tes-board i.covered { background: #bcd0ee; }
.tes-board i.dragged { background: #2f6fc480; }
.tes-board i.chosen { outline: 3px solid #2f6fc4; outline-offset: -1px; z-index: 1; }
"""


def board_value(
    src: str, rows: int, columns: int, covered: Sequence[int] = (), chosen: int | None = None
) -> dict[str, Any]:
    """Return the value of a board."""
    return {"src": src, "rows": rows, "columns": columns, "covered": list(covered), "chosen": chosen}


def read_places(given: Any, places: int) -> list[int]:
    """Return the places that a browser sent, sorted. Raises `UserError` where they are not on the board."""
    whole = isinstance(given, list) and all(isinstance(place, int) and 0 <= place < places for place in given)
    if not whole:
        raise UserError(f"places must be whole numbers from 0 to {places - 1}; load the page again")
    return sorted(set(given))
