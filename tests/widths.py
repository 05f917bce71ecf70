"""What of a page lies beyond the window: it would have to be scrolled sideways, or is cut off."""

from typing import Any

WINDOWS = ((390, 844), (1300, 900))  # of a phone, and of a desk
DRAWERS = ".sidebar-drawer, .toc-drawer"  # of the site, beside a narrow window until they are asked for
BEYOND = """drawers => {
  const edge = document.documentElement.clientWidth;
  const scrolls = element => {
    for (let above = element.parentElement; above && above !== document.body; above = above.parentElement)
      if (['auto', 'scroll'].includes(getComputedStyle(above).overflowX)) return true;
    return false;
  };
  const told = element => `${element.tagName} ${element.className} ${element.textContent.trim().slice(0, 40)}`;
  const beyond = [...document.body.querySelectorAll('*')].filter(element => {
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height || element.closest(drawers) || element.ownerSVGElement) return false;
    return (box.right > edge + 1 || box.left < -1) && !scrolls(element);
  });
  const whole = document.documentElement.scrollWidth > edge ? ['the page'] : [];
  return [...whole, ...beyond.map(told)];
}"""


def beyond_the_window(page: Any) -> list[str]:
    """Return the elements of an open page that are wider than a window, light or dark, but what scrolls by itself."""
    found = []
    for width, height in WINDOWS:
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found += [f"{width} {scheme}: {told}" for told in page.evaluate(BEYOND, DRAWERS)]
    return found
