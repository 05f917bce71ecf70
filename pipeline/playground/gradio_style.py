"""The style of the page to play with: quiet, light and dark, wide and narrow, with large images whose pixels show."""

from smalti.pipeline.playground import grid_board, plane_board, saving

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif")
MONOSPACE = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

STYLE = (
    """
.gradio-container {
  width: 100%; min-width: 0 !important; max-width: 1240px !important; margin: 0 auto !important;
  padding: .4rem clamp(.8rem, 4vw, 1.5rem) 2rem !important;  /* Gradio drops its own class from the rules for narrow windows */
}
.gradio-container .fillable { padding: 1rem 0 !important; }
footer .divider { display: none !important; }
.tes-head h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -.01em; font-weight: 650; }
.tes-head a { color: inherit; text-underline-offset: .15em; }
.tes-head p, .tes-note { color: var(--body-text-color-subdued); margin: .2rem 0 0; }
.tes-note { font-size: .9rem; line-height: 1.45; max-width: 46rem; }
.tes-bits { margin-top: 1rem; }
.tes-side { border: 0 !important; }
.gradio-container .form { background: none; border: 0; gap: .4rem; }

.tes-sheet { display: grid; gap: 1.1rem 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--side)), 1fr)); }
.tes-sheet.few { --side: 12.5rem; }
.tes-sheet.some { --side: 8.4rem; }
.tes-sheet.many { --side: 6.2rem; }
.tes-sheet figure { margin: 0; min-width: 0; cursor: pointer; }
.tes-sheet.tes-still figure { cursor: default; }
.tes-sheet .tes-picture {
  width: 100%; height: auto; display: block; margin: 0; border-radius: 3px; background: #fff;
  box-shadow: 0 0 0 1px var(--border-color-primary);
}
.tes-small { image-rendering: pixelated; }
.tes-sheet figure.chosen .tes-picture { outline: 3px solid #2f6fc4; outline-offset: 2px; }
.tes-sheet.tes-still { --side: 11rem; }
.tes-completions .tes-sheet { --side: 7rem; }
.tes-sheet figcaption { margin-top: .4rem; font-size: .82rem; color: var(--body-text-color); line-height: 1.3; }
.tes-sheet figcaption span { display: block; font-size: .75rem; color: var(--body-text-color-subdued); }
.tes-completions .tes-sheet figure, .tes-completions .tes-sheet figcaption { cursor: default; }

.tes-codes { display: block; width: 100%; border-radius: 3px; background: #fff; }
.tes-codes text {
  text-anchor: middle; dominant-baseline: central; fill: #1d2126; font-family: ui-monospace, Menlo, Consolas, monospace;
}
.tes-tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; margin: 1.6rem 0 0; }
.tes-tiles dt { font-size: .82rem; color: var(--body-text-color-subdued); }
.tes-tiles dd { margin: 0; font-size: 1.45rem; font-weight: 600; line-height: 1.35; font-variant-numeric: tabular-nums; }
.tes-tiles dd.about { font-size: .78rem; font-weight: 400; color: var(--body-text-color-subdued); }

.tes-code { display: flex; gap: 1rem; align-items: flex-start; margin-top: .4rem; }
.tes-code > img { width: 6rem; height: 6rem; border: 1px solid var(--border-color-primary); border-radius: 3px; margin: 0; }
.tes-code h3 { margin: 0; font-size: 1.05rem; }
.tes-code p { margin: 0 0 .3rem; font-size: .85rem; color: var(--body-text-color-subdued); line-height: 1.35; }
.tes-code .near { display: flex; flex-wrap: wrap; gap: .5rem; }
.tes-code .near span { text-align: center; font-size: .75rem; line-height: 1.2; }
.tes-code .near b { font-weight: 400; }
.tes-code .near img { width: 2.2rem; height: 2.2rem; margin: 0 auto; border: 1px solid var(--border-color-primary); }
#growing { padding: 0 var(--block-padding); }
.tes-drop { border: 1px dashed var(--body-text-color-subdued) !important; border-radius: 6px; }
.gradio-container input[type=range]::-webkit-slider-thumb { box-shadow: 0 0 0 1px #2f6fc4 !important; }
.gradio-container input[type=range]::-moz-range-thumb { box-shadow: 0 0 0 1px #2f6fc4 !important; }
.tes-drop .wrap { font-size: .9rem !important; line-height: 1.4 !important; padding-top: 0 !important; }
@media (max-width: 640px) {
  .tes-sheet.few { --side: 9rem; }
  .tes-sheet.some { --side: 5.6rem; }
  .tes-sheet.many { --side: 4.4rem; }
}
"""
    + grid_board.STYLE
    + plane_board.STYLE
    + saving.STYLE
)
