"""The page's style sheet: light and dark, wide and narrow.

The colours of series are the Okabe-Ito set, with lighter tones of it on a dark ground; readers with
a colour-vision deficiency can tell them apart, and dashes and marks tell them apart, too.
"""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light;
  --ground: #ffffff; --panel: #f6f7f9; --line: #d5d9e0; --grid: #e4e7ec;
  --text: #1c2330; --quiet: #5a6475; --accent: #005a94; --bad: #a8321f; --bad-ground: #fbeae6;
  --good: #00694d; --none: #e3e5ea;
  --c0: #000000; --c1: #0072b2; --c2: #d55e00; --c3: #009e73;
  --c4: #b4578a; --c5: #2f95cf; --c6: #b87900; --c7: #7a7f88;
}
:root[data-theme="dark"] {
  color-scheme: dark;
  --ground: #12161d; --panel: #1b212b; --line: #364052; --grid: #2a3240;
  --text: #e8ebf1; --quiet: #a3adbd; --accent: #7cc4f5; --bad: #ff9d85; --bad-ground: #3a211d;
  --good: #5fd3ac; --none: #2a303b;
  --c0: #ffffff; --c1: #58b4ec; --c2: #ff8f45; --c3: #2fcf9f;
  --c4: #e79cc4; --c5: #a5dcff; --c6: #f0b93c; --c7: #a0a7b3;
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main, header, footer { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 22px; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 40px 0 10px; padding-top: 10px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 4px; }
p { margin: 4px 0 10px; }
a { color: var(--accent); }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 0.92em; }
code, .quiet, .state { unicode-bidi: isolate; }
.quiet, figcaption { color: var(--quiet); font-size: 0.9rem; }
.top { display: flex; gap: 12px; justify-content: space-between; align-items: flex-start; }
.state { font-weight: 600; }
.state.running { color: var(--accent); } .state.complete { color: var(--good); }
.state.failed, .state.incomplete { color: var(--bad); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 10px 0 0; font-size: 0.92rem; }
button, select {
  font: inherit; color: var(--text); background: var(--panel); border: 1px solid var(--line);
  border-radius: 6px; padding: 4px 10px; min-height: 34px;
}
button { cursor: pointer; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 10px; }
.fact { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 12px; }
.fact dt { color: var(--quiet); font-size: 0.85rem; }
.fact dd { margin: 0; font-size: 1.16rem; font-weight: 600; overflow-wrap: anywhere; }
.fact dd + dd { font-size: 0.82rem; font-weight: 400; color: var(--quiet); }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 18px; }
.row + .row, .wide + .row, .row + .wide, .row + .maps { margin-top: 18px; }
.row > *, figure { min-width: 0; }
.row + h3 { margin-top: 26px; }
.maps { columns: 440px 2; column-gap: 18px; }
.maps figure { break-inside: avoid; margin-bottom: 18px; }
figure { margin: 0; background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px; }
.plot { overflow-x: auto; margin-top: 8px; } .plot svg { display: block; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin-top: 6px; }
.legend button { all: unset; display: inline-flex; align-items: center; gap: 6px; max-width: 100%;
  font-size: 0.86rem; line-height: 1.7; cursor: pointer; overflow-wrap: anywhere; }
.legend button:focus-visible { outline: 2px solid var(--accent); }
.legend button[aria-pressed=false] { opacity: 0.4; } .legend button:disabled { cursor: auto; }
.legend svg { width: 30px; height: 14px; flex: none; }
.controls { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; margin: 6px 0; }
.controls label { display: inline-flex; gap: 6px; align-items: center; font-size: 0.9rem; }
.controls .slider { flex: 1 1 210px; }
.controls input[type=range] { flex: 1; min-width: 90px; height: 30px;
  accent-color: var(--accent); }
.controls output { min-width: 5.6em; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; max-height: 560px; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--grid);
  vertical-align: top; white-space: nowrap; }
th { position: sticky; top: 0; background: var(--panel); text-align: right; font-weight: 600;
  white-space: normal; vertical-align: bottom; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " ▲"; font-size: 0.7em; }
th[aria-sort=descending] button::after { content: " ▼"; font-size: 0.7em; }
.text th, .text td { text-align: left; }
.fit td { white-space: normal; min-width: 4.6em; overflow-wrap: break-word; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 220px; text-align: left; }
th:first-child, td:first-child { text-align: left; }
tr.bad td { background: var(--bad-ground); color: var(--bad); }
tr.changed td { font-weight: 600; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--accent); }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 0.88rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
.sample { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 12px; margin: 0 0 10px; }
.sample dt { color: var(--quiet); font-size: 0.84rem; } .sample dd { margin: 0 0 6px; }
.vg-tooltip { position: fixed; z-index: 9; pointer-events: none; max-width: 320px;
  visibility: hidden; font-size: 0.84rem; background: var(--text); color: var(--ground);
  border-radius: 6px; padding: 6px 9px; white-space: pre-line; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
.vg-tooltip.visible { visibility: visible; }
footer { margin: 40px auto 30px; color: var(--quiet); font-size: 0.86rem; }
@media (max-width: 560px) {
  .maps { columns: 1; }
  main, header, footer { padding-left: 12px; padding-right: 12px; }
  .facts { grid-template-columns: 1fr 1fr; }
  figure { padding: 10px 8px; }
  h1 { font-size: 1.3rem; }
}
@media print { nav, #theme, .controls { display: none; } figure { break-inside: avoid; } }
"""
