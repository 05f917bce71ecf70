"""The style sheet of the report: for paper and screen, light and dark, wide and narrow."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --ink: #1d2126; --quiet: #5d6570; --line: #dfe2e6; --wash: #f3f4f5; --accent: #2f6fc4; --warm: #8a5a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --ink: #e4e6e9; --quiet: #9ba3ad; --line: #33383f; --wash: #1f2327; --accent: #74a9f0; --warm: #e0b364;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
}
main, footer { max-width: 1000px; margin: 0 auto; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 0 0 .8rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
p { margin: 0 0 .8rem; max-width: 46rem; }
a { color: var(--accent); text-underline-offset: .15em; }
code, pre { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre {
  background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; margin: .5rem 0 1rem;
  overflow-x: auto;
}
pre code { font-size: inherit; overflow-wrap: normal; }
section { margin-top: 3rem; padding-top: 1.6rem; border-top: 1px solid var(--line); scroll-margin-top: .5rem; }
.lead { color: var(--quiet); }
.missing { color: var(--quiet); }
.warning { border-left: 3px solid var(--warm); padding-left: .8rem; color: var(--warm); }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.7rem, 1fr)); gap: 1.2rem; margin: 1.6rem 0 0; }
.tiles dt { font-size: .82rem; color: var(--quiet); line-height: 1.3; }
.tiles dd { margin: 0; font-size: 1.65rem; line-height: 1.35; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles dd.about { font-size: .78rem; font-weight: 400; color: var(--quiet); line-height: 1.35; }

nav { margin-top: 2rem; }
nav ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.3rem; font-size: .92rem; }
nav .empty a { color: var(--quiet); }

figure { margin: 0 0 1.6rem; break-inside: avoid; }
figcaption { margin-top: .6rem; font-size: .88rem; color: var(--quiet); max-width: 46rem; }
img { display: block; max-width: 100%; height: auto; }
.pixels { image-rendering: pixelated; }
.grid { display: inline-block; max-width: 100%; }
.plate { background: #fff; padding: 4px; border-radius: 3px; }
.named { display: inline-grid; grid-template-columns: auto minmax(0, auto); column-gap: .7rem; }
.named .columns { grid-column: 2; }
.named .rows { grid-column: 1; }
.named .plate { grid-column: 2; }
.columns { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); padding: 0 4px .25rem; align-items: end; }
.columns span { text-align: center; font-size: .78rem; line-height: 1.15; overflow-wrap: anywhere; hyphens: auto; }
.rows { display: grid; grid-auto-rows: 1fr; padding: 4px 0; }
.rows span { align-self: center; text-align: right; font-size: .78rem; line-height: 1.15; max-width: 7.5rem; }

.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); gap: 1.2rem 1.6rem; }
.charts figure { margin: 0; }
.charts figcaption { margin: 0 0 .3rem; color: var(--ink); }
.chart svg { display: block; width: 100%; height: auto; max-width: 100%; }
.chart svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif !important; }
.wide { max-width: 780px; overflow-x: auto; }
.chart.wide svg { min-width: 22rem; }
.small { max-width: 400px; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 1rem 2.5rem; align-items: start; }

.scroll { overflow-x: auto; margin: 0 0 1.4rem; }
table { border-collapse: collapse; font-size: .9rem; min-width: min(100%, 22rem); }
caption { text-align: left; font-weight: 600; padding: 0 0 .4rem; }
th, td { padding: .3rem 1.1rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--quiet); font-size: .82rem; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
td { overflow-wrap: break-word; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.track { display: block; width: clamp(5rem, 18vw, 11rem); padding-top: .42em; }
.bar { display: block; height: .65em; background: var(--accent); border-radius: 1px; print-color-adjust: exact; }

details { margin: 0 0 .6rem; }
summary { cursor: pointer; padding: .15rem 0; }
details[open] { margin-bottom: 1.4rem; }
footer { margin-top: 3.5rem; font-size: .85rem; color: var(--quiet); }

@media (max-width: 640px) {
  body { padding: 1.5rem 1rem 3rem; font-size: 15px; }
  h1 { font-size: 1.6rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 1rem; }
  .tiles dd { font-size: 1.4rem; }
  th, td { padding-right: .7rem; }
  .chart.wide svg { min-width: 34rem; }
  .columns span, .rows span { font-size: .68rem; }
  .rows span { max-width: 5.6rem; }
  .named { column-gap: .4rem; }
}
@media print {
  :root { --paper: #fff; --ink: #000; --quiet: #444; --line: #ccc; --wash: #fff; --accent: #2f6fc4; --warm: #6a4500; }
  body { padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  h2, h3, caption { break-after: avoid; }
  tr, .chart { break-inside: avoid; }
  section { margin-top: 1.6rem; }
  pre { white-space: pre-wrap; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""
