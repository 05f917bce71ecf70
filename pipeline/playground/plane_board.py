"""A plane with points on it, to click or to drag over: its place under the pointer is told while the pointer moves.

Its value is {points, right, up, extent, near}: the points as a picture, a data URI; the chosen place; left, right,
bottom and top of the plane; and the place of the nearest point. Two sliders beside it are for those without a pointer.
"""

import base64
from collections.abc import Sequence
from typing import Any

from smalti.pipeline.playground.latent_map import LatentMap
from smalti.pipeline.reporting.markup import Html, join, tag

# Okabe and Ito (2008), told apart by the colour-blind, and two greys between them
COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#5e3c99", "#444444", "#999999",
)  # fmt: skip
SIDE = 480  # units of the picture
RADIUS = 3.4

TEMPLATE = (
    '<div class="tes-plane" role="img" aria-label="${told}"><img alt="" draggable="false">'
    '<i class="near"></i><i class="chosen"></i></div>'
)

SCRIPT = """
const board = element.querySelector('.tes-plane'), picture = board.querySelector('img');
let pressed = false, told = 0;

function put(mark, [right, up]) {
  const [left, most, bottom, top] = props.value.extent;
  mark.style.left = 100 * (right - left) / (most - left) + '%';
  mark.style.top = 100 * (top - up) / (top - bottom) + '%';
}
function show() {
  const {points, right, up, near} = props.value;
  if (picture.getAttribute('src') !== points) picture.src = points;
  put(board.querySelector('.chosen'), [right, up]);
  put(board.querySelector('.near'), near);
}
function tell(event) {
  const [left, most, bottom, top] = props.value.extent, box = board.getBoundingClientRect();
  const clip = share => Math.min(1, Math.max(0, share));
  const right = left + (most - left) * clip((event.clientX - box.left) / box.width);
  const up = top - (top - bottom) * clip((event.clientY - box.top) / box.height);
  put(board.querySelector('.chosen'), [right, up]);
  told = event.timeStamp;
  trigger('click', {right, up});
}
board.addEventListener('pointerdown', event => {
  if (event.button !== 0) return;
  event.preventDefault();
  board.setPointerCapture(event.pointerId);
  pressed = true;
  tell(event);
});
board.addEventListener('pointermove', event => { if (pressed && event.timeStamp - told > 80) tell(event); });
board.addEventListener('pointerup', event => {
  if (pressed && event.timeStamp > told) tell(event);
  pressed = false;
});
board.addEventListener('pointercancel', () => { pressed = false; });
watch('value', show);
show();
"""

STYLE = """
.tes-plane {
  position: relative; width: 100%; max-width: 34rem; aspect-ratio: 1; touch-action: none; user-select: none;
  cursor: crosshair; background: #fff; border-radius: 3px; box-shadow: 0 0 0 1px var(--border-color-primary);
}
.tes-plane img { display: block; width: 100%; height: 100%; margin: 0; pointer-events: none; }
.tes-plane i { position: absolute; pointer-events: none; transform: translate(-50%, -50%); border-radius: 50%; }
.tes-plane i.chosen { width: 18px; height: 18px; border: 2px solid #1d2126; box-shadow: 0 0 0 2px #fff; }
.tes-plane i.near { width: 12px; height: 12px; border: 2px solid #1d2126; }
#there .tes-sheet { grid-template-columns: 1fr 1fr; }
.tes-classes { display: flex; flex-wrap: wrap; gap: .2rem .8rem; margin: 0 !important; font-size: .82rem; }
.tes-classes span { white-space: nowrap; color: var(--body-text-color); }
.tes-classes i {
  display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .3rem;
  box-shadow: 0 0 0 1.5px #fffa;  /* a dark colour shows on a dark page */
}
"""


def plane_value(drawn: str, shown: LatentMap, place: Sequence[float], near: int) -> dict[str, Any]:
    """Return the value of a board, whose points are drawn in a data URI."""
    right, up = place
    return {
        "points": drawn,
        "right": right,
        "up": up,
        "extent": list(shown.extent),
        "near": shown.points[near].tolist(),
    }


def points_uri(shown: LatentMap) -> str:
    """Return the points of a map, coloured by class, as the data URI of an SVG."""
    left, right, bottom, top = shown.extent
    circles = [
        tag(
            "circle",
            cx=f"{SIDE * (x - left) / (right - left):.1f}",
            cy=f"{SIDE * (top - y) / (top - bottom):.1f}",
            r=RADIUS,
            fill=colour(int(label)),
        )
        for (x, y), label in zip(shown.points.tolist(), shown.labels.tolist(), strict=True)
    ]
    drawn = tag(
        "svg", tag("g", *circles, fill_opacity=0.75), xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {SIDE} {SIDE}"
    )
    return "data:image/svg+xml;base64," + base64.b64encode(str(drawn).encode()).decode()


def colour(label: int) -> str:
    """Return the colour of a class; of more than ten, some share one."""
    return COLOURS[label % len(COLOURS)] if label >= 0 else COLOURS[-1]


def legend(shown: LatentMap) -> Html:
    """Return the colours of the classes; nothing of more than there are colours."""
    names = shown.class_names if len(shown.class_names) <= len(COLOURS) else ()
    return (
        tag(
            "p",
            *(tag("span", tag("i", style=f"background:{colour(label)}"), name) for label, name in enumerate(names)),
            class_="tes-classes",
        )
        if names
        else join()
    )
